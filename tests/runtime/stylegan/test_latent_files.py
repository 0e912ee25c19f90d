"""Files of latents: what is read, what is written, and what is refused."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelrt.errors import InputError, OutputError, PixelrtError, UsageError
from pixelrt.runtime.stylegan.latent_files import load_array, load_ws, save_ws

ROWS, DIM = 6, 4
WS: Any = np.random.default_rng(0).standard_normal((3, ROWS, DIM)).astype(np.float32)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_ws(path, ROWS, DIM)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ws{suffix}"
    save_ws(path, WS)
    assert np.array_equal(load_ws(path, ROWS, DIM), WS)
    saved = np.load(path)
    assert np.array_equal(saved if suffix == ".npy" else saved["w"], WS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (WS, WS),
        (WS[0], WS[:1]),
        (WS[:, 0], np.repeat(WS[:, :1], ROWS, axis=1)),
        (WS[0, 0], np.repeat(WS[:1, :1], ROWS, axis=1)),
        (WS.astype(np.float64), WS),
        (WS.astype(">f4"), WS),
        (np.asfortranarray(WS), WS),
    ],
    ids=["ws", "one ws", "w", "one w", "double", "big-endian", "by column"],
)
def test_shapes_and_types_that_are_read(tmp_path: Path, array: Any, expected: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    found = load_ws(tmp_path / "a.npy", ROWS, DIM)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_archives(tmp_path: Path) -> None:
    path = tmp_path / "projected_w.npz"
    np.savez_compressed(path, anything=WS)
    assert np.array_equal(load_ws(path, ROWS, DIM), WS)
    np.savez(path, w=WS, other=np.zeros(3))
    assert np.array_equal(load_ws(path, ROWS, DIM), WS)
    np.savez(path, a=WS, b=WS)
    assert "a, b" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "no arrays" in refusal(path)


def test_a_direction(tmp_path: Path) -> None:
    np.save(tmp_path / "smile.npy", WS[0, :1])
    assert np.array_equal(load_array(tmp_path / "smile.npy"), WS[0, :1])


def test_shapes_and_values_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, found in (
        (WS[:, :5], "(3, 5, 4)"),
        (WS[..., :3], "(3, 6, 3)"),
        (WS[None], "(1, 3, 6, 4)"),
        (WS[:0], "(0, 6, 4)"),
        (WS[0, :, :3], "(6, 3)"),
        (np.float32(1), "()"),
    ):
        np.save(path, array)
        text = refusal(path)
        assert found in text
        assert "expected" in text
    np.save(path, WS * np.inf)
    assert "not finite" in refusal(path)
    np.save(path, np.ones((1, ROWS, DIM), np.int64))
    assert "int64" in refusal(path)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Evil()]), allow_pickle=True)
    assert "object" in refusal(Path("a.npy"))
    np.savez("a.npz", w=np.array([Evil()]))
    assert "object" in refusal(Path("a.npz"))
    Path("b.npy").write_bytes(pickle.dumps(Evil()))
    assert "cannot be read" in refusal(Path("b.npy"))
    assert not Path("canary").exists()


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "shape", ["(99999999999,)", "(3, 6, 4)", "(-1, 6, 4)", "(2, -3, -4)", "(1.5,)", "[", "'a'"]
)
def test_headers_that_lie(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(header(shape) + b"\0" * 64)
    refusal(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", header(shape) + b"\0" * 64)
    refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x09\x00", b"PK\x03\x04", b"<html>"])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    assert "cannot be read as an array" in refusal(tmp_path / "a.npy")


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "a.npy")


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_anywhere(tmp_path: Path, compressed: bool) -> None:
    buffer = io.BytesIO()
    if compressed:
        np.savez_compressed(buffer, w=WS)
    else:
        np.save(buffer, WS)
    content, chance = buffer.getvalue(), random.Random(5)
    path = tmp_path / "a.npy"
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        refusal(path)
    for _ in range(500):
        altered = bytearray(content)
        altered[chance.randrange(min(len(content), 200))] = chance.randrange(256)
        path.write_bytes(altered)
        try:
            load_ws(path, ROWS, DIM)
        except PixelrtError as error:
            assert str(error)  # noqa: PT017 - either outcome is right


def test_writing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.npy or \.npz"):
        save_ws(tmp_path / "a.txt", WS)
    with pytest.raises(InputError, match="shape"):
        save_ws(tmp_path / "a.npy", WS[0])
    with pytest.raises(OutputError):
        save_ws(tmp_path / "none" / "a.npy", WS)
    assert list(tmp_path.iterdir()) == []
