"""``pixelrt inpaint``: a part of a picture made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pixelrt.cli.generate import common_options, generate, read_source


@click.command("inpaint")
@common_options
@click.option("-i", "--image", required=True, type=click.Path(path_type=Path), help="The picture.")
@click.option(
    "-m",
    "--mask",
    required=True,
    type=click.Path(path_type=Path),
    help="White where the picture is made anew.",
)
@click.option(
    "--strength", default=1.0, show_default=True, help="How much is made anew, above 0 to 1."
)
def command(image: Path, mask: Path, strength: float, **options: Any) -> None:
    """Make a part of a picture anew with a diffusion BUNDLE."""
    picture, where = read_source(image), read_source(mask)
    generate(options, "inpaint", image=picture, mask_image=where, strength=strength)
