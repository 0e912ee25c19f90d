"""``pixelrt img2img``: pictures from a prompt and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pixelrt.cli.generate import (
    common_options,
    generate,
    image_option,
    read_source,
    strength_option,
)


@click.command("img2img")
@common_options
@image_option("The picture, or latents (.npy) of another pipeline.")
@strength_option("diffusers'; 0.8, of SDXL without ControlNets and of Kandinsky 0.3")
def command(image: Path, strength: float | None, **options: Any) -> None:
    """Change a picture as a prompt says with a diffusion BUNDLE."""
    generate(options, "image_to_image", image=read_source(image), strength=strength)
