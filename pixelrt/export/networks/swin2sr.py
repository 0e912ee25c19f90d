"""Swin2SR (Conde et al. 2022, arXiv:2209.11345) in the form that is exported.

The same function as ``transformers.Swin2SRForImageSuperResolution``, from which it is
built, with everything that the window fixes computed once:

- the continuous position bias ``16 * sigmoid(MLP(table))``, the logit scales and the
  shift mask are constants;
- query, key and value are one product, and the 1x1 projection that ends a stage is
  multiplied into the convolution before it;
- tokens are a matrix ``(N*H*W, C)``. Their order changes, not their shape: one gather
  brings them into the window order of the next layer, with the indices of all orders
  computed once per image. A shift costs a gather, not a roll and two partitions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pixelrt.export.networks.swin2sr_heads import Maths, head_of, with_pointwise

if TYPE_CHECKING:
    from transformers import Swin2SRForImageSuperResolution

MASK = {"transformers": -200.0, "authors": -100.0}

Order = Literal["image", "window", "shifted"]
"""Row by row; window by window; window by window of the shifted image."""


class Orders:
    """The token orders of one batch of images, as gather indices.

    ``index(a, b)``: int64 ``(N*H*W,)``, so that ``tokens[index(a, b)]`` has the tokens
    that come in order ``a`` in order ``b``.
    """

    def __init__(
        self, size: tuple[int, int, int], window: int, shift: int, device: torch.device
    ) -> None:
        n, h, w = size
        self._known: dict[tuple[Order, Order], Tensor] = {}
        count = torch.arange(n * h * w, device=device)
        grid = count.view(n, h, w)
        split = (n, h // window, window, w // window, window)

        def by_window(image: Tensor) -> Tensor:
            return image.reshape(split).permute(0, 1, 3, 2, 4).reshape(-1)

        def by_row(windows: Tensor) -> Tensor:
            tiles = windows.view(n, h // window, w // window, window, window)
            return tiles.permute(0, 1, 3, 2, 4).reshape(n, h, w)

        rows = by_row(count)
        self._known["image", "window"] = by_window(grid)
        self._known["window", "image"] = rows.reshape(-1)
        if shift:
            self._known["image", "shifted"] = by_window(turned(grid, shift))
            self._known["shifted", "image"] = turned(rows, -shift).reshape(-1)

    def index(self, a: Order, b: Order) -> Tensor:
        if (a, b) not in self._known:  # through the image
            self._known[a, b] = torch.index_select(
                self._known[a, "image"], 0, self._known["image", b]
            )
        return self._known[a, b]


def turned(grid: Tensor, by: int) -> Tensor:
    """``torch.roll(grid, (-by, -by), (1, 2))``, whose own export is twice as long."""
    grid = torch.cat((grid[:, by:], grid[:, :by]), 1)
    return torch.cat((grid[:, :, by:], grid[:, :, :by]), 2)


def window_kinds(size: tuple[int, int, int], window: int, device: torch.device) -> Tensor:
    """int64 ``(N * windows,)``: 0 inner window, 1 last column, 2 last row, 3 corner."""
    n, h, w = size
    rows, columns = h // window, w // window
    last_row = (torch.arange(rows, device=device) == rows - 1).long() * 2
    last_column = (torch.arange(columns, device=device) == columns - 1).long()
    kinds = last_row[:, None] + last_column[None, :]
    return kinds[None].expand(n, rows, columns).reshape(-1)


def shift_masks(window: int, shift: int, value: float) -> Tensor:
    """float32 ``(4, 1, window**2, window**2)``: the mask of each kind of window.

    After the shift, a last window holds pixels of two opposite edges of the image; they
    must not see each other. ``value`` is added where they would.
    """
    far = (torch.arange(window) >= window - shift).long()
    near = torch.zeros_like(far)
    masks = []
    for row, column in ((near, near), (near, far), (far, near), (far, far)):
        region = (row[:, None] * 2 + column[None, :]).reshape(-1)
        masks.append((region[:, None] != region[None, :]).float() * value)
    return torch.stack(masks)[:, None]


class Attention(nn.Module):
    """Cosine attention in windows: ``(M, C)`` to ``(M, C)``, tokens in window order."""

    norm_factor: Tensor
    bias: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        own = source.self
        self.heads = int(own.num_attention_heads)
        self.head_size = int(own.attention_head_size)
        self.tokens = int(own.window_size[0] * own.window_size[1])
        self.qkv = joined_qkv(own.query, own.key, own.value)
        self.out = source.output.dense
        # Divides the norms of q instead of multiplying the scores: fewer numbers.
        inverse = torch.exp(-own.logit_scale.detach().double().clamp(max=math.log(1.0 / 0.01)))
        factor = torch.cat((inverse, torch.ones_like(inverse))).float()
        self.register_buffer("norm_factor", factor, persistent=False)
        self.register_buffer("bias", position_bias(own), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        heads, size = self.heads, self.head_size
        qkv = self.qkv(x).reshape(-1, self.tokens, 3 * heads, size).transpose(1, 2)
        qk, v = qkv.split((2 * heads, heads), dim=1)
        # F.normalize, with the bound of the norm that it has
        norm = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp(min=1e-12)
        q, k = (qk / (norm * self.norm_factor)).split((heads, heads), dim=1)
        scores = q @ k.transpose(-2, -1) + self.bias
        if mask is not None:
            scores = scores + mask
        context = torch.softmax(scores, dim=-1) @ v
        y: Tensor = self.out(context.transpose(1, 2).reshape(-1, heads * size))
        return y


def position_bias(own: Any) -> Tensor:
    """float32 ``(heads, window**2, window**2)``: the continuous relative position bias."""
    own = copy.deepcopy(own).double()  # rounded once, at the end
    with torch.no_grad():
        table = own.continuous_position_bias_mlp(own.relative_coords_table)
        table = table.view(-1, own.num_attention_heads)
        tokens = own.window_size[0] * own.window_size[1]
        bias = table[own.relative_position_index.view(-1)].view(tokens, tokens, -1)
        return (16 * torch.sigmoid(bias.permute(2, 0, 1))).float().contiguous()


def joined_qkv(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> nn.Linear:
    """One layer for the three; the key has no bias, so its part is zero."""
    parts = (query, key, value)
    none = torch.zeros(query.out_features)
    biases: list[Tensor] = [none if part.bias is None else part.bias for part in parts]
    joined = copy.deepcopy(query)
    joined.out_features *= len(parts)
    weights: list[Tensor] = [part.weight for part in parts]
    joined.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


class Layer(nn.Module):
    """Attention and MLP, each normalised after, not before, and beside an identity."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.order: Order = "shifted" if source.shift_size else "window"
        self.attention = Attention(source.attention)
        self.norm1 = source.layernorm_before
        self.up = source.intermediate.dense
        self.activation: Callable[[Tensor], Tensor] = source.intermediate.intermediate_act_fn
        self.down = source.output.dense
        self.norm2 = source.layernorm_after

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.norm1(self.attention(x, mask))
        y: Tensor = x + self.norm2(self.down(self.activation(self.up(x))))
        return y


