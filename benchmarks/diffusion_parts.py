"""Networks of a diffusion pipeline at full size, diffusers' own and pixelrt's: what
``benchmarks.diffusion`` puts in turn, and what it holds the outputs to."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import SEED, Network
from benchmarks.contenders import Contender, Job, Opened
from benchmarks.isolated import run_isolated
from benchmarks.openvino_operations import counted_rows
from benchmarks.openvino_parts import sources_of
from benchmarks.pairs import Jobs
from benchmarks.records import OpenVinoRow
from pixelrt.fidelity import compare
from pixelrt.geometry import Size
from pixelrt.pipeline_bundle import PipelineBundle, open_pipeline
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.backends.openvino import openvino_here
from pixelrt.runtime.backends.select import Choice, open_session
from pixelrt.runtime.diffusion.load import load_pipeline
from pixelrt.runtime.diffusion.stable_diffusion import StableDiffusion
from pixelrt.runtime.machine import usable_cpus

Feeds = dict[str, NDArray[Any]]
WEIGHTS: Literal["float16"] = "float16"
"""As in most published checkpoints; PyTorch computes with the same values, in float32."""
TINY: Mapping[str, Any] = {
    "like": "stable-diffusion-1.5",
    "unet": {
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "sample_size": 8,
    },
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "text_encoder": {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 32,
    },
}
"""For trying the script out."""


@dataclass(frozen=True)
class PartCase:
    """A network of the pipeline of ``config`` on so many pictures, with latents of the side that
    it was trained on. ``component``: diffusers' name of what it is a part of."""

    title: str
    network: str
    component: str
    batch: int

    def feeds(self, settings: DiffusionSettings, text: int) -> Feeds:
        rng = np.random.default_rng(SEED)

        def normal(*shape: int) -> NDArray[np.float32]:
            return rng.standard_normal(shape, np.float32)

        side = settings.sample_size
        feeds: Feeds = {"latents": normal(self.batch, settings.latent_channels, side, side)}
        if self.network == "unet":
            feeds["timestep"] = np.full(self.batch, 481.0, np.float32)
            feeds["text"] = normal(self.batch, 77, text)
        return feeds


CASES = (
    PartCase("UNet step, batch 2", "unet", "unet", 2),
    PartCase("VAE decode", "vae_decoder", "vae", 1),
)


# --- contenders -----------------------------------------------------------------------


def open_diffusers(job: Job, *, precision: str) -> Opened:
    """The network of diffusers with the weights of the bundle."""
    import torch

    torch.set_num_threads(job.threads)
    run_model = diffusers_network(job.network, torch.channels_last)
    feeds = [torch.from_numpy(value) for value in load_feeds(job.image).values()]

    def run() -> Any:
        low = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            return run_model(*feeds)

    note = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    return Opened(run, lambda out: out.float().numpy(), precision, note)


def diffusers_network(network: Network, layout: Any) -> Callable[..., Any]:
    from pixelrt.export.diffusion.untrained import open_untrained
    from pixelrt.export.weights import round_weights

    case = case_of(network.name)
    assert network.config is not None
    with tempfile.TemporaryDirectory() as folder:
        model = open_untrained(network.config, SEED, (), Path(folder)).load(case.component)
    round_weights(model, WEIGHTS, case.component)
    model = model.to(memory_format=layout)
    return calls(model, case.network)


def calls(model: Any, network: str) -> Callable[..., Any]:
    """``model`` as diffusers' pipelines call it, on tensors in the order of ``feeds``."""
    if network == "unet":
        return lambda latents, timestep, text: model(
            latents, timestep, encoder_hidden_states=text, return_dict=False
        )[0]
    return lambda latents: model.decode(latents, return_dict=False)[0]


def open_pixelrt(job: Job, *, precision: str) -> Opened:
    """The session that a pipeline would open."""
    network = open_pipeline(job.bundle).network(job.network.name)
    session = open_session(network, "network", Choice(precision=precision)).session
    feeds, name = load_feeds(job.image), session.outputs[0].name
    info = session.info
    return Opened(lambda: session.infer(feeds)[name], np.copy, info.precision, str(info))


_TORCH = "eval, inference_mode, channels_last, all usable processors"
PEERS = (
    Contender(
        "diffusers eager float32", _TORCH, partial(open_diffusers, precision="float32"), whole=True
    ),
    Contender(
        "diffusers eager bfloat16",
        f"{_TORCH}, bfloat16 autocast",
        partial(open_diffusers, precision="bfloat16"),
        whole=True,
    ),
)
OURS = Contender(
    "pixelrt",
    "the session of the pipeline; backend and precision chosen by itself",
    partial(open_pixelrt, precision="auto"),
    whole=True,
)


# --- jobs -----------------------------------------------------------------------------


