"""The VAE of Stable Diffusion (diffusers' ``AutoencoderKL``) in segments, cut before every norm.

The structure is that of diffusers' ``Encoder``, ``Decoder``, ``UNetMidBlock2D``, ``ResnetBlock2D``
and ``Attention``; the export holds the segments against these. Attention is run for some pixels
after the other over the keys and values of all, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pixelrt.export.segment_graph import Built, Flow, SegmentGraph

HALVES = ("Encoder", "Decoder")
BLOCKS = ("DownEncoderBlock2D", "UpDecoderBlock2D")
Make = Callable[[SegmentGraph], Flow]


def vae_segments(model: Any) -> tuple[list[Built], list[Built]]:
    """Of encoder and decoder; both empty where the VAE has parts that are not known here."""
    halves = (model.encoder.down_blocks, model.encoder), (model.decoder.up_blocks, model.decoder)
    if not all(_known(blocks, half) for blocks, half in halves):
        return [], []
    return _encoder(model), _decoder(model)


def _known(blocks: Any, half: Any) -> bool:
    """Whether all of it is built as the segments are."""
    resnets = [one for part in (*blocks, half.mid_block) for one in part.resnets]
    attentions = [one for one in half.mid_block.attentions if one is not None]
    return (
        type(half).__name__ in HALVES
        and all(type(block).__name__ in BLOCKS for block in blocks)
        and all(type(one).__name__ == "ResnetBlock2D" for one in resnets)
        and all(one.time_emb_proj is None and one.output_scale_factor == 1 for one in resnets)
        and all(isinstance(one.nonlinearity, nn.SiLU) for one in resnets)
        and all(one.heads == 1 and one.rescale_output_factor == 1 for one in attentions)
    )


def _encoder(model: Any) -> list[Built]:
    chain, encoder = _Chain(), model.encoder
    x = chain.piece(lambda g: g.conv(g.value("pixels", model.config.in_channels), encoder.conv_in))
    for block in encoder.down_blocks:
        *resnets, last = block.resnets
        for resnet in resnets:
            x = chain.resnet(x, resnet)
        down = block.downsamplers[0].conv if block.downsamplers else None
        pads = None if down is None or down.padding != (0, 0) else (0, 0, 1, 1)
        x = chain.resnet(x, last, down and (lambda g, y, c=down, p=pads: g.conv(y, c, p)), 2)
    x = chain.middle(x, encoder.mid_block)
    chain.last(x, encoder, model.quant_conv, "moments")
    return chain.made


def _decoder(model: Any) -> list[Built]:
    chain, decoder = _Chain(), model.decoder

    def first(graph: SegmentGraph) -> Flow:
        latents = graph.value("latents", model.config.latent_channels)
        before = model.post_quant_conv
        return graph.conv(
            graph.conv(latents, before) if before is not None else latents, decoder.conv_in
        )

    x = chain.middle(chain.piece(first), decoder.mid_block)
    for block in decoder.up_blocks:
        *resnets, last = block.resnets
        for resnet in resnets:
            x = chain.resnet(x, resnet)
        up = block.upsamplers[0].conv if block.upsamplers else None
        x = chain.resnet(x, last, up and (lambda g, y, c=up: g.conv(g.doubled(y), c)))
    chain.last(x, decoder, None, "pixels")
    return chain.made


class _Chain:
    """Segments, one after the other; a value is (name, channels)."""

    def __init__(self) -> None:
        self.made: list[Built] = []

    def piece(self, make: Make, pixels: int = 1, name: str = "") -> tuple[str, int]:
        """A segment; gives its value."""
        graph = SegmentGraph(pixels)
        flow = make(graph)
        name = name or f"value_{len(self.made)}"
        self.made.append(graph.built(flow, name))
        return name, flow.channels

    def resnet(
        self, x: tuple[str, int], block: Any, then: Any = None, pixels: int = 1
    ) -> tuple[str, int]:
        """A block of two norms; ``then``: what changes the size after it, from graph and flow;
        ``pixels`` of its input to a unit."""
        h = self.piece(lambda g: g.conv(g.silu(g.norm(g.value(*x), block.norm1)), block.conv1))

        def second(graph: SegmentGraph) -> Flow:
            inner, outer = graph.value(*h), graph.value(*x)
            y = graph.conv(graph.silu(graph.norm(inner, block.norm2)), block.conv2)
            if block.conv_shortcut is not None:
                outer = graph.conv(outer, block.conv_shortcut)
            y = graph.add(outer, y)
            return then(graph, y) if then else y

        return self.piece(second, pixels if then else 1)

    def middle(self, x: tuple[str, int], block: Any) -> tuple[str, int]:
        first, *rest = block.resnets
        x = self.resnet(x, first)
        for attention, resnet in zip(block.attentions, rest, strict=True):
            if attention is not None:
                x = self._attention(x, attention)
            x = self.resnet(x, resnet)
        return x

    def _attention(self, x: tuple[str, int], attention: Any) -> tuple[str, int]:
        norm = attention.group_norm
        key = self.piece(lambda g: g.linear(g.norm(g.value(*x), norm), attention.to_k))
        value = self.piece(lambda g: g.linear(g.norm(g.value(*x), norm), attention.to_v))

        def rows(graph: SegmentGraph) -> Flow:
            outer = graph.value(*x)
            query = graph.linear(graph.norm(outer, norm), attention.to_q)
            keys, values = graph.value(*key, whole=True), graph.value(*value, whole=True)
            found = graph.linear(graph.attend(query, keys, values), attention.to_out[0])
            return graph.add(found, outer) if attention.residual_connection else found

        return self.piece(rows)

    def last(self, x: tuple[str, int], half: Any, after: Any, name: str) -> None:
        def make(graph: SegmentGraph) -> Flow:
            y = graph.silu(graph.norm(graph.value(*x), half.conv_norm_out))
            y = graph.conv(y, half.conv_out)
            return graph.conv(y, after) if after is not None else y

        self.piece(make, name=name)
