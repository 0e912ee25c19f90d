"""The VAE of Stable Diffusion 1.5 at full size, random weights: memory, time and error in tiles.

    python -m benchmarks.vae_tiles export /tmp/vae.pixelrt
    python -m benchmarks.vae_tiles run /tmp/vae.pixelrt decode 1024 torch off 2GB 512

Every way (``torch``: diffusers' own, in float32; ``off``, a memory limit, a tile's side in pixels)
is run in a process of its own; the first is what the others are held against.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pixelrt.cli.options import ByteCount
from pixelrt.fidelity import compare

SCALE, LATENT_CHANNELS = 8, 4


def network() -> Any:
    """diffusers' VAE, with the same weights whenever it is called."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    make: Any = AutoencoderKL
    model = make(
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=LATENT_CHANNELS,
    )
    return model.eval().requires_grad_(False)


def export(path: Path) -> None:
    """Write a bundle of encoder and decoder alone."""
    from pixelrt.export.assemble import Plan, assemble
    from pixelrt.export.diffusion.parts import vae_parts
    from pixelrt.export.part import Part
    from pixelrt.manifest import Source

    def parts() -> Iterator[Part]:
        yield from vae_parts(network(), SCALE)

    source = Source("random", "seed 0", seed=0)
    plan = Plan("vae", "AutoencoderKL", source, msgspec.defstruct("None_", [])(), {}, parts)
    assemble(plan, path, overwrite=True, report=lambda part: print(part, flush=True))


def run_one(bundle: str, what: str, side: int, way: str, target: str) -> dict[str, Any]:
    """In this process: what it took, with the result in ``target``."""
    generator = np.random.default_rng(0)
    given = generator.standard_normal(
        (1, LATENT_CHANNELS, side // SCALE, side // SCALE), np.float32
    )
    if what == "encode":
        given = np.clip(generator.standard_normal((1, 3, side, side), np.float32), -1, 1)
    before = own_memory()
    with watched() as seen:
        run = open_torch(what) if way == "torch" else open_bundled(bundle, what, way)
        start = time.perf_counter()
        found, used = run(given)
    seconds = round(time.perf_counter() - start, 1)
    np.save(target, found)
    return {"way": way, "ran": used, "seconds": seconds, "peak": max(seen) - before}


Run = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], str]]
"""Latents or pixels to pixels or moments, and what ran it."""


def open_torch(what: str) -> Run:
    import torch

    from pixelrt.export.diffusion.parts import vae_parts

    encoder, decoder = vae_parts(network(), SCALE)
    module = (decoder if what == "decode" else encoder).module

    def run(given: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
        with torch.inference_mode():
            found: NDArray[np.float32] = module(torch.from_numpy(given)).numpy()
        return found, f"torch {torch.__version__}"

    return run


def open_bundled(bundle: str, what: str, way: str) -> Run:
    from pixelrt.pipeline_bundle import open_pipeline
    from pixelrt.runtime.backends.select import Choice
    from pixelrt.runtime.networks import Networks
    from pixelrt.runtime.planning import RunOptions

    options = RunOptions(tile="off")
    if way.isdigit():
        options = RunOptions(tile=int(way))
    elif way != "off":
        options = RunOptions(max_memory=ByteCount().convert(way, None, None))
    name, source = ("vae_decoder", "latents") if what == "decode" else ("vae_encoder", "pixels")
    networks = Networks(
        open_pipeline(Path(bundle)), Choice("onnxruntime-cpu"), verify=False, options=options
    )

    def run(given: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
        (found,) = networks.run(name, {source: given}).values()
        return found, ", ".join(networks.used)

    return run


def own_memory() -> int:
    """Bytes in memory now that no file backs: pages of files can be dropped, and are."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index("RssAnon:") + 1]) * 1024


@contextmanager
def watched() -> Iterator[list[int]]:
    """A list that ``own_memory`` is added to until the block ends."""
    seen = [own_memory()]
    done = Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(own_memory())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def run(bundle: str, what: str, side: str, *ways: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = None
        for way in ways:
            target = str(Path(folder) / "found.npy")
            command = [sys.executable, "-m", "benchmarks.vae_tiles", "one", bundle, what, side, way]
            done = subprocess.run([*command, target], stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout)
            found = np.load(target)
            wanted = found if wanted is None else wanted
            peak = float(np.abs(wanted).max())
            row["of the largest value"] = compare(wanted / peak, found / peak).max_abs
            row["peak"] = f"{row['peak'] / 2**20:.0f} MiB"
            print(what, side, row, flush=True)


def main(verb: str, *words: str) -> None:
    if verb == "export":
        export(Path(words[0]))
    elif verb == "one":
        bundle, what, side, way, target = words
        print(json.dumps(run_one(bundle, what, int(side), way, target)))
    else:
        run(*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