class Stage(nn.Module):
    """Layers and a convolution beside an identity; ``(N*H*W, C)``, tokens row by row."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(layer) for layer in source.layers)
        self.conv = with_pointwise(source.conv, source.patch_embed.projection)

    def forward(
        self, x: Tensor, size: tuple[int, int, int], orders: Orders, mask: Tensor
    ) -> Tensor:
        y = x
        order: Order = "image"
        for layer in self.layers:
            assert isinstance(layer, Layer)
            if layer.order != order:
                y = torch.index_select(y, 0, orders.index(order, layer.order))
                order = layer.order
            y = layer(y, mask if layer.order == "shifted" else None)
        y = torch.index_select(y, 0, orders.index(order, "image"))
        return x + to_tokens(self.conv(to_image(y, size)))


def to_image(tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
    """``(N*H*W, C)``, row by row, to ``(N, C, H, W)``."""
    return tokens.reshape(*size, -1).permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """``(N, C, H, W)`` to ``(N*H*W, C)``, row by row."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


class Swin2SR(nn.Module):
    """A transformers model rebuilt for export, in eval mode, with copies of its weights.

    ``(N, channels_in, H, W)`` float32 in [0, 1] to ``(N, channels_out, scale*H, scale*W)``;
    H and W are multiples of the window.
    """

    mean: Tensor
    masks: Tensor

    def __init__(self, source: Swin2SRForImageSuperResolution, maths: Maths) -> None:
        super().__init__()
        source = copy.deepcopy(source)
        body = source.swin2sr
        assert body.embeddings.position_embeddings is None
        self.range = float(body.img_range)
        self.register_buffer("mean", body.mean.detach().clone(), persistent=False)
        self.first = body.first_convolution
        self.patch = body.embeddings.patch_embeddings.projection
        self.patch_norm = body.embeddings.patch_embeddings.layernorm
        self.stages = nn.ModuleList(Stage(stage) for stage in body.encoder.stages)
        self.norm = body.layernorm
        self.after_body = body.conv_after_body
        self.head = head_of(source, maths)
        layers = [layer for stage in body.encoder.stages for layer in stage.layers]
        self.window = int(layers[0].window_size)
        self.shift = max(int(layer.shift_size) for layer in layers)
        masks = shift_masks(self.window, self.shift, MASK[maths])
        self.register_buffer("masks", masks, persistent=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        normalised = (x - self.mean) * self.range if self.range != 1 else x - self.mean
        shallow = self.first(normalised)
        deep = self.after_body(self.features(shallow))
        y: Tensor = self.head(deep + shallow, x, normalised)
        return y

    def kinds(self, shallow: Tensor) -> Tensor:
        """``(windows,)``: of each, its kind of mask."""
        n, _, h, w = shallow.shape
        return window_kinds((n, h, w), self.window, shallow.device)

    def features(self, shallow: Tensor) -> Tensor:
        """All stages: ``(N, C, H, W)`` to the same shape."""
        n, _, h, w = shallow.shape
        size = (n, h, w)
        orders = Orders(size, self.window, self.shift, shallow.device)
        mask = torch.index_select(self.masks, 0, self.kinds(shallow))
        tokens = self.patch_norm(to_tokens(self.patch(shallow)))
        for stage in self.stages:
            tokens = stage(tokens, size, orders, mask)
        return to_image(self.norm(tokens), size)
