"""The CLIP tokenizer of a bundle: text to ids with the library ``tokenizers``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pixelrt.errors import BackendError, BundleError, InputError
from pixelrt.spec import TokenizerSettings

if TYPE_CHECKING:
    import tokenizers

INSTALL_HINT = "pip install 'pixelrt[diffusion]'"
_COMMA = ",</w>"
_END_OF_WORD = "</w>"
_Value = TypeVar("_Value")


class Tokenizer:
    """Gives the ids that transformers' ``CLIPTokenizer`` gives.

    ``data``: the bytes of a ``tokenizer.json``; truncation and padding that it may ask for
    are not carried out: ``settings`` say what a window of the text encoder looks like.

    Raises ``BackendError`` without the library, ``BundleError`` where data or settings are
    damaged or do not belong together.
    """

    def __init__(self, data: bytes, settings: TokenizerSettings) -> None:
        self.settings = settings
        self._tokenizer = _load(data)
        _check(settings, self._tokenizer)

    @property
    def room(self) -> int:
        """How many tokens of text one window holds."""
        return self.settings.model_max_length - 2

    @property
    def comma(self) -> int | None:
        """The id of a comma, if the vocabulary has it as a word."""
        return self._tokenizer.token_to_id(_COMMA)

    def ids(self, text: str) -> list[int]:
        """The ids of a text of any length, without begin and end.

        Raises ``InputError`` where the text is not Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise InputError(
                "a prompt is not valid Unicode", found=str(exc), expected="text without surrogates"
            ) from exc
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """The words of these ids, in lower case as CLIP reads them."""
        words: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return words.replace(_END_OF_WORD, " ").strip()

    def framed(self, ids: Iterable[int]) -> list[int]:
        """The ids between begin and end of text."""
        return [self.settings.bos_token_id, *ids, self.settings.eos_token_id]

    def padded(self, values: Sequence[_Value], filler: _Value) -> list[_Value]:
        """One value per token, filled up to ``model_max_length`` on the padding side."""
        missing = [filler] * (self.settings.model_max_length - len(values))
        if self.settings.padding_side == "left":
            return [*missing, *values]
        return [*values, *missing]


def _load(data: bytes) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as exc:
        raise BackendError("the package tokenizers is not installed", hint=INSTALL_HINT) from exc
    try:
        tokenizer = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as exc:  # the library raises nothing more specific
        raise BundleError(
            "tokenizer.json cannot be read", found=str(exc), expected="what tokenizers writes"
        ) from exc
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check(settings: TokenizerSettings, tokenizer: Any) -> None:
    if settings.model_max_length < 3:
        raise BundleError(
            "a window of the tokenizer has no room for text",
            found=f"model_max_length {settings.model_max_length}",
            expected="at least 3: begin, one token, end",
        )
    if settings.padding_side not in ("right", "left"):
        raise BundleError(
            "the tokenizer's settings name no side to pad",
            found=f"padding_side {settings.padding_side!r}",
            expected="right or left",
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(settings, name) < 0 or tokenizer.id_to_token(getattr(settings, name)) is None:
            raise BundleError(
                "the tokenizer's settings name a token that tokenizer.json does not have",
                found=f"{name} {getattr(settings, name)}",
                expected=f"an id of the {tokenizer.get_vocab_size()} tokens",
            )
