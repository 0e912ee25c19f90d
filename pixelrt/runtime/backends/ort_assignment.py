"""Which provider really got the nodes of a graph: onnxruntime falls back to the CPU in silence.

Two proofs: what onnxruntime says it assigned (``get_provider_graph_assignment_info``, 1.24 and
later), and, where nodes stayed on the CPU, the profile of a run with the types and sizes of
every tensor. Computations on shapes belong on the host, and onnxruntime puts them there by
design (``GetCpuPreferredNodes``); those alone are allowed, and only as long as they are tiny.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pixelrt.errors import BackendError

RECORD = "session.record_ep_graph_assignment_info"
NO_FALLBACK = "session.disable_cpu_ep_fallback"
"""onnxruntime_session_options_config_keys.h."""

OLDEST = (1, 24)
"""The first onnxruntime that tells which provider got which node."""
CPU_PROVIDER = "CPUExecutionProvider"
TINY = 64
"""Elements of a tensor that may stay on the host: the dimensions and paddings of a few tensors.
A picture of 16x16 has more."""
WHOLE_NUMBERS = frozenset({"int64", "int32", "uint64", "uint32", "bool"})
READS_NO_DATA = frozenset({"Shape", "Size"})
SHOWN = 8


def require_version(version: str, hint: str = "") -> None:
    """Raise ``BackendError`` for an onnxruntime that does not tell what it assigned."""
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise BackendError(
            "this onnxruntime is too old: it cannot tell which provider runs which node",
            found=f"onnxruntime {version}",
            expected=f"{'.'.join(map(str, OLDEST))} or later",
            hint=hint,
        )


def require_whole(session: Any, provider: str) -> None:
    """Raise ``BackendError`` unless ``provider`` got every node."""
    host = require_provider(session, provider)
    if host:
        raise _refused(provider, host, f"assigned to {CPU_PROVIDER}")


def require_provider(session: Any, provider: str) -> tuple[str, ...]:
    """The nodes that stayed on the CPU, as ``name (Op)``.

    Raises ``BackendError`` where the session does without ``provider``, or where another one
    got nodes.
    """
    there = list(session.get_providers())
    if provider not in there:
        raise BackendError(
            f"onnxruntime left {provider} out",
            found=f"the session runs on {', '.join(there)}",
            hint="its libraries may be missing; onnxruntime's own messages say which",
        )
    host: list[str] = []
    given = False
    for part in session.get_provider_graph_assignment_info():
        nodes = [f"{node.name or 'a nameless node'} ({node.op_type})" for node in part.get_nodes()]
        given = given or (part.ep_name == provider and bool(nodes))
        if part.ep_name == CPU_PROVIDER:
            host += nodes
        elif part.ep_name != provider:
            raise _refused(provider, nodes, f"assigned to {part.ep_name}")
    if not given:
        raise _refused(provider, host or ["every node"], "assigned to the CPU, if to any provider")
    return tuple(host)


def require_tiny(events: Sequence[dict[str, Any]], provider: str) -> None:
    """Raise ``BackendError`` where a run did more on the CPU than compute shapes.

    ``events``: of onnxruntime's profile, of at least one run.
    """
    nodes = [event for event in events if event.get("cat") == "Node" and "args" in event]
    runs = [event for event in nodes if "provider" in event["args"]]
    if not runs:
        raise BackendError(
            f"it cannot be told what {provider} ran",
            found="onnxruntime's profile holds no nodes",
        )
    large = [event for event in runs if event["args"]["provider"] != provider and not _tiny(event)]
    if large:
        names = [f"{_name(event)} ({event['args'].get('op_name')})" for event in large]
        raise _refused(provider, names, f"run by {large[0]['args']['provider']}")


def read_profile(session: Any) -> list[dict[str, Any]]:
    """End the profile of a session, and its file with it."""
    path = Path(session.end_profiling())
    try:
        return list(json.loads(path.read_text()))
    except (OSError, ValueError) as exc:
        raise BackendError("onnxruntime's profile cannot be read", found=str(exc)) from exc
    finally:
        path.unlink(missing_ok=True)


def _tiny(event: dict[str, Any]) -> bool:
    args = event["args"]
    tensors = list(args.get("output_type_shape", ()))
    if args.get("op_name") not in READS_NO_DATA:
        tensors += args.get("input_type_shape", ())
    return all(
        kind in WHOLE_NUMBERS and _elements(dims) <= TINY
        for tensor in tensors
        for kind, dims in tensor.items()
    )


def _elements(dims: Sequence[int]) -> int:
    count = 1
    for side in dims:
        count *= side
    return count


def _name(event: dict[str, Any]) -> str:
    return str(event.get("name", "")).removesuffix("_kernel_time")


def _refused(provider: str, nodes: Sequence[str], where: str) -> BackendError:
    more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
    return BackendError(
        f"{provider} does not run the whole graph",
        found=f"{', '.join(nodes[:SHOWN])}{more}: {where}",
        hint="use another backend; a network that runs partly elsewhere is not accepted",
    )
