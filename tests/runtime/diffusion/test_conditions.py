"""What the UNet is given beside the latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pixelrt.errors import UsageError
from pixelrt.geometry import Size
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.diffusion.call import Call
from pixelrt.runtime.diffusion.conditions import Conditions
from pixelrt.runtime.diffusion.prompts import Embeddings

SIZE = Size(16, 24)
LATENTS = np.zeros((2, 4, 2, 3), np.float32)


def conditions(image: Any, **options: Any) -> Conditions:
    settings = DiffusionSettings(
        scheduler={},
        latent_channels=4,
        latent_scale=8,
        scaling=1.0,
        sample_size=2,
        multiple=8,
        minimum=8,
        unet_channels=4,
        text=[],
        controls=1,
    )
    embeddings = Embeddings(np.zeros((4, 7, 5), np.float32), None, 2, True)
    call = Call(control_images=[image], **options)
    return Conditions(settings, call, embeddings, SIZE, 10)


def test_a_grey_control_picture_is_shown_in_three_channels_to_both_halves() -> None:
    grey = np.arange(16 * 24, dtype=np.uint8).reshape(16, 24) // 2
    given = conditions(grey).feeds(LATENTS, 1.0, 0)
    assert given["control_0"].shape == (4, 3, 16, 24)
    for channel in range(3):
        wanted = grey.astype(np.float32) / np.float32(255)
        assert np.array_equal(given["control_0"][3, channel], wanted)
    assert given["latents"].shape == (4, 4, 2, 3)


def test_control_pictures_are_counted_against_pictures_and_not_their_halves() -> None:
    each = np.stack([np.full((16, 24, 3), level, np.uint8) for level in (0, 255)])
    given = conditions(each).feeds(LATENTS, 1.0, 0)
    assert given["control_0"][:, 0, 0, 0].tolist() == [0, 1, 0, 1]
    with pytest.raises(UsageError, match="as many control images"):
        conditions(np.concatenate([each, each]))


def test_control_acts_between_its_start_and_end() -> None:
    made = conditions(
        np.zeros((16, 24, 3), np.uint8),
        controlnet_conditioning_scale=0.5,
        control_guidance_start=0.2,
        control_guidance_end=0.6,
    )
    scales = [float(made.feeds(LATENTS, 1.0, number)["scale_0"][0]) for number in range(10)]
    assert scales == [0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]
