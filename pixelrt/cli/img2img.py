"""``pixelrt img2img``: pictures from a prompt and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pixelrt.cli.generate import common_options, generate, read_source


@click.command("img2img")
@common_options
@click.option(
    "-i",
    "--image",
    required=True,
    type=click.Path(path_type=Path),
    help="The picture, or latents (.npy) of another pipeline.",
)
@click.option(
    "--strength", default=0.8, show_default=True, help="How much is made anew, above 0 to 1."
)
def command(image: Path, strength: float, **options: Any) -> None:
    """Change a picture as a prompt says with a diffusion BUNDLE."""
    source = read_source(image)
    generate(
        options,
        lambda pipeline, call: pipeline.image_to_image(image=source, strength=strength, **call),
    )
