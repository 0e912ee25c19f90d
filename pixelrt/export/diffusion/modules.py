"""Components of diffusion pipelines as modules of plain tensors.

Shapes: B pictures (twice as many where guidance runs both halves at once), T tokens, h and w
sides of the latents, C channels of the text, ``k`` pixels for each latent.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

NEVER_DIVIDES = 40
"""Number of halvings that no side has room for."""


class TextEncoder(nn.Module):
    """``ids`` int64 (B, T) to ``hidden`` (B, T, C), and ``pooled`` (B, P) where it is asked for,
    projected where the model projects it.

    ``layer``: 0 for the last one after its norm; else that hidden state from the end, normed
    where ``normed`` (what diffusers calls clip skip), as it is otherwise (SDXL).
    """

    def __init__(self, model: Any, *, layer: int, normed: bool, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.normed = normed
        self.pooled = pooled

    def forward(self, ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.model(input_ids=ids, output_hidden_states=self.layer != 0)
        hidden: Tensor = out.last_hidden_state
        if self.layer:
            hidden = out.hidden_states[-self.layer]
            if self.normed:
                hidden = _final_norm(self.model)(hidden)
        if not self.pooled:
            return hidden
        return hidden, out.text_embeds if "text_embeds" in out else out.pooler_output


def _final_norm(model: nn.Module) -> nn.Module:
    found: nn.Module = next(
        part for name, part in model.named_modules() if name.endswith("final_layer_norm")
    )
    return found


class UNet(nn.Module):
    """``latents`` (B, c, h, w), ``timestep`` (B,) and ``text`` (B, T, C) to ``noise``.

    Then, in this order and only where the network has them: ``pooled`` (B, P) and ``time_ids``
    (B, n); ``guidance`` (B, G); ``level`` int64 (B,), the noise in a low picture; for every
    ControlNet ``control_i`` (B, 3, k*h, k*w) and ``scale_i`` (1,).
    """

    def __init__(self, model: Any, controls: list[Any], extra: list[str]) -> None:
        super().__init__()
        # A side that does not halve evenly is brought back to its size on the way up. diffusers
        # looks at the sides to see whether it has to; a graph for all sizes always does it.
        model.num_upsamplers = NEVER_DIVIDES
        _enlarge_plainly(model)
        self.model = model
        self.controls = nn.ModuleList(controls)
        self.extra = extra

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, *more: Tensor) -> Tensor:
        given = dict(zip(self.extra, more, strict=True))
        added = None
        if "pooled" in given:
            added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]}
        down, mid = self._residuals(latents, timestep, text, given, added)
        noise: Tensor = self.model(
            latents,
            timestep,
            encoder_hidden_states=text,
            class_labels=given.get("level"),
            timestep_cond=given.get("guidance"),
            added_cond_kwargs=added,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        return noise

    def _residuals(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        given: dict[str, Tensor],
        added: dict[str, Tensor] | None,
    ) -> tuple[list[Tensor] | None, Tensor | None]:
        down: list[Tensor] | None = None
        mid: Tensor | None = None
        for number, net in enumerate(self.controls):
            parts, middle = net(
                latents,
                timestep,
                encoder_hidden_states=text,
                controlnet_cond=given[f"control_{number}"],
                added_cond_kwargs=added,
                return_dict=False,
            )
            scale = given[f"scale_{number}"]
            parts, middle = [part * scale for part in parts], middle * scale
            if down is None or mid is None:
                down, mid = parts, middle
            else:
                down = [a + b for a, b in zip(down, parts, strict=True)]
                mid = mid + middle
        return down, mid


class Enlarge(nn.Module):
    """diffusers' ``Upsample2D``, nearest: twice as large or as large as it is told, then its
    convolution. diffusers first looks at how large the result is, for kernels of PyTorch that fail
    on many pixels; from such looks ``torch.export`` makes conditions that it cannot trace, and
    starts again in its strict mode, which takes twice the time."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv = model.conv if model.use_conv else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        scale = 2.0 if size is None else None
        y: Tensor = self.conv(functional.interpolate(x, size, scale, "nearest"))
        return y


def _enlarge_plainly(model: nn.Module) -> None:
    from diffusers.models.upsampling import Upsample2D

    def plain(one: Any) -> bool:
        usual = one.name == "conv" and one.norm is None and not one.use_conv_transpose
        return bool(usual and one.interpolate)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Upsample2D and plain(child):
                setattr(module, name, Enlarge(child))


class KResample(nn.Module):
    """diffusers' ``KDownsample2D`` and ``KUpsample2D`` (k-diffusion): each channel by itself with
    one kernel. diffusers makes a kernel of all channels by all channels at every call, with zeros
    but for its diagonal."""

    kernel: Tensor

    def __init__(self, model: Any, *, up: bool) -> None:
        super().__init__()
        self.pad = model.pad
        self.up = up
        self.register_buffer("kernel", model.kernel)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        if not self.up:
            padded = functional.pad(x, (self.pad,) * 4, "reflect")
            return functional.conv2d(padded, kernel, stride=2, groups=channels)
        padded = functional.pad(x, ((self.pad + 1) // 2,) * 4, "reflect")
        return functional.conv_transpose2d(
            padded, kernel, stride=2, padding=2 * self.pad + 1, groups=channels
        )


class Encoder(nn.Module):
    """``pixels`` (B, 3, k*h, k*w) in [-1, 1] to ``moments`` (B, 2*c, h, w): mean and log variance,
    the latter not clamped."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.last = model.quant_conv if model.quant_conv is not None else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.last(self.encoder(pixels))
        return y


class Decoder(nn.Module):
    """``latents`` (B, c, h, w), not scaled, to ``pixels`` (B, 3, k*h, k*w), nominally [-1, 1]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.first = model.post_quant_conv if model.post_quant_conv is not None else nn.Identity()
        self.decoder = model.decoder

    def forward(self, latents: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.first(latents))
        return y
