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
    "--strength",
    type=float,
    help="How much is made anew, above 0 to 1. Default: 0.8, of Kandinsky 0.3.",
)
def command(image: Path, strength: float | None, **options: Any) -> None:
    """Change a picture as a prompt says with a diffusion BUNDLE."""
    given = {} if strength is None else {"strength": strength}
    generate(options, "image_to_image", image=read_source(image), **given)
