"""The runtime's tokenizer gives what transformers' CLIPTokenizer gives."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from pixelrt.errors import BackendError, BundleError, InputError
from pixelrt.export.diffusion.tokenizer import export_tokenizer
from pixelrt.runtime.diffusion.text.tokenizer import Tokenizer
from pixelrt.spec import TokenizerSettings
from tests.clip_tokenizers import EOS, write_folder

KINDS: dict[str, dict[str, Any]] = {
    "sd1": {},
    "sd2": {"pad": "!"},
    "left": {"pad": "!", "padding_side": "left"},
    "short": {"model_max_length": 8},
}

TEXTS = (
    "",
    " ",
    "the photo in the cat",
    "The  CAT,\tthe\n\ncat!!  It's we'll 12345",
    "hello! wow!!! !!",
    "Crème brûlée, Cafe\u0301, ÅÅÅ",
    "😀😀 👩‍👩‍👧‍👦 🇨🇭",
    "日本語のテキスト 한국어 العربية हिन्दी",
    "a\x00b\u200bc\ufeff \xa0 \u3000 ﬁ",
    "a <|endoftext|> b<|startoftext|>c <|ENDOFTEXT|>",
    "</w> #version: 0.2",
    "x" * 500,
    "the cat, " * 300,
)

WORDS = st.lists(
    st.one_of(
        st.sampled_from(["the", "cat", "photo", "!", "!!", "'s", EOS, "é", "e\u0301", "😀", "42"]),
        st.text(max_size=6),
    ),
    max_size=30,
).flatmap(lambda words: st.sampled_from(["", " ", ", "]).map(lambda gap: gap.join(words)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Tokenizer]]:
    from transformers import CLIPTokenizer

    found = {}
    for kind, config in KINDS.items():
        folder = write_folder(tmp_path_factory.mktemp("tokenizers") / kind, **config)
        theirs = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        found[kind] = theirs, Tokenizer(*export_tokenizer(folder))
    return found


def assert_same(theirs: Any, ours: Tokenizer, text: str) -> None:
    ids = ours.ids(text)
    assert ids == theirs(text, add_special_tokens=False).input_ids
    assert ours.framed(ids) == theirs(text).input_ids
    wanted = theirs(text, padding="max_length", truncation=True, max_length=theirs.model_max_length)
    framed = ours.framed(ids[: ours.room])
    assert ours.padded(framed, ours.settings.pad_token_id) == wanted.input_ids
    assert ours.padded([1] * len(framed), 0) == wanted.attention_mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:30])
def test_ids_are_those_of_transformers(
    pairs: dict[str, tuple[Any, Tokenizer]], kind: str, text: str
) -> None:
    assert_same(*pairs[kind], text)


@given(st.one_of(WORDS, st.text()))
def test_ids_of_any_text(pairs: dict[str, tuple[Any, Tokenizer]], text: str) -> None:
    for kind in ("sd1", "sd2"):
        assert_same(*pairs[kind], text)


def test_words_come_back_without_marks(pairs: dict[str, tuple[Any, Tokenizer]]) -> None:
    ours = pairs["sd2"][1]
    assert ours.text(ours.ids("The Cat,  CAFÉ!")) == "the cat , café !"


def test_truncation_and_padding_of_the_file_are_not_carried_out(
    pairs: dict[str, tuple[Any, Tokenizer]], tmp_path: Path
) -> None:
    data, settings = export_tokenizer(write_folder(tmp_path / "tokenizer"))
    library = Library.from_str(data.decode())
    library.enable_truncation(3)
    library.enable_padding(length=50)
    ours = Tokenizer(library.to_str().encode(), settings)
    assert ours.ids("the cat, the cat") == pairs["sd1"][1].ids("the cat, the cat")


def test_text_with_a_surrogate(pairs: dict[str, tuple[Any, Tokenizer]]) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        pairs["sd1"][1].ids("a \ud83d b")


@pytest.mark.parametrize("data", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b'{"model": {"type": "X"}}'])
def test_a_damaged_file(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read") as error:
        Tokenizer(data, TokenizerSettings(77, 0, 1, 1))
    assert error.value.found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_max_length": 2}, "no room"),
        ({"padding_side": "top"}, "no side"),
        ({"bos_token_id": -1}, "bos_token_id -1"),
        ({"eos_token_id": 10**6}, "eos_token_id 1000000"),
        ({"pad_token_id": 9999}, "pad_token_id 9999"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    data, settings = export_tokenizer(write_folder(tmp_path / "tokenizer"))
    with pytest.raises(BundleError, match=said):
        Tokenizer(data, dataclasses.replace(settings, **change))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendError, match=r"pixelrt\[diffusion\]"):
        Tokenizer(b"", TokenizerSettings(77, 0, 1, 1))


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    data, settings = export_tokenizer(write_folder(tmp_path / "tokenizer"))
    (tmp_path / "tokenizer.json").write_bytes(data)
    written = json.dumps(dataclasses.asdict(settings))
    code = f"""
import sys, json
from pathlib import Path
from pixelrt.runtime.diffusion.text import batch, embeddings, emphasis, prompt, tokenizer
from pixelrt.spec import TokenizerSettings
assert "tokenizers" not in sys.modules
data = Path({str(tmp_path / "tokenizer.json")!r}).read_bytes()
ours = tokenizer.Tokenizer(data, TokenizerSettings(**json.loads({written!r})))
print(batch.prepare(["the (cat:1.2)"], ours).ids.shape)
print(sorted({{"torch", "transformers", "diffusers", "huggingface_hub"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(1, 77)", "[]"]
