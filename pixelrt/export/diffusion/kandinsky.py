"""Kandinsky 2.2: which components it has in two folders or in one, and its settings."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelrt.errors import CheckpointError, UsageError
from pixelrt.export.assemble import Plan
from pixelrt.export.diffusion.kandinsky_parts import (
    halvings,
    image_encoder_part,
    image_unet_part,
    movq_parts,
    prior_part,
)
from pixelrt.export.diffusion.kandinsky_whole import kandinsky_ways
from pixelrt.export.diffusion.parts import text_part
from pixelrt.export.diffusion.source import DiffusersFolder, digest_of, open_diffusers
from pixelrt.export.diffusion.tokenizer import export_tokenizer
from pixelrt.export.diffusion.whole import examples
from pixelrt.export.part import Part
from pixelrt.export.weights import Weights, rounding
from pixelrt.manifest import Source
from pixelrt.pipeline_settings import ClipImageSettings, KandinskySettings, TextSettings
from pixelrt.spec import TokenizerSettings

FAMILY = "kandinsky-2.2"
DECODERS = ("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline")
PRIORS = ("KandinskyV22PriorPipeline", "KandinskyV22PriorEmb2EmbPipeline")
COMBINED = ("KandinskyV22CombinedPipeline", "KandinskyV22Img2ImgCombinedPipeline")
PIPELINES = (*DECODERS, *PRIORS, *COMBINED)
"""Pipelines of diffusers that this file exports, or tells what is missing."""

TOKENIZER = "tokenizer.json"
BICUBIC = 3
DEFAULT_SIDE = 512
"""Of pictures where the UNet names no size, as in diffusers."""
CLIP_SIDE = 224
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""OpenAI's, which configurations may leave out."""


@dataclass(frozen=True)
class PriorFolder:
    """The components of a prior, in a folder of their own or, prefixed, beside the decoder's."""

    folder: DiffusersFolder
    prefix: str

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        self._require(part)
        return self.folder.config(self.prefix + part, file)

    def load(self, part: str) -> Any:
        self._require(part)
        return self.folder.load(self.prefix + part)

    def tokenizer(self) -> Path:
        self._require("tokenizer")
        return self.folder.tokenizer(f"{self.prefix}tokenizer")

    def _require(self, part: str) -> None:
        if not self.folder.class_of(self.prefix + part):
            raise CheckpointError(
                f"{self.folder.name} has no {part}", expected=f"{self.prefix}{part}"
            )


