"""``pixelrt txt2img``: pictures from a prompt."""

from __future__ import annotations

from typing import Any

import click

from pixelrt.cli.generate import common_options, generate


@click.command("txt2img")
@common_options
def command(**options: Any) -> None:
    """Make pictures from a prompt with a diffusion BUNDLE."""
    generate(options, "text_to_image")
