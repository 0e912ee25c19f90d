"""What each component of a diffusion pipeline takes and gives, with its samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pixelrt.export.diffusion.modules import Decoder, Encoder, KResample, TextEncoder, UNet
from pixelrt.export.diffusion.vae_segments import vae_segments
from pixelrt.export.part import Axis, Part, noise

BATCH, TOKENS = Axis("B", high=63), Axis("T")
"""Of 64 and more, PyTorch enlarges in another way, which is another graph."""
HEIGHT, WIDTH = Axis("h"), Axis("w")
SIDES = {2: HEIGHT, 3: WIDTH}
SIZES = ((8, 12), (11, 8))
"""Sides of the latents of the samples; one side halves to an odd number."""
CONTEXT = 77


def text_part(
    name: str, model: Any, *, length: int, layer: int, normed: bool, pooled: bool
) -> Part:
    """See ``TextEncoder``. The samples end in padding, as prompts do."""
    config = model.config
    words = int(config.vocab_size)
    generator = torch.Generator().manual_seed(7)
    samples = []
    for batch in (2, 1):
        ids = torch.randint(0, words - 2, (batch, length), generator=generator)
        ids[:, 0], ids[:, length // 3 :] = words - 2, words - 1
        samples.append((ids,))
    return Part(
        name,
        TextEncoder(model, layer=layer, normed=normed, pooled=pooled),
        {"ids": {0: BATCH}},
        {"hidden": {0: BATCH}, "pooled": {0: BATCH}} if pooled else {"hidden": {0: BATCH}},
        samples,
    )


def unet_part(model: Any, controls: list[Any], scale: int, time_ids: int = 0) -> Part:
    """See ``UNet``. ``scale``: pixels for each latent; ``time_ids``: how many there are."""
    config = model.config
    extra = extra_inputs(config, len(controls))
    low = least_side(len(config.block_out_channels))
    height, width = Axis("h", low=low), Axis("w", low=low)
    latents = {0: BATCH, 2: height, 3: width}
    least = max(low, SIZES[0][0])
    sizes = ((least, least + 4), (least + 3, least))
    samples = [
        _unet_sample(config, extra, sides, scale, time_ids, (number + 1) * CONTEXT)
        for number, sides in enumerate(sizes)
    ]
    inputs: dict[str, dict[int, Axis]] = {
        "latents": latents,
        "timestep": {0: BATCH},
        "text": {0: BATCH, 1: TOKENS},
    }
    for name in extra:
        if name.startswith("control"):
            inputs[name] = {0: BATCH, 2: replace(height, step=scale), 3: replace(width, step=scale)}
        else:
            inputs[name] = {} if name.startswith("scale") else {0: BATCH}
    return Part("unet", UNet(model, controls, extra), inputs, {"noise": latents}, samples)


def k_unet_part(model: Any) -> Part:
    """See ``UNet``, of k-diffusion's blocks. Sides halve evenly at every level, and are 2 at least
    at the last one, which is as much as reflection needs."""
    for block in (*model.down_blocks, *model.up_blocks):
        for name, up in (("downsamplers", False), ("upsamplers", True)):
            for number, one in enumerate(getattr(block, name, None) or ()):
                getattr(block, name)[number] = KResample(one, up=up)
    config = model.config
    halves = 2 ** (len(config.block_out_channels) - 1)
    latents = {0: BATCH, 2: Axis("h", halves, low=2), 3: Axis("w", halves, low=2)}
    extra = extra_inputs(config, 0)
    samples = []
    for number, (height, width) in enumerate(((2, 3), (4, 2))):
        sides = halves * height, halves * width
        first, _, *rest = _unet_sample(config, extra, sides, 1, 0, (number + 1) * CONTEXT)
        # a fourth of the logarithm of sigmas 14.6 and 0.03
        samples.append((first, torch.tensor([0.67, -0.88]), *rest))
    inputs: dict[str, dict[int, Axis]] = {
        "latents": latents,
        "timestep": {0: BATCH},
        "text": {0: BATCH, 1: TOKENS},
        **{name: {0: BATCH} for name in extra},
    }
    return Part("unet", UNet(model, [], extra), inputs, {"noise": latents}, samples)


def least_side(levels: int) -> int:
    """Of the latents of a UNet with so many levels: at the last one a side is 2 at least. A side
    of 1 would be spread over its neighbours, which is another graph."""
    return int(2 ** (levels - 1)) + 1


def extra_inputs(config: Any, controls: int) -> list[str]:
    """Names of the inputs beside latents, timestep and text."""
    names = []
    if config.addition_embed_type == "text_time":
        names += ["pooled", "time_ids"]
    if config.time_cond_proj_dim:
        names.append("guidance")
    if config.num_class_embeds:
        names.append("level")
    for number in range(controls):
        names += [f"control_{number}", f"scale_{number}"]
    return names


def _unet_sample(
    config: Any, extra: list[str], sides: tuple[int, int], scale: int, count: int, tokens: int
) -> tuple[torch.Tensor, ...]:
    batch = 2
    height, width = sides
    made = {
        "pooled": lambda: noise((batch, _pooled_width(config, count)), 3),
        "time_ids": lambda: torch.tensor([[512.0, 640, 0, 32, 512, 512]])[:, :count].repeat(2, 1),
        "guidance": lambda: noise((batch, int(config.time_cond_proj_dim)), 4),
        "level": lambda: torch.tensor([20, 250]),
    }
    values = [
        noise((batch, int(config.in_channels), height, width), 1),
        torch.tensor([981.0, 41.0]),
        noise((batch, tokens, _text_width(config)), 2),
    ]
    for name in extra:
        if name in made:
            values.append(made[name]())
        elif name.startswith("control"):
            values.append(noise((batch, 3, scale * height, scale * width), 5).sigmoid())
        else:
            values.append(torch.tensor([0.75]))
    return tuple(values)


def _pooled_width(config: Any, count: int) -> int:
    width = int(config.projection_class_embeddings_input_dim)
    return width - count * int(config.addition_time_embed_dim)


def _text_width(config: Any) -> int:
    width = config.cross_attention_dim
    return int(width if isinstance(width, int) else width[0])


def vae_parts(model: Any, scale: int) -> tuple[Part, Part]:
    """Encoder and decoder."""
    channels = int(model.config.latent_channels)
    pictures = [
        noise((2, int(model.config.in_channels), scale * height, scale * width), 5).clamp(-1, 1)
        for height, width in SIZES
    ]
    latents = [noise((2, channels, height, width), 6) for height, width in SIZES]
    pixels = {0: BATCH, 2: Axis("h", scale), 3: Axis("w", scale)}
    small = {0: BATCH, **SIDES}
    encoder, decoder = Encoder(model), Decoder(model)
    pieces = vae_segments(model)
    return (
        Part(
            "vae_encoder",
            encoder,
            {"pixels": pixels},
            {"moments": small},
            _each(pictures),
            segments=pieces[0],
        ),
        Part(
            "vae_decoder",
            decoder,
            {"latents": small},
            {"pixels": pixels},
            _each(latents),
            segments=pieces[1],
        ),
    )


def _each(values: list[torch.Tensor]) -> list[tuple[torch.Tensor]]:
    return [(value,) for value in values]