def kandinsky_plan(
    decoder: DiffusersFolder, prior: str | Path | None, *, weights: Weights = "auto"
) -> Plan:
    """``prior``: folder or hub id of the prior, where ``decoder`` is no combined pipeline.
    ``weights``: what they are rounded to.

    Raises ``UsageError`` where it is missing or one too many, ``CheckpointError`` for what cannot
    be exported.
    """
    first = _prior_of(decoder, prior)
    unet, movq = decoder.config("unet"), decoder.config("movq")
    network = first.config("prior")
    _check_widths(first, network, unet, movq)
    data, tokenizer = _tokenizer(first, network)
    scale, levels = halvings(movq), halvings(unet)
    multiple = scale * max(scale, levels)
    settings = KandinskySettings(
        scheduler=decoder.config("scheduler", "scheduler_config.json"),
        prior_scheduler=first.config("scheduler", "scheduler_config.json"),
        text=TextSettings(
            network="text_encoder", asset=TOKENIZER, tokenizer=tokenizer, pooled=True
        ),
        image=_image_settings(first),
        embedding=int(network["embedding_dim"]),
        latent_channels=int(unet["in_channels"]),
        latent_scale=scale,
        sample_size=int(unet["sample_size"] or DEFAULT_SIDE // scale),
        multiple=multiple,
        minimum=max(multiple, 2 * scale * levels),
    )
    assets = {TOKENIZER: data}
    load, load_prior = rounding(decoder.load, weights), rounding(first.load, weights)

    def parts() -> Iterator[Part]:
        length = tokenizer.model_max_length
        encoder = load_prior("text_encoder")
        yield text_part("text_encoder", encoder, length=length, layer=0, normed=False, pooled=True)
        del encoder  # only one network is in memory
        yield _prior(load_prior("prior"), assets)
        yield _image_encoder(load_prior("image_encoder"), assets)
        yield image_unet_part(load("unet"))
        yield from movq_parts(load("movq"))

    folders = [decoder] if first.folder is decoder else [decoder, first.folder]
    source = Source(
        "checkpoint",
        " + ".join(Path(one.name).name for one in folders),
        digest_of([file for one in folders for file in one.weights()]),
    )
    choices = [one.choices() for one in folders]
    libraries = ("diffusers", "tokenizers")
    return Plan(
        FAMILY,
        decoder.pipeline,
        source,
        settings,
        assets,
        parts,
        libraries,
        choices,
        lambda: examples(kandinsky_ways(load, load_prior, first.tokenizer(), settings)),
        weights,
    )


def _prior_of(decoder: DiffusersFolder, prior: str | Path | None) -> PriorFolder:
    if decoder.pipeline in PRIORS:
        raise UsageError(
            f"{decoder.name} is a prior; it makes no pictures",
            found=decoder.pipeline,
            expected=" or ".join(DECODERS),
            hint="pixelrt export DECODER --prior PRIOR",
        )
    if decoder.pipeline in COMBINED:
        if prior is not None:
            raise UsageError(
                f"{decoder.name} has a prior of its own",
                found=decoder.pipeline,
                hint="leave out --prior",
            )
        return PriorFolder(decoder, "prior_")
    if prior is None:
        raise UsageError(
            f"{decoder.name} is the decoder of Kandinsky 2.2 alone",
            found="no prior",
            expected="a folder or a hub id of a prior, " + " or ".join(PRIORS),
            hint="pixelrt export DECODER --prior PRIOR",
        )
    folder = open_diffusers(prior)
    if folder.pipeline not in PRIORS:
        raise CheckpointError(
            f"{prior} is no prior of Kandinsky 2.2",
            found=folder.pipeline,
            expected=" or ".join(PRIORS),
        )
    return PriorFolder(folder, "")


def _check_widths(
    prior: PriorFolder, network: dict[str, Any], unet: dict[str, Any], movq: dict[str, Any]
) -> None:
    """All that one network gives to another."""
    text, image = prior.config("text_encoder"), prior.config("image_encoder")
    embedding = network["embedding_dim"]
    _equal("text_encoder/config.json: projection_dim", text["projection_dim"], embedding)
    _equal("text_encoder/config.json: hidden_size", text["hidden_size"], embedding)
    _equal("image_encoder/config.json: projection_dim", image["projection_dim"], embedding)
    _equal(
        "prior/config.json: clip_embed_dim", network.get("clip_embed_dim") or embedding, embedding
    )
    for name, wanted in (("encoder_hid_dim_type", "image_proj"), ("addition_embed_type", "image")):
        if unet.get(name) != wanted:
            raise CheckpointError(
                "this UNet is not that of Kandinsky 2.2",
                found=f"{name} {unet.get(name)!r} in unet/config.json",
                expected=repr(wanted),
                hint="pipelines with control pictures or for inpainting are not exported",
            )
    _equal("unet/config.json: encoder_hid_dim", unet["encoder_hid_dim"], embedding)
    channels = movq.get("vq_embed_dim") or movq["latent_channels"]
    _equal("unet/config.json: in_channels", unet["in_channels"], channels, "movq's latents")
    _equal("unet/config.json: out_channels", unet["out_channels"], 2 * channels, "twice as many")
    if movq.get("lookup_from_codebook"):
        raise CheckpointError(
            "this decoder looks latents up in a codebook, which is not exported",
            found="lookup_from_codebook in movq/config.json",
        )


def _equal(what: str, found: int, expected: int, why: str = "the prior's embedding_dim") -> None:
    if found != expected:
        raise CheckpointError(
            "the components of this pipeline do not belong together",
            found=f"{what} {found}",
            expected=f"{expected}, {why}",
        )


def _tokenizer(prior: PriorFolder, network: dict[str, Any]) -> tuple[bytes, TokenizerSettings]:
    config = prior.config("text_encoder")
    data, settings = export_tokenizer(
        prior.tokenizer(),
        max_positions=config.get("max_position_embeddings", 77),
        vocab_size=config.get("vocab_size"),
    )
    length, why = settings.model_max_length, "the prior's num_embeddings"
    _equal("tokenizer: model_max_length", length, network["num_embeddings"], why)
    return data, settings


def _image_settings(prior: PriorFolder) -> ClipImageSettings:
    """What CLIP's image processor does before the image encoder, where it is the usual."""
    config = prior.config("image_processor", "preprocessor_config.json")
    usual = {
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
        "resample": BICUBIC,
    }
    other = {key: config[key] for key, value in usual.items() if config.get(key, value) != value}
    size, crop = (_side(config.get(key, CLIP_SIDE)) for key in ("size", "crop_size"))
    taken = int(prior.config("image_encoder").get("image_size", CLIP_SIDE))
    if other or crop != taken or size is None or size < crop:
        raise CheckpointError(
            "the image processor does not do what CLIP's does for this image encoder",
            found=str(other or {key: config.get(key) for key in ("size", "crop_size")}),
            expected=f"a bicubic resize of the shortest edge, and a crop to {taken}",
        )
    mean, std = config.get("image_mean", CLIP_MEAN), config.get("image_std", CLIP_STD)
    return ClipImageSettings(size=size, crop=taken, mean=mean, std=std)


def _side(given: Any) -> int | None:
    """One number for both sides, as it is written in old and new files, or ``None``."""
    if isinstance(given, int):
        return given
    if isinstance(given, Mapping):
        values = {value for value in given.values() if value is not None}
        square = set(given) in ({"shortest_edge"}, {"height", "width"})
        if square and len(values) == 1:
            return int(values.pop())
    return None


def _prior(model: Any, assets: dict[str, bytes]) -> Part:
    assets["clip_mean.npy"] = _npy(model.clip_mean[0])
    assets["clip_std.npy"] = _npy(model.clip_std[0])
    return prior_part(model)


def _image_encoder(model: Any, assets: dict[str, bytes]) -> Part:
    """What a picture of zeros is embedded as stands for no negative prompt, as in diffusers."""
    part = image_encoder_part(model)
    with torch.inference_mode():
        zeros = part.module(torch.zeros_like(part.samples[0][0][:1]))
    assets["zero_image_embed.npy"] = _npy(zeros[0])
    return part


def _npy(values: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.detach().numpy().astype(np.float32), allow_pickle=False)
    return buffer.getvalue()
