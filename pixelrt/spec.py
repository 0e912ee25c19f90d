"""Frozen facts about networks and tensors. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["super-resolution", "restoration", "translation"]
"""What a network is for. It decides how grey and transparent images are treated:
super-resolution and restoration networks see every plane of an image as a picture of its
own; a translation network always gives its own colours."""

Statistics = Literal["local", "image"]
"""``image``: the network normalises with statistics of the whole image (InstanceNorm),
so no tile can know them; ``local``: every output pixel depends on a bounded
neighbourhood."""

PadMode = Literal["symmetric", "reflect", "edge"]
"""How an image is extended to the network's grid, in the meaning of ``numpy.pad``."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    ``shape`` mixes numbers (fixed) and names (dynamic): ``("N", "H", "W", 3)``.
    ``dtype`` is numpy's name for it: ``uint8``, ``float32``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class ImageSpec:
    """What a user of an image-to-image network has to know about it.

    Sizes are in input pixels unless a name says otherwise.
    """

    task: Task
    scale: int
    """Output size = scale x input size, exactly, on both axes."""
    channels_in: int
    channels_out: int
    multiple: int
    """Height and width fed to the graph are multiples of this."""
    minimum: int
    """Smallest height and width that the graph takes; itself a multiple of ``multiple``."""
    pad_mode: PadMode
    statistics: Statistics
    library_divisor: int = 0
    """Grid of the original library's own padding (always 1 to ``library_divisor`` pixels,
    symmetric); 0 where the library has no padding of its own."""


@dataclass(frozen=True)
class ReceptiveField:
    """How far an output pixel sees, measured on the network itself.

    ``alignment``: tiles start at multiples of this. ``halo``: with this many extra pixels
    on each cut side, a tile's own pixels equal those of the whole image; ``None`` where
    the whole image is seen. ``curve``: the halo that gives at least that many dB next to
    a cut on real photographs, e.g. ``{"60dB": 32}``.
    """

    alignment: int
    halo: int | None
    curve: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer.json does not say about the tokens that a text encoder takes."""

    model_max_length: int
    """Tokens in one window of the text encoder, begin and end of text included."""
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    padding_side: Literal["right", "left"] = "right"


@dataclass(frozen=True)
class Tolerance:
    """Largest absolute error against PyTorch in fp32, of a value range of 1.0."""

    max_abs: float
