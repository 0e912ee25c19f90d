"""One network, image in, image out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from pixelrt.bundle import Bundle
from pixelrt.errors import BackendError, ImageError, UsageError
from pixelrt.geometry import Size, TilePlan
from pixelrt.grid import pad_image
from pixelrt.manifest import GraphRole, Manifest
from pixelrt.runtime.backends.base import (
    Array,
    ArraySession,
    Backend,
    BackendInfo,
    Session,
    TileSession,
)
from pixelrt.runtime.backends.select import BACKENDS, Choice, PassedOver, open_session
from pixelrt.runtime.closing import Closing
from pixelrt.runtime.device.fitting import DevicePlan
from pixelrt.runtime.device.flow_plan import Maps
from pixelrt.runtime.device.interop import DeviceArray
from pixelrt.runtime.device.planning import device_budget, device_planner
from pixelrt.runtime.device.replan import run_with_replan
from pixelrt.runtime.pipelines.arrays import check_array, levels
from pixelrt.runtime.pipelines.device_job import run_on_device
from pixelrt.runtime.pipelines.one_shape import Run, ways_to_run
from pixelrt.runtime.pipelines.planes import Route, route_planes
from pixelrt.runtime.planning import RunOptions
from pixelrt.runtime.tiling import Progress, run_plan

if TYPE_CHECKING:
    from PIL import Image

    from pixelrt.runtime.images.read import Picture


class ImageModel(Closing):
    """A bundle of one image-to-image network, ready to run.

    Call it with a ``PIL.Image`` or an array; the same kind comes back, exactly ``scale``
    times as large. Arrays are (H, W), (H, W, 1) or (H, W, 3), uint8, uint16, or float32 in
    [0, 1]; float results are clamped to [0, 1].

    Graphs are loaded at first use, checked against the bundle's reference outputs on this
    machine and backend, and kept until ``close``. ``fidelity`` then holds the verdict of
    each graph in words. A context manager. Calls from several threads are safe where the
    backend's sessions are (onnxruntime's are).
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "auto",
        precision: str = "auto",
        verify: bool = True,
        backends: tuple[Backend, ...] = BACKENDS,
    ) -> None:
        self.bundle = bundle
        self.fidelity: dict[GraphRole, str] = {}
        self.passed_over: tuple[PassedOver, ...] = ()
        self._choice = Choice(backend, precision)
        self._verify = verify
        self._backends = backends
        self._sessions: dict[GraphRole, Session] = {}
        self._replans: list[str] = []

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def scale(self) -> int:
        return self.manifest.image.scale

    @overload
    def __call__(
        self, image: Image.Image, *, progress: Progress | None = None, **options: Any
    ) -> Image.Image: ...

    @overload
    def __call__(
        self, image: Array, *, progress: Progress | None = None, **options: Any
    ) -> Array: ...

    def __call__(self, image: Any, *, progress: Progress | None = None, **options: Any) -> Any:
        """Run an image; ``options`` are the fields of ``RunOptions``."""
        chosen = run_options(options)
        if isinstance(image, np.ndarray):
            return self.run_array(image, chosen, progress)
        from pixelrt.runtime.images.read import picture_from_pil, picture_to_pil

        return picture_to_pil(self.run_picture(picture_from_pil(image), chosen, progress))

    def run_picture(
        self, picture: Picture, options: RunOptions, progress: Progress | None = None
    ) -> Picture:
        """Run a decoded picture; metadata and format stay, alpha is scaled along."""
        pixels = self.run_array(picture.pixels, options, progress)
        if picture.alpha is None:
            return replace(picture, pixels=pixels)
        return replace(picture, pixels=pixels, alpha=self._run_alpha(picture.alpha, options))

    def run_array(
        self, array: Array, options: RunOptions | None = None, progress: Progress | None = None
    ) -> Array:
        """Run (H, W), (H, W, 1) or (H, W, 3) of a supported dtype; see the class."""
        options = options or RunOptions()
        pixels = check_array(array)
        high = Size(*pixels.shape[:2]).scaled(self.scale)
        route = route_planes(pixels, self.manifest.image, high.height, high.width)
        role: GraphRole = "image" if pixels.dtype == np.uint8 else "core"
        self._run(role, route, levels(pixels.dtype), options, progress)
        return (
            route.result[..., 0] if array.ndim == 2 and route.result.shape[2] == 1 else route.result
        )

    def run_device(
        self,
        image: Any,
        *,
        stream: int | None = None,
        out: Any = None,
        **options: Any,
    ) -> DeviceArray:
        """Run images that are in GPU memory, without a copy to the host.

        ``image``: uint8 (H, W, C) or (N, H, W, C) with the network's channels, or (H, W) for
        grey networks, C-contiguous, of any library with ``__cuda_array_interface__`` or
        DLPack: torch, CuPy, numba, pycuda. ``stream``: the handle of the stream on which the
        caller works, such as ``torch.cuda.current_stream().cuda_stream``; without it the one
        that the array names, or the legacy default stream where it names none. ``out``: an
        array of the result's shape to write into. ``options``: fields of ``RunOptions``.

        Returns once everything is queued: the result may be used in the order of the
        caller's stream, and ``image`` be changed. It is an array of ``scale`` times the
        size, in ``out`` or in memory of ours that is freed when nobody holds it any more;
        other libraries take it in place (``torch.from_dlpack``, ``cupy.asarray``).

        Raises ``ImageError`` for arrays that do not fit, ``BackendError`` where the graph
        does not run on CUDA, ``OutOfMemoryError``.
        """
        session = self.session("image")
        if not isinstance(session, ArraySession):
            raise self._not_on_a_gpu(session)
        self._trim(session)
        return run_on_device(
            *(session, self.manifest, image, run_options(options)),
            stream=stream,
            out=out,
            report=self._tell,
        )

    def run_core(self, images: Array, options: RunOptions | None = None) -> Array:
        """(N, channels_in, H, W) float32 in [0, 1] through the float graph, not clamped.

        Gives (N, channels_out, scale*H, scale*W) float32.
        """
        spec = self.manifest.image
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != spec.channels_in:
            raise ImageError(
                "this is no batch for the float graph",
                found=f"{images.dtype} {images.shape}",
                expected=f"float32 (N, {spec.channels_in}, H, W)",
            )
        high = Size(*images.shape[2:]).scaled(self.scale)
        out = np.empty((len(images), spec.channels_out, high.height, high.width), np.float32)
        rows = images.transpose(0, 2, 3, 1)
        route = Route(rows, lambda values: values, out.transpose(0, 2, 3, 1), out)
        self._run("core", route, Maps(), options or RunOptions(), None)
        return out

    def plan(self, height: int, width: int, **options: Any) -> TilePlan:
        """The tile plan that a call with a uint8 image of this size would use.

        Loads the graph, since the plan depends on where it runs.
        """
        size, chosen, session = Size(height, width), run_options(options), self.session()
        if not isinstance(session, TileSession):
            return ways_to_run(size, "image", self.manifest, session, chosen)[0][0]
        planner = device_planner(size, 1, self.manifest, chosen, session)
        return planner(device_budget(session, chosen)).tiles

    def session(self, role: GraphRole = "image") -> Session:
        """The session of a graph, loaded and verified at first use."""
        if role not in self._sessions:
            opened = open_session(
                self.bundle, role, self._choice, self._backends, verify=self._verify
            )
            self.passed_over = opened.passed_over
            self.fidelity[role] = opened.verdict
            self._sessions[role] = opened.session
        return self._sessions[role]

    @property
    def info(self) -> BackendInfo:
        """What runs the image graph; loads it if need be."""
        return self.session().info

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as it should, though the results are right, in words."""
        said = [note for one in self._sessions.values() for note in getattr(one, "notes", ())]
        return tuple(dict.fromkeys((*self._replans, *said)))

    def close(self) -> None:
        """Release everything; of several failures the first is raised."""
        with ExitStack() as stack:
            while self._sessions:
                stack.enter_context(self._sessions.popitem()[1])

    def _run(
        self,
        role: GraphRole,
        route: Route,
        maps: Maps,
        options: RunOptions,
        progress: Progress | None,
    ) -> None:
        """Fill ``route.out`` through a graph. ``maps``: pixels to its values, and back."""
        session = self.session(role)
        both = Maps(maps.enter, lambda values: route.keep(maps.leave(values)))
        size = Size(*route.image.shape[1:3])
        if isinstance(session, TileSession):
            self._run_on_device(session, size, route, both, options, progress)
        else:
            self._run_on_host(session, role, size, route, both, options, progress)

    def _run_on_host(
        self,
        session: Session,
        role: GraphRole,
        size: Size,
        route: Route,
        maps: Maps,
        options: RunOptions,
        progress: Progress | None,
    ) -> None:
        def run(plan: TilePlan, call: Run) -> None:
            infer = partial(_infer, session, call, role, maps)
            padded = pad_image(route.image, plan.image, self.manifest.image.pad_mode)
            run_plan(infer, padded, plan, route.out, scale=self.scale, progress=progress)

        *better, last = ways_to_run(size, role, self.manifest, session, options)
        for way in better:
            try:
                return run(*way)
            except BackendError as exc:
                self._tell(f"{exc}; again from the start with {last[0]}")
        return run(*last)

    def _run_on_device(
        self,
        session: TileSession,
        size: Size,
        route: Route,
        maps: Maps,
        options: RunOptions,
        progress: Progress | None,
    ) -> None:
        """The whole image on a device, again with smaller tiles where its memory is short."""
        self._trim(session)

        def run(plan: DevicePlan) -> None:
            padded = pad_image(route.image, plan.tiles.image, self.manifest.image.pad_mode)
            session.run_tiles(
                padded, plan, route.out, scale=self.scale, maps=maps, progress=progress
            )

        run_with_replan(
            device_planner(size, len(route.image), self.manifest, options, session),
            run,
            device_budget(session, options),
            release=session.trim,
            report=self._tell,
        )

    def _not_on_a_gpu(self, session: Session) -> BackendError:
        reasons = "; ".join(map(str, self.passed_over))
        return BackendError(
            f"{session.info} does not run on a GPU",
            found=reasons,
            hint="give a host array, or name a GPU backend: `pixelrt doctor` shows them",
        )

    def _trim(self, session: Session) -> None:
        """What the other graph's session keeps is memory for this one."""
        for other in self._sessions.values():
            if other is not session and isinstance(other, TileSession):
                other.trim()

    def _tell(self, words: str) -> None:
        if words not in self._replans:
            self._replans.append(words)

    def _run_alpha(self, alpha: Array, options: RunOptions) -> Array:
        if self.scale == 1:
            return alpha
        if self.manifest.image.task == "super-resolution":
            return self.run_array(alpha, options)
        from PIL import Image

        size = (alpha.shape[1] * self.scale, alpha.shape[0] * self.scale)
        return np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.LANCZOS))


def _infer(session: Session, run: Run, role: GraphRole, maps: Maps, tiles: Array) -> Array:
    """(N, H, W, C) through a session on the host, by ``run``."""
    feed = maps.enter(tiles)
    if role == "core":
        feed = np.ascontiguousarray(feed.transpose(0, 3, 1, 2))
    result = run({session.inputs[0].name: feed})[session.outputs[0].name]
    return maps.leave(result.transpose(0, 2, 3, 1) if role == "core" else result)


def run_options(values: dict[str, Any]) -> RunOptions:
    """``RunOptions`` from keyword arguments. Raises ``UsageError`` for unknown names."""
    unknown = set(values) - set(RunOptions.__dataclass_fields__)
    if unknown:
        raise UsageError(
            f"unknown option {', '.join(sorted(unknown))}",
            expected=", ".join(RunOptions.__dataclass_fields__),
        )
    return RunOptions(**values)
