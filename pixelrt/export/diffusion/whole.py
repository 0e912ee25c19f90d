"""Pipelines of diffusers, run whole in fp32 for the reference of a bundle."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.overrides import TorchFunctionMode

from pixelrt.errors import CheckpointError, ExportError
from pixelrt.export.assemble import Example
from pixelrt.pipeline_settings import TextSettings
from pixelrt.whole_run import WholeRun

PROMPT, NEGATIVE = "a photo of a house", "blurry"
STEPS, GUIDANCE, STRENGTH, SEED = 4, 5.0, 0.75, 7
DRAWS = (torch.randn, torch.randn_like)


@dataclass(frozen=True, eq=False)
class Way:
    """One way to run a pipeline, and what for.

    ``mode``: the method of what runs it here. ``pipe``: makes diffusers' pipeline. ``options``:
    JSON, and ``arrays``: pictures uint8 (H, W, C) or several of them, both under the names that the
    method has for them. ``renamed``: diffusers' names where they are others.
    """

    mode: str
    pipe: Callable[[], Any]
    options: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.uint8]]
    renamed: Mapping[str, str]


def examples(ways: Iterable[Way]) -> Iterator[Example]:
    """Every way, run once. Raises ``ExportError`` where diffusers cannot run one."""
    for way in ways:
        name = way.mode.replace("_", "-")
        yield Example(name, way.mode, dict(way.options), _run(way))


def _run(way: Way) -> WholeRun:
    pictures = {name: _pictures(value) for name, value in way.arrays.items()}
    call = {way.renamed.get(n, n): v for n, v in {**way.options, **pictures}.items()}
    try:
        with quiet():
            images, steps, noise = run_pipe(way.pipe(), call)
    # diffusers raises whatever its parts raise.
    except Exception as exc:
        raise ExportError(
            f"diffusers does not run this pipeline as a whole ({way.mode})",
            found=f"{type(exc).__name__}: {exc!s:.500}",
            hint="--no-pipeline-reference leaves the whole unchecked; its networks are checked",
        ) from exc
    if not np.isfinite(images).all():
        raise ExportError(
            f"the pictures of the original pipeline are not finite ({way.mode})",
            found=f"{np.count_nonzero(~np.isfinite(images))} values are NaN or infinite",
            expected="weights that work in fp32",
        )
    return WholeRun(way.arrays, noise, steps, np.rint(images * 255).astype(np.uint8))


def run_pipe(
    pipe: Any, call: Mapping[str, Any]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """A pipeline of diffusers with the options ``call``: pictures (N, H, W, C) in [0, 1], the
    latents after every step, and the noise that was drawn, in order."""
    steps: list[NDArray[np.float32]] = []

    def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(values["latents"].numpy().copy())
        return values

    def keep_latents(_step: int, _time: Any, latents: torch.Tensor) -> None:
        steps.append(latents.numpy().copy())

    # The upscalers tell of their steps as all pipelines once did.
    now = "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
    told = {"callback_on_step_end": keep} if now else {"callback": keep_latents}
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode(), _Drawn() as drawn:
        made = pipe(
            **call,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
            **told,
        )
    return made.images, steps, [one.numpy() for one in drawn.values]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers and transformers have to say of their own names and packages."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    kept = [(one, one.get_verbosity()) for one in (diffusers_logging, transformers_logging)]
    try:
        for one, _ in kept:
            one.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in kept:
            one.set_verbosity(level)


class _Drawn(TorchFunctionMode):
    """Keeps the normal numbers that are drawn within it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in DRAWS:
            self.values.append(result.clone())
        return result


def _pictures(pixels: NDArray[np.uint8]) -> Any:
    if pixels.ndim == 4:
        return [_pictures(one) for one in pixels]
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def make_scheduler(config: Mapping[str, Any]) -> Any:
    """diffusers' scheduler of a configuration. Raises ``CheckpointError``."""
    import diffusers

    name = str(config.get("_class_name"))
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise CheckpointError("the scheduler is unknown to diffusers", found=name)
    made: Any = kind
    return made.from_config(dict(config))


def clip_tokenizer(folder: Path, text: TextSettings) -> Any:
    """transformers' tokenizer of ``folder``, for prompts as long as those of the bundle."""
    from transformers import CLIPTokenizer

    made = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    made.model_max_length = text.tokenizer.model_max_length
    return made
