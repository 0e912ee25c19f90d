"""The networks of a pipeline bundle, opened when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping

from pixelrt.pipeline_bundle import PipelineBundle
from pixelrt.runtime.backends.base import Array, Backend, BackendInfo, Session
from pixelrt.runtime.backends.select import BACKENDS, Choice, Opened, open_session
from pixelrt.runtime.closing import Closing


class Networks(Closing):
    """Opens, runs and closes the networks of ``bundle``.

    ``low_memory``: one network is open at a time. ``verify``: each is held against its samples
    before its first use on this machine. ``used``: what ran each of them.
    """

    def __init__(
        self,
        bundle: PipelineBundle,
        choice: Choice | None = None,
        *,
        low_memory: bool = False,
        verify: bool = True,
        backends: tuple[Backend, ...] = BACKENDS,
    ) -> None:
        self.bundle = bundle
        self.choice = choice or Choice()
        self.low_memory = low_memory
        self._verify = verify
        self._backends = backends
        self.used: dict[str, BackendInfo] = {}
        self._open: dict[str, Opened] = {}

    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises as ``open_session`` and ``Session.infer`` do."""
        return self.session(name).infer(feeds)

    def session(self, name: str) -> Session:
        return self.opened(name).session

    def opened(self, name: str) -> Opened:
        if name not in self._open:
            if self.low_memory:
                self.close()
            self._open[name] = open_session(
                self.bundle.network(name),
                "network",
                self.choice,
                self._backends,
                verify=self._verify,
            )
            self.used[name] = self._open[name].session.info
        return self._open[name]

    def close(self) -> None:
        """Close all; the next run opens again."""
        while self._open:
            self._open.popitem()[1].session.close()
