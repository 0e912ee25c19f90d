"""TensorRT and TensorRT for RTX: plans of a bundle, on the GPU that they were built for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pixelrt.bundle import BundledNetwork
from pixelrt.errors import BackendError, PixelrtError
from pixelrt.manifest import GraphRole
from pixelrt.plans.store import Search, StoredPlan, find_plans, graph_mismatch
from pixelrt.plans.target import Flavour, Target, detect_target, mismatch
from pixelrt.plans.tensorrt import HINTS, MODULES, TensorRT, load_tensorrt
from pixelrt.runtime.backends.base import BackendInfo, Offer, Session
from pixelrt.runtime.backends.trt_loading import load_network, load_plan
from pixelrt.runtime.device.cuda import Cuda, RealCuda
from pixelrt.runtime.device.memory import free_on
from pixelrt.runtime.device.session import DeviceSession

DIGITS = 12
"""Of a plan's sha256, in ``BackendInfo.engine``."""
RANK = ("float16", "bfloat16", "float32")
"""The order in which plans are tried."""


def _installed(flavour: Flavour) -> bool:
    return importlib.util.find_spec(MODULES[flavour]) is not None


@dataclass(frozen=True)
class Machine:
    """What a backend asks of the machine: TensorRT's module, the GPU, and what it is."""

    installed: Callable[[Flavour], bool] = _installed
    load: Callable[[Flavour], TensorRT] = load_tensorrt
    cuda: Callable[[], Cuda] = RealCuda
    target: Callable[[Flavour, str], Target] = detect_target


HERE = Machine()


class TensorRTBackend:
    """Plans for ``flavour``: those of the bundle, then those of the cache; or ``plan`` only.

    ``graphs``: whether runs are recorded into CUDA graphs.
    """

    def __init__(
        self,
        flavour: Flavour,
        *,
        plan: StoredPlan | None = None,
        graphs: bool = True,
        machine: Machine = HERE,
    ) -> None:
        self.name: str = flavour
        self._flavour = flavour
        self._plan = plan
        self._graphs = graphs
        self._machine = machine

    def missing(self) -> str:
        if not self._machine.installed(self._flavour):
            return f"{MODULES[self._flavour]} is not installed; {HINTS[self._flavour]}"
        try:
            self._machine.cuda()
            self._machine.load(self._flavour)
        except BackendError as exc:
            return _one_line(exc)
        return ""

    def free_memory(self) -> int:
        """See ``DeviceMemory``."""
        return free_on(self._machine.cuda())

    def offers(self, network: BundledNetwork, role: GraphRole) -> tuple[Offer, ...]:
        """One for each plan that fits this machine; those that do not come first, refused."""
        trt = self._machine.load(self._flavour)
        here = self._machine.target(self._flavour, trt.version)
        search = self._search(network, role)
        fitting: list[Offer] = []
        refused = [self._refuse("unknown", "", trt, here, words) for words in search.problems]
        for plan in search.plans:
            facts = plan.facts
            problem = mismatch(facts.bound_to, here, facts.options)
            if problem:
                words = f"{plan.place}: {problem}"
                refused.append(self._refuse(facts.precision, facts.sha256, trt, here, words))
            else:
                info = self._info(facts.precision, facts.sha256, trt, here)
                fitting.append(Offer(info, partial(self._open, trt, plan, info)))
        if not fitting and not refused:
            raise BackendError(
                f"{self.name} has no plan of this bundle",
                found=f"{trt} on {here.gpu}, but no plan of the {role} graph of "
                f"{network.name}; {self._how(network, role)}",
            )
        fitting.sort(key=lambda offer: RANK.index(offer.info.precision))
        return (*refused, *fitting)

    def _search(self, bundle: BundledNetwork, role: GraphRole) -> Search:
        graph = bundle.component.graph(role)
        if self._plan is None:
            found = find_plans(bundle, graph)
            mine = [one for one in found.plans if one.facts.target.flavour == self._flavour]
            return Search(tuple(mine), found.problems)
        problem = graph_mismatch(self._plan.facts, bundle, graph)
        if problem:
            return Search((), (f"{self._plan.place}: {problem}",))
        return Search((self._plan,), ())

    def _open(self, trt: TensorRT, plan: StoredPlan, info: BackendInfo) -> Session:
        cuda = self._machine.cuda()
        if plan.facts.graph.network:
            return load_network(trt, cuda, plan, info, graphs=self._graphs)
        return DeviceSession(cuda, load_plan(trt, cuda, plan, info), graphs=self._graphs)

    def _info(self, precision: str, sha256: str, trt: TensorRT, here: Target) -> BackendInfo:
        return BackendInfo(self.name, trt.version, here.gpu, precision, sha256[:DIGITS])

    def _refuse(
        self, precision: str, sha256: str, trt: TensorRT, here: Target, words: str
    ) -> Offer:
        def refuse() -> Session:
            raise BackendError(
                f"a plan cannot be used by {trt} on {here.gpu}",
                found=words,
                hint="build one on this machine with `pixelrt build`",
            )

        return Offer(self._info(precision, sha256, trt, here), refuse, refused=True)

    def _how(self, bundle: BundledNetwork, role: GraphRole) -> str:
        which = f"--network {bundle.component.name}" if role == "network" else f"--graph {role}"
        return f"pixelrt build {bundle.root} --backend {self.name} {which}"


def _one_line(error: PixelrtError) -> str:
    return "; ".join(part for part in (error.message, error.found, error.hint) if part)
