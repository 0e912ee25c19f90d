"""What ``txt2img``, ``img2img`` and ``inpaint`` share: options, progress, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from pixelrt.cli.inspect import RUN_BY
from pixelrt.cli.options import ByteCount, PixelSize, Tile
from pixelrt.cli.terminal import note, stage_bar
from pixelrt.errors import InputError, OutputError, UsageError
from pixelrt.files import atomic_write
from pixelrt.runtime.backends.select import PRECISIONS
from pixelrt.runtime.diffusion.call import Generated, StepInfo
from pixelrt.runtime.diffusion.load import Pipeline, load_pipeline
from pixelrt.runtime.diffusion.schedulers import NAMES
from pixelrt.runtime.diffusion.upscalers import Upscaler
from pixelrt.runtime.images.encode import output_format, write_picture
from pixelrt.runtime.images.metadata import Metadata
from pixelrt.runtime.images.read import Picture, read_picture
from pixelrt.runtime.networks import Networks

LATENTS = ".npy"
STEPS = "denoising"
IN_TILES = {"vae_encoder": "encoding in tiles", "vae_decoder": "decoding in tiles"}
Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: tuple[Any, ...] = (
    click.argument("bundle"),
    click.option("-p", "--prompt", required=True, help="(word:1.3) weighs, BREAK begins anew."),
    click.option("-n", "--negative-prompt", help="What the picture is to keep away from."),
    click.option(
        "-o",
        "--output",
        required=True,
        type=click.Path(path_type=Path),
        help="Picture to write, or .npy for latents; of several, NAME-1, NAME-2 ...",
    ),
    click.option(
        "--steps",
        type=int,
        help="Of the whole schedule. Default: diffusers'; 50, of latent consistency models 4 "
        "(inpaint 50), of Kandinsky 100.",
    ),
    click.option(
        "--guidance-scale",
        type=float,
        help="1 and less: none. Default: diffusers'; 7.5, of SDXL 5 (inpaint 7.5), of latent "
        "consistency models 8.5, of Kandinsky 4.",
    ),
    click.option("--scheduler", type=click.Choice(sorted(NAMES)), help="Default: the bundle's."),
    click.option("--seed", type=click.IntRange(0), help="Default: a random one, which is told."),
    click.option("--count", type=click.IntRange(1), default=1, show_default=True),
    click.option("--size", type=PixelSize(), help="e.g. 512 or 768x512."),
    click.option(
        "--control",
        "controls",
        multiple=True,
        type=click.Path(path_type=Path),
        help="A picture for each ControlNet of the bundle, in their order.",
    ),
    click.option("--control-scale", "control_scales", multiple=True, type=float),
    click.option("--denoising-start", type=float, help="Share that another pipeline did."),
    click.option("--denoising-end", type=float, help="Share after which to stop."),
    click.option("--prior-steps", type=int, help="Of Kandinsky's prior. Default: 25."),
    click.option("--prior-guidance-scale", type=float, help="Of Kandinsky's prior. Default: 4."),
    click.option("--backend", default="auto", show_default=True),
    click.option("--precision", type=click.Choice(PRECISIONS), default="auto", show_default=True),
    click.option("--low-memory", is_flag=True, help="One network in memory at a time."),
    click.option(
        "--vae-tile",
        type=Tile(),
        default="auto",
        show_default=True,
        help="Run the VAE in exact tiles where it does not fit; or always, N pixels a side.",
    ),
    click.option(
        "--max-memory",
        type=ByteCount(),
        help="For a run of the VAE; default: half of what is free, of a GPU's nine tenths.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace outputs that exist."),
    click.option("-q", "--quiet", is_flag=True, help="Errors only."),
)


def common_options(command: Command) -> Command:
    """The options of all three verbs, in the order of the help."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def image_option(help_text: str) -> Callable[[Command], Command]:
    return click.option(
        "-i", "--image", required=True, type=click.Path(path_type=Path), help=help_text
    )


def strength_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--strength",
        type=float,
        help=f"How much is made anew, above 0 to 1. Default: {default}.",
    )


def generate(options: dict[str, Any], mode: str, **inputs: Any) -> None:
    """``options`` as the command line gives them; ``mode``: a method of the pipeline, which is
    given ``inputs`` too, without those that are ``None``."""
    output, count = options["output"], options["count"]
    targets = targets_of(output, count)
    for target in targets:
        if target.exists() and not options["overwrite"]:
            raise OutputError(f"{target} exists", hint="pass --overwrite to replace it")
    latent = output.suffix == LATENTS
    if not latent:
        output_format(output)  # before minutes of work, not after
    with load_pipeline(
        options["bundle"],
        backend=options["backend"],
        precision=options["precision"],
        low_memory=options["low_memory"],
        vae_tile=options["vae_tile"],
        max_memory=options["max_memory"],
    ) as pipeline:
        method, defaults = _method(pipeline, mode)
        if options["steps"] is None:
            options["steps"] = defaults["num_inference_steps"]
        if options["guidance_scale"] is None:
            options["guidance_scale"] = defaults["guidance_scale"]
        with steps_bar(options["steps"], pipeline.networks, quiet=options["quiet"]) as step:
            call = call_options(options, latent=latent)
            given = {name: value for name, value in inputs.items() if value is not None}
            made: Generated = method(**call, **given, callback=step)
        if not options["quiet"]:
            tell_pipeline(pipeline, made)
    _write(made, targets, options)