def export(config: Mapping[str, Any], path: Path) -> None:
    from pixelrt.export.diffusion.pipeline import export_untrained

    path.parent.mkdir(parents=True, exist_ok=True)
    export_untrained(config, SEED, path, whole=False, weights=WEIGHTS)


def make_jobs(case: PartCase, config: Mapping[str, Any], root: Path, folder: Path) -> Jobs:
    """Feeds in a file, and what the float32 route gives for them."""
    bundle = open_pipeline(root)
    settings = bundle.settings(DiffusionSettings)
    inputs = bundle.network(case.network).component.graphs[0].inputs
    width = next((spec.shape[-1] for spec in inputs if spec.name == "text"), 0)
    feeds = case.feeds(settings, int(width))
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    run_isolated(float32_route, root, case.network, folder)
    network = Network(case.network, "diffusion", config)
    job = Job(network, root, folder / "feeds.npz", usable_cpus())
    side = settings.sample_size * settings.latent_scale
    return Jobs(bundle, job, job, 1, Size(side, side), folder, tensor_fidelity)


def load_feeds(path: Path) -> Feeds:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def case_of(network: str) -> PartCase:
    return next(case for case in CASES if case.network == network)


# --- done in processes of their own ---------------------------------------------------

REFERENCE = "reference.npy"


def float32_route(root: Path, name: str, folder: Path) -> None:
    """The output of onnxruntime's float32 kernels, itself verified against PyTorch."""
    network = open_pipeline(root).network(name)
    with open_session(network, "network", Choice("onnxruntime-cpu")).session as session:
        (output,) = session.infer(load_feeds(folder / "feeds.npz")).values()
    np.save(folder / REFERENCE, output)


def tensor_fidelity(
    root: Path, feeds: Path, output: Path, pad: str = "grid"
) -> tuple[float | None, str]:
    """PSNR in units of the largest value that is expected."""
    del root, pad
    expected, found = np.load(feeds.with_name(REFERENCE)), np.load(output)
    peak = float(np.abs(expected).max())
    result = compare(expected / peak, found / peak)
    return result.psnr, "all values against onnxruntime in float32, of the largest one"


def multiply_adds(network: Network, feeds: Path) -> int:
    """Of diffusers' network for the feeds, as PyTorch counts them; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pixelrt.export.diffusion.source import build
    from pixelrt.export.diffusion.untrained import open_untrained

    case = case_of(network.name)
    assert network.config is not None
    with tempfile.TemporaryDirectory() as folder:
        opened = open_untrained(network.config, SEED, (), Path(folder))
    model = build(opened.class_of(case.component), opened.configs[case.component], meta=True)
    values = [torch.from_numpy(value).to("meta") for value in load_feeds(feeds).values()]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        calls(model, case.network)(*values)
    return counter.get_total_flops() // 2


def operations_of(root: Path, name: str, feeds: Path) -> list[OpenVinoRow]:
    """In the precision that the reference outputs allow; see ``counted_rows``."""
    network = open_pipeline(root).network(name)
    with open_session(network, "network", Choice(openvino_here().name)).session as session:
        arithmetic = session.info.arithmetic
    source = sources_of(network, "network")[arithmetic]
    return list(counted_rows(source, load_feeds(feeds), 1))


STEPS = 50


def overhead_rows(root: Path, step: float) -> list[OpenVinoRow]:
    """Seconds per step of a text-to-image run in which networks answer at once; everything else,
    the tokenizer included, is done. ``step``: seconds of the UNet."""
    return list(_overheads(root, step))


def _overheads(root: Path, step: float) -> Iterator[OpenVinoRow]:
    bundle = open_pipeline(root)
    with (
        load_pipeline(root) as pipeline,
        patch.object(pipeline.networks, "run", _at_once(bundle)),
    ):
        assert isinstance(pipeline, StableDiffusion)
        for scheduler in (None, "euler", "dpm++", "unipc"):
            options: dict[str, Any] = {
                "num_inference_steps": STEPS,
                "scheduler": scheduler,
                "output_type": "latent",
                "seed": 0,
            }
            times = []
            for _ in range(5):
                start = time.perf_counter()
                pipeline.text_to_image("a photo of a house", **options)
                times.append((time.perf_counter() - start) / STEPS)
            seconds = float(np.median(times))
            facts = {"seconds": seconds, "share": seconds / step}
            yield OpenVinoRow("overhead", scheduler or "the bundle's scheduler", facts)


def _at_once(bundle: PipelineBundle) -> Callable[[str, Mapping[str, Any]], Feeds]:
    def run(name: str, feeds: Mapping[str, Any]) -> Feeds:
        if name == "unet":
            return {"noise": feeds["latents"] * np.float32(0.5)}
        graph = bundle.network(name).component.graphs[0]
        made = {}
        for spec in graph.outputs:
            sides = [side if isinstance(side, int) else len(feeds["ids"]) for side in spec.shape]
            made[spec.name] = np.ones(sides, np.float32)
        return made

    return run
