"""Settings of pipeline bundles: what export writes and the runtime reads. No logic."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pixelrt.spec import TokenizerSettings

TimeIds = Literal["", "base", "refiner"]


class TextSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A text encoder: ``network`` takes ``ids`` int64 (B, L).

    ``asset``: its ``tokenizer.json``. ``pooled``: it gives an output ``pooled`` (B, P) beside
    ``hidden`` (B, L, C).
    """

    network: str
    asset: str
    tokenizer: TokenizerSettings
    pooled: bool = False


class DiffusionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Latent diffusion with a UNet and a VAE.

    ``scheduler``: diffusers' configuration of one. ``latent_scale``: pixels for each latent,
    on both axes. ``scaling``: latents are the VAE's times this. ``multiple``: sides of
    pictures are multiples of this many pixels, and at least ``minimum``. ``unet_channels``: 4
    for plain latents, 9 with mask and masked picture. ``time_ids``: what the UNet is told of
    sizes, ``base`` six numbers, ``refiner`` five. ``guidance_width``: length of the embedding
    of the guidance scale, 0 for none. ``controls``: how many ControlNets the UNet's graph
    holds. ``empty_is_zero``: no negative prompt means zeros. ``safety_checker``: whether the
    original pipeline had one; it is never part of a bundle. Of the x4 upscaler:
    ``low_scheduler``, diffusers' configuration of what adds noise to the small picture, and
    ``max_noise_level``. Of upscalers ``multiple`` and ``minimum`` are those of the small picture.
    """

    scheduler: dict[str, Any]
    latent_channels: int
    latent_scale: int
    scaling: float
    sample_size: int
    multiple: int
    minimum: int
    unet_channels: int
    text: list[TextSettings]
    controls: int = 0
    time_ids: TimeIds = ""
    guidance_width: int = 0
    empty_is_zero: bool = False
    safety_checker: bool = False
    low_scheduler: dict[str, Any] = {}
    max_noise_level: int = 0


class ClipImageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A picture for CLIP's image encoder: its shorter side is brought to ``size`` (bicubic), the
    middle ``crop`` x ``crop`` is taken, and values of [0, 1] are normalised, per channel."""

    size: int
    crop: int
    mean: list[float]
    std: list[float]


class KandinskySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Kandinsky 2.2: a prior makes an image embedding (``embedding`` numbers) of a prompt, a UNet
    latents of that, MoVQ pictures.

    ``scheduler``, ``prior_scheduler``: diffusers' configurations. ``text``: the prior's encoder.
    ``image``: for the image encoder. ``latent_scale``, ``multiple``, ``minimum``,
    ``sample_size``: see ``DiffusionSettings``; latents are MoVQ's as they are. Assets:
    ``clip_mean.npy`` and ``clip_std.npy``, float32 (embedding,): embeddings are the prior's
    latents times the second plus the first; ``zero_image_embed.npy``: what stands for no
    negative prompt.
    """

    scheduler: dict[str, Any]
    prior_scheduler: dict[str, Any]
    text: TextSettings
    image: ClipImageSettings
    embedding: int
    latent_channels: int
    latent_scale: int
    sample_size: int
    multiple: int
    minimum: int


class StyleGan2Settings(msgspec.Struct, frozen=True, kw_only=True):
    """StyleGAN2: ``mapping`` takes ``z`` (N, z_dim) and, where there are labels, ``label`` (N,
    label_dim), one-hot; ``synthesis`` takes ``ws`` (N, num_ws, w_dim). The centre of truncation is
    the asset ``w_avg.npy``, float32 (w_dim,); ``sampled``: it was estimated at export.
    ``config``: the architecture, for people.
    """

    z_dim: int
    w_dim: int
    num_ws: int
    label_dim: int
    resolution: int
    sampled: bool
    config: dict[str, Any]
