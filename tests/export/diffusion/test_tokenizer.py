"""Tokenizer folders at export: what is read, and what is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelrt.errors import CheckpointError
from pixelrt.export.diffusion.tokenizer import export_tokenizer
from pixelrt.spec import TokenizerSettings
from tests.clip_tokenizers import BOS, EOS, vocabulary, write_folder, write_json

SIZE = len(vocabulary())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tokenizer")


@pytest.mark.parametrize(("pad", "pad_id"), [(EOS, SIZE - 1), ("!", 0)])
def test_settings(tmp_path: Path, pad: str, pad_id: int) -> None:
    folder = write_folder(tmp_path / "tokenizer", pad=pad)
    data, settings = export_tokenizer(folder, max_positions=77, vocab_size=SIZE)
    assert settings == TokenizerSettings(77, SIZE - 2, SIZE - 1, pad_id, "right")
    content = json.loads(data)
    assert content["truncation"] is content["padding"] is None
    assert content["model"]["vocab"] == vocabulary()


def test_a_folder_with_tokenizer_json_gives_the_same(folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    data, settings = export_tokenizer(tmp_path / "saved")
    wanted, wanted_settings = export_tokenizer(folder)
    assert settings == wanted_settings
    assert json.loads(data)["model"] == json.loads(wanted)["model"]
    assert json.loads(data)["truncation"] is None


def test_nothing_is_downloaded_or_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    mark = folder / "was_run"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass CLIPTokenizer: pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.CLIPTokenizer", "evil.CLIPTokenizer"]}
    write_json(folder / "tokenizer_config.json", config)
    export_tokenizer(folder)
    assert not mark.exists()


def test_the_length_of_a_window(tmp_path: Path) -> None:
    unlimited = write_folder(tmp_path / "unlimited", model_max_length=10**30)
    missing = write_folder(tmp_path / "missing", model_max_length=None)
    for folder in (unlimited, missing):
        assert export_tokenizer(folder, max_positions=32)[1].model_max_length == 32
        with pytest.raises(CheckpointError, match="model_max_length"):
            export_tokenizer(folder)
    usual = write_folder(tmp_path / "usual")
    with pytest.raises(CheckpointError, match="max_position_embeddings, 64") as error:
        export_tokenizer(usual, max_positions=64)
    assert error.value.found == "77"
    tiny = write_folder(tmp_path / "tiny", model_max_length=2)
    with pytest.raises(CheckpointError, match="model_max_length"):
        export_tokenizer(tiny)


def test_a_tokenizer_larger_than_its_encoder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="does not know") as error:
        export_tokenizer(folder, vocab_size=SIZE - 1)
    assert error.value.found == f"ids up to {SIZE - 1}"
    assert f"below {SIZE - 1}" in error.value.expected


def test_a_gap_in_the_vocabulary_counts(folder: Path) -> None:
    write_json(folder / "vocab.json", {**vocabulary(), "zz</w>": 10**6})
    with pytest.raises(CheckpointError, match="does not know"):
        export_tokenizer(folder, vocab_size=SIZE + 1)


def test_special_tokens_outside_of_the_vocabulary(tmp_path: Path) -> None:
    """transformers adds them behind the vocabulary, where the encoder has no embedding."""
    folder = write_folder(tmp_path / "tokenizer", pad="<pad>")
    assert export_tokenizer(folder)[1].pad_token_id == SIZE
    with pytest.raises(CheckpointError, match="does not know"):
        export_tokenizer(folder, vocab_size=SIZE)


def test_no_padding_token(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tokenizer")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((folder / name).read_text())
        write_json(folder / name, {**content, "pad_token": None})
    with pytest.raises(CheckpointError, match="no pad token"):
        export_tokenizer(folder)


def test_sides(tmp_path: Path) -> None:
    left = write_folder(tmp_path / "left", padding_side="left")
    assert export_tokenizer(left)[1].padding_side == "left"
    cut = write_folder(tmp_path / "cut", truncation_side="left")
    with pytest.raises(CheckpointError, match="truncation_side 'left'"):
        export_tokenizer(cut)


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def _vocabulary(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: write_json(folder / "vocab.json", {**vocabulary(), **changes})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no vocabulary": (_remove("vocab.json"), "not complete"),
    "no merges": (_remove("merges.txt"), "not complete"),
    "vocabulary cut off": (_write("vocab.json", b'{"a": 1, "b'), "vocab.json is not valid JSON"),
    "vocabulary is a list": (_write("vocab.json", b"[1]"), "a list"),
    "vocabulary is empty": (_write("vocab.json", b"{}"), "0 tokens"),
    "vocabulary is no text": (_write("vocab.json", b"\xff\xfe{}"), "not text"),
    "nested too deep": (_write("vocab.json", b"[" * 100_000), "not valid JSON"),
    "id is text": (_vocabulary(a="1"), "'a': '1'"),
    "id is true": (_vocabulary(a=True), "'a': True"),
    "id is negative": (_vocabulary(a=-1), "'a': -1"),
    "two tokens of one id": (_vocabulary(a=0), f"{SIZE - 1} ids"),
    "merge of three": (_write("merges.txt", b"#version: 0.2\na b c\n"), "line 2: 'a b c'"),
    "merge of one": (_write("merges.txt", b"ab\n"), "line 1: 'ab'"),
    "merge of unknown tokens": (_write("merges.txt", b"zz yy\n"), "cannot read the tokenizer"),
    "config is no JSON": (_write("tokenizer_config.json", b"{"), "tokenizer_config.json"),
    "map is a list": (_write("special_tokens_map.json", b"[]"), "special_tokens_map.json"),
    "damaged tokenizer.json": (_write("tokenizer.json", b'{"model": 3}'), "cannot read"),
    "empty tokenizer.json": (_write("tokenizer.json", b""), "tokenizer.json is not valid JSON"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders(folder: Path, name: str) -> None:
    damage, said = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError) as error:
        export_tokenizer(folder)
    assert said in str(error.value)
    assert error.value.found


def test_a_tokenizer_of_another_class(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tokenizer", tokenizer_class="T5Tokenizer")
    with pytest.raises(CheckpointError, match="not supported") as error:
        export_tokenizer(folder)
    assert error.value.found == "T5Tokenizer"
    assert "CLIPTokenizer" in error.value.expected


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        export_tokenizer(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="an empty folder"):
        export_tokenizer(tmp_path / "empty")


def test_without_a_special_tokens_map(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tokenizer", pad="!")
    (folder / "special_tokens_map.json").unlink()
    _, settings = export_tokenizer(folder)
    assert (settings.bos_token_id, settings.pad_token_id) == (vocabulary()[BOS], 0)
