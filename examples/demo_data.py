"""Photographs, split, degradation and measure of the demonstration super-resolver.

All photographs ship inside the packages scikit-image and scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels: TypeAlias = NDArray[np.uint8]

SCALE = 2
BORDER = 2 * SCALE
"""So many pixels at each edge do not count for the PSNR."""

FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

TRAINING = {
    "skimage/astronaut.png": 4.0,
    "skimage/motorcycle_left.png": 3.0,
    "skimage/motorcycle_right.png": 3.0,
    "sklearn/flower.jpg": 3.0,
    "skimage/camera.png": 2.0,
    "skimage/retina.jpg": 1.0,
    "skimage/ihc.png": 1.0,
    "skimage/hubble_deep_field.jpg": 1.0,
    "skimage/brick.png": 1.0,
    "skimage/grass.png": 1.0,
    "skimage/gravel.png": 1.0,
    "skimage/coins.png": 1.0,
    "skimage/moon.png": 0.5,
    "skimage/page.png": 0.5,
}
"""Photograph to its share of the training patches."""

VALIDATION = "skimage/rocket.jpg"
"""Chooses among the checkpoints; never trained on."""

HELD_OUT = ("skimage/chelsea.png", "skimage/coffee.png", "sklearn/china.jpg")
"""Neither trained on nor looked at for any choice."""


def photograph(name: str) -> Image.Image:
    """The photograph ``package/file`` in RGB, its last row or column cut off if odd."""
    package, file = name.split("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"The photographs need {package}: pip install scikit-image scikit-learn")
    image = Image.open(Path(spec.origin).parent / FOLDERS[package] / file).convert("RGB")
    return image.crop(
        (0, 0, image.width - image.width % SCALE, image.height - image.height % SCALE)
    )


def reduce(image: Image.Image) -> Image.Image:
    """The degradation: half the width and height by Pillow's bicubic. Takes even sizes."""
    size = (image.width // SCALE, image.height // SCALE)
    return image.resize(size, Image.Resampling.BICUBIC)


def enlarge(image: Image.Image) -> Image.Image:
    """The baseline: twice the width and height by Pillow's bicubic."""
    size = (image.width * SCALE, image.height * SCALE)
    return image.resize(size, Image.Resampling.BICUBIC)


def psnr(image: Image.Image, target: Image.Image) -> float:
    """PSNR in dB between the lumas of two RGB images of one size, without the border."""
    inside = slice(BORDER, -BORDER)
    difference = (_luma(image) - _luma(target))[inside, inside]
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


def _luma(image: Image.Image) -> NDArray[np.float64]:
    """Y of ITU-R BT.601 in [16, 235], as in the literature on super-resolution."""
    rgb = np.asarray(image, dtype=np.float64) / 255
    luma: NDArray[np.float64] = 16 + rgb @ np.array([65.481, 128.553, 24.966])
    return luma
