"""A run of a whole pipeline by the original library, as the npz file of a bundle.

``docs/bundle-format.md`` is normative.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import BundleError

GIVEN, NOISE, STEP, IMAGES = "in.", "noise.", "step.", "images"
Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WholeRun:
    """What went in and what came out, computed in fp32.

    ``given``: the arrays among the options of the call, by name. ``noise``: standard normal
    numbers, float32, in the order in which they were drawn. ``steps``: the latents after every
    step, float32 (N, c, h, w); of StyleGAN2 once, the truncated ws. ``images``: uint8 (N, H, W, C).
    """

    given: Mapping[str, NDArray[Any]]
    noise: Sequence[Values]
    steps: Sequence[Values]
    images: NDArray[np.uint8]


def encode_run(run: WholeRun) -> bytes:
    """The bytes of an npz file."""
    arrays: dict[str, NDArray[Any]] = {GIVEN + name: value for name, value in run.given.items()}
    arrays |= {f"{NOISE}{i}": value for i, value in enumerate(run.noise)}
    arrays |= {f"{STEP}{i}": value for i, value in enumerate(run.steps)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **{IMAGES: run.images})
    return buffer.getvalue()


def read_run(path: Path) -> WholeRun:
    """Raises ``BundleError`` where the file is no such run."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files}
        images = arrays[IMAGES]
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"{IMAGES} are {images.dtype} {images.shape}")
        given = {n.removeprefix(GIVEN): v for n, v in arrays.items() if n.startswith(GIVEN)}
        return WholeRun(given, _numbered(arrays, NOISE), _numbered(arrays, STEP), images)
    except (OSError, ValueError, KeyError) as exc:
        raise BundleError(f"{path} is no run of a whole pipeline", found=str(exc)) from exc


def _numbered(arrays: Mapping[str, NDArray[Any]], prefix: str) -> list[Values]:
    """``prefix`` 0, 1, 2 and so on. Raises ``KeyError`` for a gap, ``ValueError`` for a type."""
    found = [arrays[f"{prefix}{i}"] for i in range(sum(n.startswith(prefix) for n in arrays))]
    if any(value.dtype != np.float32 for value in found):
        raise ValueError(f"{prefix}* are not float32")
    return found
