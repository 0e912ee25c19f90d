"""The networks of Kandinsky 2.2 as modules of plain tensors, with their samples.

Shapes: B pictures (twice as many where guidance runs both halves at once), L tokens of one
window, D numbers of an image embedding, h and w sides of the latents, ``k`` pixels for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pixelrt.export.diffusion.parts import BATCH, SIDES, SIZES
from pixelrt.export.part import Axis, Part, noise

LAST, EARLY = 999.0, 120.0


class Prior(nn.Module):
    """``embeds`` (B, D) with noise, ``timestep`` (B,), ``pooled`` (B, D), ``text`` (B, L, D) and
    ``mask`` (B, L), 1 for tokens and 0 for padding, to ``predicted`` (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embeds: Tensor, timestep: Tensor, pooled: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        predicted: Tensor = self.model(embeds, timestep, pooled, text, mask, return_dict=False)[0]
        return predicted


class ImageEncoder(nn.Module):
    """``pixels`` (B, 3, S, S), normalised as CLIP's are, to ``image_embeds`` (B, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        embeds: Tensor = self.model(pixel_values=pixels).image_embeds
        return embeds


class ImageUNet(nn.Module):
    """``latents`` (B, c, h, w), ``timestep`` (B,) and ``image_embeds`` (B, D) to ``noise``
    (B, 2*c, h, w): the noise, and of how much variance a step is, see ``schedulers.ddpm``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, timestep: Tensor, image_embeds: Tensor) -> Tensor:
        noise: Tensor = self.model(
            latents,
            timestep,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": image_embeds},
            return_dict=False,
        )[0]
        return noise


class MovqEncoder(nn.Module):
    """``pixels`` (B, 3, k*h, k*w) in [-1, 1] to ``latents`` (B, c, h, w), not quantised."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.last = model.quant_conv

    def forward(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self.last(self.encoder(pixels))
        return latents


class MovqDecoder(nn.Module):
    """``latents`` (B, c, h, w), which are not quantised, to ``pixels`` (B, 3, k*h, k*w), nominally
    [-1, 1]. Its norms see the latents too (Zheng et al. 2209.09002)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.first = model.post_quant_conv
        self.decoder = model.decoder
        self.spatial = model.config.norm_type == "spatial"

    def forward(self, latents: Tensor) -> Tensor:
        seen = latents if self.spatial else None
        pixels: Tensor = self.decoder(self.first(latents), seen)
        return pixels


def prior_part(model: Any) -> Part:
    """See ``Prior``. The samples end in padding, as prompts do."""
    config = model.config
    width, length = int(config.embedding_dim), int(config.num_embeddings)
    samples = []
    for batch in (2, 1):
        mask = torch.ones(batch, length)
        mask[:, length // 3 :] = 0
        samples.append(
            (
                noise((batch, width), 1),
                torch.full((batch,), LAST if batch == 2 else EARLY),
                noise((batch, width), 2),
                noise((batch, length, width), 3),
                mask,
            )
        )
    names = ("embeds", "timestep", "pooled", "text", "mask")
    return Part(
        "prior",
        Prior(model),
        {name: {0: BATCH} for name in names},
        {"predicted": {0: BATCH}},
        samples,
    )


def image_encoder_part(model: Any) -> Part:
    side = int(model.config.image_size)
    samples = [(noise((batch, 3, side, side), batch),) for batch in (2, 1)]
    return Part(
        "image_encoder",
        ImageEncoder(model),
        {"pixels": {0: BATCH}},
        {"image_embeds": {0: BATCH}},
        samples,
    )


def image_unet_part(model: Any) -> Part:
    """See ``ImageUNet``. Its blocks halve and double sides; none may be left over."""
    config = model.config
    step = halvings(config)
    latents = {0: BATCH, 2: Axis("h", step, low=2), 3: Axis("w", step, low=2)}
    samples = []
    for number, (height, width) in enumerate(((2, 3), (4, 2)), 1):
        channels = int(config.in_channels)
        samples.append(
            (
                noise((2, channels, step * height, step * width), number),
                torch.tensor([LAST, EARLY]),
                noise((2, int(config.encoder_hid_dim)), 10 + number),
            )
        )
    inputs = {"latents": latents, "timestep": {0: BATCH}, "image_embeds": {0: BATCH}}
    return Part("unet", ImageUNet(model), inputs, {"noise": latents}, samples)


def halvings(config: Any) -> int:
    """Sides of a UNet's latents are multiples of this."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def movq_parts(model: Any) -> tuple[Part, Part]:
    """Encoder and decoder."""
    config = model.config
    scale = halvings(config)
    channels = int(config.vq_embed_dim or config.latent_channels)
    pictures = [
        noise((2, int(config.in_channels), scale * height, scale * width), 5).clamp(-1, 1)
        for height, width in SIZES
    ]
    latents = [noise((2, channels, height, width), 6) for height, width in SIZES]
    pixels = {0: BATCH, 2: Axis("h", scale), 3: Axis("w", scale)}
    small = {0: BATCH, **SIDES}
    return (
        Part(
            "movq_encoder",
            MovqEncoder(model),
            {"pixels": pixels},
            {"latents": small},
            [(one,) for one in pictures],
        ),
        Part(
            "movq_decoder",
            MovqDecoder(model),
            {"latents": small},
            {"pixels": pixels},
            [(one,) for one in latents],
        ),
    )
