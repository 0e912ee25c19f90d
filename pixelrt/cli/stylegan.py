"""``pixelrt stylegan``: pictures from seeds or latents."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from pixelrt.cli.generate import targets_of
from pixelrt.cli.terminal import note, tile_bar
from pixelrt.errors import OutputError, UsageError
from pixelrt.runtime.backends.select import PRECISIONS
from pixelrt.runtime.images.encode import output_format, write_picture
from pixelrt.runtime.images.read import Picture
from pixelrt.runtime.stylegan.latent_files import load_array, load_ws, save_ws
from pixelrt.runtime.stylegan.latents import Array, SeedKind, edit, mix, parse_layers
from pixelrt.runtime.stylegan.model import StyleGan2, load_stylegan


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5 only
    """``3``, ``0-9`` or ``1,5,8-11``."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        found: list[int] = []
        for part in str(value).split(","):
            first, dash, last = part.partition("-")
            if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
                self.fail(f"{value!r} is no list of numbers such as 1,5,8-11", param, ctx)
            found += range(int(first), int(last or first) + 1)
        return found


@click.command("stylegan")
@click.argument("bundle")
@click.option("--seeds", type=Numbers(), help="e.g. 0-9 or 3,17.")
@click.option(
    "--latents",
    type=click.Path(path_type=Path),
    help="File (.npy, .npz) with ws or w, in place of seeds.",
)
@click.option(
    "--seed-kind",
    type=click.Choice(["randomstate", "generator"]),
    default="randomstate",
    show_default=True,
    help="randomstate: what the seeds of published pictures mean.",
)
@click.option("--psi", default=1.0, show_default=True, help="Truncation: 0 is the average.")
@click.option("--cutoff", type=click.IntRange(0), help="Truncate only layers before this one.")
@click.option("--class", "label", type=click.IntRange(0), help="Of networks with classes.")
@click.option("--mix-seed", type=click.IntRange(0), help="Take --mix-layers from this seed.")
@click.option("--mix-layers", default="0-6", show_default=True)
@click.option(
    "--direction", type=click.Path(path_type=Path), help="File (.npy, .npz) to edit along."
)
@click.option("--strength", "strengths", multiple=True, type=float, help="May be repeated.")
@click.option("--edit-layers", help="Edit these layers only, e.g. 0-3.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Picture to write; of several, NAME-1, NAME-2 ...",
)
@click.option("--save-latents", type=click.Path(path_type=Path), help="Write the ws too.")
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
def command(
    bundle: str,
    seeds: list[int] | None,
    latents: Path | None,
    seed_kind: SeedKind,
    psi: float,
    cutoff: int | None,
    label: int | None,
    mix_seed: int | None,
    mix_layers: str,
    direction: Path | None,
    strengths: tuple[float, ...],
    edit_layers: str | None,
    output: Path,
    save_latents: Path | None,
    backend: str,
    precision: str,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make pictures with a StyleGAN2 BUNDLE.

    Finding the latents of a given picture (projection) is training, and is not here.
    """
    if (seeds is None) == (latents is None):
        raise UsageError("give --seeds or --latents, one of them")
    output_format(output)
    with load_stylegan(bundle, backend=backend, precision=precision) as model:
        labels = () if label is None else (label,)
        if latents is not None:
            ws = load_ws(latents, model.settings.num_ws, model.settings.w_dim)
        else:
            assert seeds is not None
            ws = model.latents(seeds, psi=psi, cutoff=cutoff, labels=labels, kind=seed_kind)
        if mix_seed is not None:
            other = model.latents([mix_seed], psi=psi, cutoff=cutoff, labels=labels, kind=seed_kind)
            ws = mix(ws, other, parse_layers(mix_layers, model.settings.num_ws))
        if direction is not None:
            ws = _edited(model, ws, direction, strengths, edit_layers)
        targets = targets_of(output, len(ws))
        for target in targets:
            if target.exists() and not overwrite:
                raise OutputError(f"{target} exists", hint="pass --overwrite to replace it")
        if save_latents is not None:
            save_ws(save_latents, ws)
        with tile_bar("making", enabled=not quiet, counts="pictures") as bar:
            for number, target in enumerate(targets):
                (image,) = model.images(ws[number : number + 1])
                _write(target, image, overwrite=overwrite)
                if bar:
                    bar(number + 1, len(targets))
        if not quiet:
            for name, info in model.networks.used.items():
                note(f"{name:12}  {info}")


def _edited(
    model: StyleGan2, ws: Array, direction: Path, strengths: tuple[float, ...], layers: str | None
) -> Array:
    if not strengths:
        raise UsageError("--direction needs --strength")
    rows = None if layers is None else parse_layers(layers, model.settings.num_ws)
    given = load_array(direction)
    each = [edit(one[None], given, np.array(strengths, np.float32), rows) for one in ws]
    return np.concatenate(each)


def _write(target: Path, image: NDArray[np.uint8], *, overwrite: bool) -> None:
    write_picture(target, Picture(image), overwrite=overwrite)
    click.echo(f"{target}  {image.shape[1]}x{image.shape[0]}")