def _method(pipeline: Pipeline, mode: str) -> tuple[Callable[..., Generated], dict[str, Any]]:
    """With what it takes where nothing is given."""
    found: Callable[..., Generated] | None = getattr(pipeline, mode, None)
    if found is None or isinstance(pipeline, Upscaler):
        manifest = pipeline.bundle.manifest
        raise UsageError(
            f"{manifest.name} has no mode {mode}",
            found=f"a bundle of family {manifest.family}",
            expected=RUN_BY[manifest.family],
        )
    return found, pipeline.defaults(mode)


def call_options(options: dict[str, Any], *, latent: bool) -> dict[str, Any]:
    """What a pipeline's call takes, without what is not given. Raises ``ImageError`` for a
    control picture."""
    size, scales = options["size"], options["control_scales"]
    call = {
        "prompt": options["prompt"],
        "negative_prompt": options["negative_prompt"],
        "num_inference_steps": options["steps"],
        "guidance_scale": options["guidance_scale"],
        "scheduler": options["scheduler"],
        "seed": options["seed"],
        "num_images_per_prompt": options["count"],
        "denoising_start": options["denoising_start"],
        "denoising_end": options["denoising_end"],
        "prior_num_inference_steps": options["prior_steps"],
        "prior_guidance_scale": options["prior_guidance_scale"],
        "output_type": "latent" if latent else "image",
    }
    call = {name: value for name, value in call.items() if value is not None}
    if options["controls"]:
        call["control_images"] = [read_picture(path).pixels for path in options["controls"]]
    if size is not None:
        call |= {"width": size[0], "height": size[1]}
    if scales:
        call["controlnet_conditioning_scale"] = scales[0] if len(scales) == 1 else list(scales)
    return call


def read_source(path: Path) -> Any:
    """A picture (H, W, 3) uint8, or the latents of a .npy file.

    Raises ``ImageError`` and ``InputError``.
    """
    if path.suffix != LATENTS:
        pixels = read_picture(path).pixels
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} holds no latents", found=str(exc)) from exc
    return found


def targets_of(output: Path, count: int) -> list[Path]:
    if count == 1 or output.suffix == LATENTS:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]


@contextmanager
def steps_bar(
    count: int | None, networks: Networks, *, quiet: bool
) -> Iterator[Callable[[StepInfo], None] | None]:
    """For one call: of its steps, and of the tiles of those of ``networks`` that are run in tiles.
    ``count``: of steps, where it is known before the first."""
    with stage_bar(STEPS, enabled=not quiet, counts="steps") as bar:
        if bar is None:
            yield None
            return
        if count:
            bar(STEPS, 0, count, "steps")
        networks.progress = lambda name, done, total: bar(
            IN_TILES.get(name, name), done, total, "tiles"
        )
        try:
            yield lambda info: bar(STEPS, info.number + 1, info.steps, "steps")
        finally:
            networks.progress = None


def tell_pipeline(pipeline: Pipeline, made: Generated) -> None:
    """What ran a call, with its notes and its seed."""
    for text in made.notes:
        note(f"{'note':12}  {text}")
    for name, info in pipeline.networks.used.items():
        note(f"{name:12}  {info}")
    note(f"{'seed':12}  {made.seed}")


def _write(made: Generated, targets: list[Path], options: dict[str, Any]) -> None:
    if made.images is None:
        with atomic_write(targets[0], overwrite=options["overwrite"]) as file:
            np.save(file, made.latents)
        click.echo(f"{targets[0]}  latents {made.latents.shape}")
        return
    kept = ("prompt", "negative_prompt", "steps", "guidance_scale", "scheduler", "count")
    said = {name: options[name] for name in kept} | {"seed": made.seed}
    for number, (image, target) in enumerate(zip(made.images, targets, strict=True)):
        text = json.dumps({**said, "number": number + 1, "bundle": str(options["bundle"])})
        holds_text = target.suffix.lower() == ".png"
        metadata = Metadata(text={"pixelrt": text}) if holds_text else Metadata()
        write_picture(target, Picture(image, metadata=metadata), overwrite=options["overwrite"])
        click.echo(f"{target}  {image.shape[1]}x{image.shape[0]}")
