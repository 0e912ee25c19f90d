"""Prompts to what the UNet is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pixelrt.errors import InputError, UsageError
from pixelrt.pipeline_settings import DiffusionSettings
from pixelrt.runtime.diffusion.call import Call
from pixelrt.runtime.diffusion.text.batch import prepare_each
from pixelrt.runtime.diffusion.text.embeddings import check_same_shape, ready_embeddings
from pixelrt.runtime.diffusion.text.emphasis import assemble, first_chunk
from pixelrt.runtime.diffusion.text.tokenizer import Tokenizer
from pixelrt.runtime.networks import Networks

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """``text`` (B, T, C) and ``pooled`` (B, P) or ``None``, for B pictures; with guidance, the
    negatives of all come first: (2*B, ...)."""

    text: Values
    pooled: Values | None
    count: int
    guided: bool
    notes: tuple[str, ...] = ()


class Prompts:
    """The text side of a pipeline: its tokenizers and encoders."""

    def __init__(self, networks: Networks, settings: DiffusionSettings) -> None:
        self._networks = networks
        self._settings = settings
        self._tokenizers: list[Tokenizer] = []

    def embeddings(self, call: Call, *, guided: bool) -> Embeddings:
        """For all pictures of a call. Raises ``InputError`` and ``UsageError``."""
        if call.prompt_embeds is not None:
            return self._ready(call, call.prompt_embeds, guided=guided)
        prompts = texts_of(call.prompt, "prompt")
        count = len(prompts)
        wanted = [[prompts, alike(call.prompt_2, prompts, "prompt_2")]]
        zeros = guided and call.negative_prompt is None and self._settings.empty_is_zero
        if guided and not zeros:
            negative = alike(call.negative_prompt, [""] * count, "negative_prompt")
            second = alike(call.negative_prompt_2, negative, "negative_prompt_2")
            wanted.insert(0, [negative, second])
        text, pooled, notes = self._encode(wanted, call)
        if zeros:
            text = np.concatenate([np.zeros_like(text), text])
            pooled = None if pooled is None else np.concatenate([np.zeros_like(pooled), pooled])
        return _repeated(Embeddings(text, pooled, count, guided, notes), call.num_images_per_prompt)

    def _encode(
        self, wanted: list[list[list[str]]], call: Call
    ) -> tuple[Values, Values | None, tuple[str, ...]]:
        """``wanted``: negatives (where there are some) and positives, for each encoder."""
        if not self._tokenizers:
            bundle = self._networks.bundle
            self._tokenizers = [
                Tokenizer(bundle.asset(one.asset), one.tokenizer) for one in self._settings.text
            ]
        encoders = self._settings.text
        # With one encoder (SDXL's refiner) there is no second prompt, as in diffusers.
        texts = [
            [prompt for half in wanted for prompt in half[number if len(encoders) > 1 else 0]]
            for number in range(len(encoders))
        ]
        batches = prepare_each(
            texts,
            self._tokenizers,
            long_prompts=call.long_prompts,
            weighting=call.weighting,
        )
        hidden, pooled = [], None
        for one, batch in zip(encoders, batches, strict=True):
            found = self._networks.run(one.network, {"ids": batch.ids})
            hidden.append(assemble(found["hidden"], batch))
            if one.pooled:
                pooled = first_chunk(found["pooled"], batch)
        notes = tuple(dict.fromkeys(note for batch in batches for note in batch.notes))
        return np.concatenate(hidden, axis=-1), pooled, notes

    def _ready(self, call: Call, given: Values, *, guided: bool) -> Embeddings:
        if call.prompt is not None:
            raise UsageError("prompt and prompt_embeds exclude each other")
        needs_pooled = any(one.pooled for one in self._settings.text)
        text = ready_embeddings("prompt_embeds", given, ("B", "T", "C"))
        pooled = self._pooled("pooled_prompt_embeds", call.pooled_prompt_embeds, needs_pooled)
        if guided:
            if call.negative_prompt_embeds is None:
                raise UsageError(
                    "with prompt_embeds and guidance there must be negative_prompt_embeds",
                    hint="embed the empty prompt, or pass guidance_scale=1",
                )
            negative = ready_embeddings(
                "negative_prompt_embeds", call.negative_prompt_embeds, ("B", "T", "C")
            )
            check_same_shape("prompt_embeds", text, "negative_prompt_embeds", negative)
            text = np.concatenate([negative, text])
            if pooled is not None:
                other = self._pooled(
                    "negative_pooled_prompt_embeds", call.negative_pooled_prompt_embeds, True
                )
                assert other is not None
                pooled = np.concatenate([other, pooled])
        made = Embeddings(text, pooled, len(given), guided)
        return _repeated(made, call.num_images_per_prompt)

    def _pooled(self, name: str, given: Values | None, needed: bool) -> Values | None:
        if not needed:
            return None
        if given is None:
            raise UsageError(f"this pipeline needs {name} beside prompt_embeds")
        return ready_embeddings(name, given, ("B", "P"))


def texts_of(given: str | Sequence[str] | None, name: str) -> list[str]:
    """One or several. Raises ``UsageError`` where there is none."""
    if given is None:
        raise UsageError(f"there is no {name}", hint="an empty one is given as ''")
    return [given] if isinstance(given, str) else list(given)


def alike(given: str | Sequence[str] | None, like: list[str], name: str) -> list[str]:
    """As many as ``like``, which stands in where nothing is given. Raises ``InputError``."""
    if given is None:
        return like
    found = texts_of(given, name)
    if len(found) == 1:
        return found * len(like)
    if len(found) != len(like):
        raise InputError(
            f"there are not as many of {name} as prompts",
            found=str(len(found)),
            expected=f"1 or {len(like)}",
        )
    return found


def _repeated(made: Embeddings, times: int) -> Embeddings:
    if times == 1:
        return made
    text = np.repeat(made.text, times, axis=0)
    pooled = None if made.pooled is None else np.repeat(made.pooled, times, axis=0)
    return Embeddings(text, pooled, made.count * times, made.guided, made.notes)
