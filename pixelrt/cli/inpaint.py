"""``pixelrt inpaint``: a part of a picture made anew."""

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


@click.command("inpaint")
@common_options
@image_option("The picture.")
@click.option(
    "-m",
    "--mask",
    required=True,
    type=click.Path(path_type=Path),
    help="White where the picture is made anew.",
)
@strength_option("diffusers'; 1, of SDXL 0.9999")
def command(image: Path, mask: Path, strength: float | None, **options: Any) -> None:
    """Make a part of a picture anew with a diffusion BUNDLE."""
    picture, where = read_source(image), read_source(mask)
    generate(options, "inpaint", image=picture, mask_image=where, strength=strength)
