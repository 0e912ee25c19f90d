"""Opening checkpoints: every form gives the same tensors, nothing is ever run, and whatever
is wrong with a file is a CheckpointError."""

from __future__ import annotations

import builtins
import collections
import copyreg
import functools
import hashlib
import importlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pixelrt.errors import CheckpointError, UnsafeCheckpointError
from pixelrt.export import checkpoint, inert_pickle
from pixelrt.export.checkpoint import is_hub_id, open_checkpoint
from pixelrt.export.inert_pickle import MAGIC_NUMBER, read_inert
from pixelrt.export.pickle_machine import Name, PickleMachine, Record
from pixelrt.export.state_dicts import module_settings, module_tensors, state_dicts
from pixelrt.export.tensor_record import TensorRecord

FORMS = pytest.mark.parametrize("zip_form", [True, False], ids=["zip", "stream"])

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("kept", torch.arange(5.0))
        self.register_buffer("transient", torch.ones(7), persistent=False)
        self.register_parameter("absent", None)
        self.act = nn.functional.gelu
        self.norm_layer = nn.LayerNorm

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), nn.PReLU(), Block())
        self.head = nn.Linear(4, 2, dtype=torch.float16)
        self.size = torch.Size((1, 2))
        self.dtype = torch.bfloat16
        self.place = torch.device("cpu")
        self.tied = self.head
"""

SRGAN = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2))


def save(obj: object, path: Path, zip_form: bool = True) -> Path:
    with warnings.catch_warnings():
        # The stream form saves the source of classes and warns where it finds none.
        warnings.simplefilter("ignore")
        torch.save(obj, path, _use_new_zipfile_serialization=zip_form)
    return path


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module that exists only while checkpoints are written; see ``forget``."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "foreign_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("foreign_network")
    sys.modules.pop("foreign_network", None)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes an import of the module fail, and shows if one is attempted."""
    monkeypatch.setitem(sys.modules, "foreign_network", None)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
        assert type(found[name]) is torch.Tensor
        assert not found[name].requires_grad


def error_of(path: str | Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    return caught.value


# -- forms that are read --------------------------------------------------------------------


def test_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(dict(SRGAN), path)
    opened = open_checkpoint(path)
    assert_same(opened.groups[""], dict(sorted(SRGAN.items())))
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (opened.path, opened.config) == (str(path), None)


@FORMS
@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda sd: sd, ""),
        (lambda sd: {"params": sd}, "params"),
        (lambda sd: {"params_ema": sd, "epoch": 3}, "params_ema"),
        (lambda sd: {"state_dict": sd, "epoch": 3, "best": 0.5, "arch": "x"}, "state_dict"),
        (lambda sd: {"state": {"net": sd}}, "state.net"),
        (lambda sd: {"netG": {f"module.{k}": v for k, v in sd.items()}}, "netG"),
        (lambda sd: {**sd, "num_batches_tracked": 7}, ""),
        (lambda sd: {k: nn.Parameter(v) for k, v in sd.items()}, ""),
    ],
)
def test_nested_state_dicts(tmp_path: Path, zip_form: bool, wrap: Any, where: str) -> None:
    path = save(wrap(SRGAN), tmp_path / "net.pth", zip_form)
    opened = open_checkpoint(path)
    assert list(opened.groups) == [where]
    assert_same(opened.groups[where], SRGAN)
    inert = dict(state_dicts(read_inert(path)))
    assert [value.tensor().tolist() for _, value in inert[where]] == [  # type: ignore[union-attr]
        value.tolist() for value in SRGAN.values()
    ]


def test_several_groups_and_no_optimizer(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tree = {
        "params": SRGAN,
        "params_ema": {"x": torch.ones(1)},
        "optimizer": optimizer.state_dict(),
        "best_acc": torch.tensor(0.5),
        "callbacks": {"scores": {"a": torch.tensor(1.0)}},
        "history": [torch.ones(3)],
    }
    assert list(open_checkpoint(save(tree, tmp_path / "a.pth")).groups) == ["params", "params_ema"]


@FORMS
@pytest.mark.parametrize("where", ["", "model"])
def test_whole_module(
    tmp_path: Path, zip_form: bool, where: str, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = foreign.Network()
    path = save({where: net, "epoch": 3} if where else net, tmp_path / "net.pt", zip_form)
    forget(monkeypatch)
    assert_same(open_checkpoint(path).groups[where], net.state_dict())


@FORMS
def test_data_parallel_module(
    tmp_path: Path, zip_form: bool, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = foreign.Block()
    path = save({"model": nn.DataParallel(net)}, tmp_path / "net.pt", zip_form)
    forget(monkeypatch)
    assert_same(open_checkpoint(path).groups["model"], net.state_dict())


@FORMS
def test_the_tutorial_form(
    tmp_path: Path, zip_form: bool, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """{'epoch', 'generator': module, 'discriminator': module, 'optimizer_g': Adam, ...}"""
    nets = {"generator": foreign.Block(), "discriminator": nn.Sequential(nn.Linear(3, 1))}
    optimizers = {}
    for name, net in nets.items():
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizers[f"optimizer_{name[0]}"] = optimizer
    path = save({"epoch": 7, **nets, **optimizers}, tmp_path / "srgan.pth.tar", zip_form)
    forget(monkeypatch)
    opened = open_checkpoint(path)
    assert list(opened.groups) == list(nets)
    for name, net in nets.items():
        assert_same(opened.groups[name], net.state_dict())


def test_optimizer_states_are_not_read(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tree = read_inert(save({"model": net, "optimizer": optimizer}, tmp_path / "a.pt"))
    assert isinstance(tree, dict)
    [state, *_] = tree["optimizer"].state["state"].values()
    assert isinstance(state["momentum_buffer"], TensorRecord)
    assert state["momentum_buffer"].storage._bytes is None


@FORMS
@pytest.mark.parametrize(
    "name",
    ["float64", "float16", "bfloat16", "uint8", "int64", "complex64", "float8_e4m3fn", "uint16"],
)
def test_dtypes(tmp_path: Path, zip_form: bool, name: str) -> None:
    dtype = getattr(torch, name)
    module = nn.Module()
    module.register_buffer("flags", torch.tensor([True, False]))
    module.register_buffer("x", torch.arange(6).reshape(2, 3).to(dtype))
    tensors = open_checkpoint(save(module, tmp_path / "a.pt", zip_form)).groups[""]
    assert tensors["flags"].tolist() == [True, False]
    found = tensors["x"]
    assert found.dtype == dtype
    assert found.to(torch.complex64).tolist() == [[0, 1, 2], [3, 4, 5]]


@FORMS
def test_views_of_a_shared_storage(tmp_path: Path, zip_form: bool) -> None:
    module = nn.Module()
    base = torch.arange(24.0).reshape(4, 6)
    views = {"base": base, "t": base.t(), "part": base[1:3, ::2], "wide": base[:1, :1].expand(3, 2)}
    for name, view in (views | {"empty": base[:0], "scalar": base[2, 2]}).items():
        module.register_buffer(name, view)
    found = open_checkpoint(save(module, tmp_path / "a.pt", zip_form)).groups[""]
    assert_same(found, module.state_dict())
    assert found["t"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()


@FORMS
def test_parameters_with_attributes(tmp_path: Path, zip_form: bool) -> None:
    module = nn.Linear(2, 2)
    module.weight.is_sharded = True  # type: ignore[attr-defined]
    module.register_buffer("extra", torch.ones(2))
    module.extra.note = "x"  # type: ignore[union-attr]
    found = open_checkpoint(save(module, tmp_path / "a.pt", zip_form)).groups[""]
    assert_same(found, module.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@FORMS
def test_pickle_protocols_and_harmless_extras(
    tmp_path: Path, zip_form: bool, protocol: int
) -> None:
    tree = {
        "model": nn.Linear(2, 2),
        "best": np.float64(0.5),
        "path": Path("x"),
        "names": {"a"},
        "frozen": frozenset({1}),
        "raw": b"\xff",
        "range": range(3),
        "count": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "pair": (1, None, True, 2**70, -1.5, "é"),
    }
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(tree, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_form)
    read = read_inert(path)
    assert isinstance(read, dict)
    assert read["names"] == {"a"}
    assert read["raw"] == b"\xff"
    assert read["pair"] == (1, None, True, 2**70, -1.5, "é")
    assert read["count"] == {"a": 2, "b": 1}
    assert read["default"] == {"a": [1]}
    assert type(read["default"]) is dict
    assert list(open_checkpoint(path).groups) == ["model"]


def test_stream_with_a_view_of_a_storage(tmp_path: Path) -> None:
    """The sixth part of a persistent id, which torch before 0.4 wrote."""
    path = tmp_path / "a.pt"
    view = ("v", 2, 3)
    pid = pid_ops("storage", Global("torch", "FloatStorage"), "k", "cpu", 8, view)
    tensor = rebuild(pid, 1, (2,), (1,))
    module = module_ops(tensor)
    path.write_bytes(stream(module, ["k"], struct.pack("<q8f", 8, *range(8))))
    assert open_checkpoint(path).groups[""]["weight"].tolist() == [3.0, 4.0]


# -- folders and the hub --------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "swin2sr"}')
    return folder


def test_folder_with_safetensors(tmp_path: Path) -> None:
    save_file(dict(SRGAN), make_folder(tmp_path) / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    assert opened.config == {"model_type": "swin2sr"}
    assert set(opened.groups[""]) == set(SRGAN)
    content = (tmp_path / "model.safetensors").read_bytes()
    assert opened.sha256 == hashlib.sha256(content).hexdigest()


def test_folder_with_a_pickle(tmp_path: Path) -> None:
    save(SRGAN, make_folder(tmp_path) / "pytorch_model.bin")
    assert_same(open_checkpoint(tmp_path).groups[""], SRGAN)


def make_shards(folder: Path, names: dict[str, str]) -> Path:
    make_folder(folder)
    save_file({"a": torch.ones(1)}, folder / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, folder / "model-2.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_folder_with_shards(tmp_path: Path) -> None:
    make_shards(tmp_path, {"b": "model-2.safetensors", "a": "model-1.safetensors"})
    opened = open_checkpoint(tmp_path)
    assert set(opened.groups[""]) == {"a", "b"}
    parts = [(tmp_path / f"model-{n}.safetensors").read_bytes() for n in (1, 2)]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    assert opened.sha256 == hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a": "model-1.safetensors", "z": "model-2.safetensors"}, "incomplete"),
        ({"a": "model-9.safetensors"}, "model-9.safetensors"),
        ({"a": "../model-1.safetensors"}, "outside of its folder"),
        ({"a": 3}, "outside of its folder"),
        ({}, "lists no weights"),
    ],
)
def test_shards_that_do_not_fit(tmp_path: Path, names: dict[str, str], message: str) -> None:
    make_shards(tmp_path, names)
    assert message in str(error_of(tmp_path))


def test_two_shards_with_the_same_parameter(tmp_path: Path) -> None:
    make_shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    save_file({"a": torch.ones(1)}, tmp_path / "model-2.safetensors")
    assert "same parameter" in str(error_of(tmp_path))


@pytest.mark.parametrize("config", ["[]", "{", "[" * 100_000, '"\udc80"'])
def test_config_that_is_no_object(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_bytes(config.encode("utf-8", "surrogateescape"))
    assert "config.json is not" in str(error_of(tmp_path))


def test_folder_without_config(tmp_path: Path) -> None:
    save_file(dict(SRGAN), tmp_path / "model.safetensors")
    error = error_of(tmp_path)
    assert "no config.json" in error.message
    assert "model.safetensors" in error.found


def test_folder_without_weights(tmp_path: Path) -> None:
    assert "no weights" in error_of(make_folder(tmp_path)).message


def test_folder_with_several_weights(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for name in ("a", "b"):
        save_file(dict(SRGAN), tmp_path / f"{name}.safetensors")
    assert "several weight files" in error_of(tmp_path).message
    (tmp_path / "b.safetensors").unlink()
    assert set(open_checkpoint(tmp_path).groups[""]) == set(SRGAN)


def test_hub_id_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(dict(SRGAN), make_folder(tmp_path) / "model.safetensors")
    asked = []

    def snapshot_download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    opened = open_checkpoint("someone/swin2sr-x2")
    assert asked == [("someone/swin2sr-x2", checkpoint.HUB_PATTERNS)]
    assert opened.path == "someone/swin2sr-x2"
    assert opened.config is not None


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    error = error_of("someone/swin2sr-x2")
    assert "no route to host" in error.found
    assert "local-dir FOLDER" in error.hint
    assert isinstance(error.__cause__.__cause__, ConnectionError)  # type: ignore[union-attr]


def test_only_hub_ids_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        pytest.fail("nothing may be downloaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    for source in ("org/net.pth", "./net", "../net", "a/b/c", "net", "/a/b", "a/b\n", "", "a\0b"):
        with pytest.raises(CheckpointError):
            open_checkpoint(source)
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(Path("org/name"))
    assert is_hub_id("caidas/swin2SR-classical-sr-x2-64")


# -- pickles that ask for something to be run -------------------------------------------------

CANARY = "canary.txt"


class Global:
    """Stands for a global in ``ops``."""

    def __init__(self, module: str, name: str) -> None:
        self.code = f"c{module}\n{name}\n".encode()


class Raw:
    def __init__(self, code: bytes) -> None:
        self.code = code


def ops(value: object) -> bytes:
    """Pickle opcodes that leave ``value`` on the stack; ``Global`` and ``Raw`` as they are."""
    if isinstance(value, (Global, Raw)):
        return value.code
    if isinstance(value, tuple):
        return b"(" + b"".join(ops(item) for item in value) + b"t"
    if isinstance(value, list):
        return b"]" + b"".join(ops(item) + b"a" for item in value)
    if isinstance(value, dict):
        return b"}" + b"".join(ops(k) + ops(v) + b"s" for k, v in value.items())
    return pickle.dumps(value, 2)[2:-1]


def call(module: str, name: str, *args: object) -> Raw:
    return Raw(ops(Global(module, name)) + ops(args) + b"R")


def pid_ops(*parts: object) -> Raw:
    return Raw(ops(parts) + b"Q")


def rebuild(storage: object, offset: object, size: object, stride: object) -> Raw:
    args = (storage, offset, size, stride, False, call("collections", "OrderedDict"))
    return call("torch._utils", "_rebuild_tensor_v2", *args)


def module_ops(weight: object) -> Raw:
    """The pickle of a module with one parameter."""
    state = {"_parameters": {"weight": weight}, "_buffers": {}, "_modules": {}}
    return Raw(ops(Global("nets", "Net")) + b")\x81" + ops(state) + b"b")


def stream(root: object, keys: Iterable[str] = (), data: bytes = b"") -> bytes:
    head = (pickle.dumps(value, 2) for value in (MAGIC_NUMBER, 1001, {"little_endian": True}))
    return b"".join(head) + b"\x80\x02" + ops(root) + b"." + pickle.dumps(list(keys), 2) + data


def archive(root: object, data: dict[str, bytes] | None = None, **extra: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("net/data.pkl", b"\x80\x02" + ops(root) + b".")
        for key, content in (data or {}).items():
            out.writestr(f"net/data/{key}", content)
        for name, content in extra.items():
            out.writestr(f"net/{name.replace('__', '.')}", content)
    return buffer.getvalue()


def plain(root: object) -> bytes:
    """What ``pickle.dump`` writes, without a number before it."""
    return b"\x80\x02" + ops(root) + b"."


PACKERS = pytest.mark.parametrize("pack", [archive, stream], ids=["zip", "stream"])
TOUCH = f"open({CANARY!r}, 'w').close()"
SHELL = f"touch {CANARY}"

ATTACKS: dict[str, tuple[str, Callable[[], object]]] = {
    "posix.system": ("posix.system", lambda: call("posix", "system", SHELL)),
    "os.system": ("os.system", lambda: call("os", "system", SHELL)),
    "eval": ("builtins.eval", lambda: call("builtins", "eval", TOUCH)),
    "exec": ("builtins.exec", lambda: call("builtins", "exec", TOUCH)),
    "python 2 eval": ("builtins.eval", lambda: call("__builtin__", "eval", TOUCH)),
    "getattr": ("builtins.getattr", lambda: call("builtins", "getattr", "x", "upper")),
    "import": ("builtins.__import__", lambda: call("builtins", "__import__", "this")),
    "open": ("builtins.open", lambda: call("builtins", "open", CANARY, "w")),
    "Popen": (
        "subprocess.Popen",
        lambda: call("subprocess", "Popen", ["touch", CANARY]),
    ),
    "partial": (
        "functools.partial",
        lambda: call("functools", "partial", Global("posix", "system"), SHELL),
    ),
    "numpy array": (
        "numpy.core.multiarray._reconstruct",
        lambda: call("numpy.core.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,)),
    ),
    "dotted name": (
        "torch._utils._rebuild_tensor.__globals__",
        lambda: call("torch._utils", "_rebuild_tensor.__globals__", 1),
    ),
    "split elsewhere": (
        "collections.OrderedDict",
        lambda: Raw(ops("") + ops("collections.OrderedDict") + b"\x93)R"),
    ),
    "INST": ("posix.system", lambda: Raw(b"(" + ops(SHELL) + b"iposix\nsystem\n")),
    "OBJ": ("posix.system", lambda: Raw(b"(" + ops(Global("posix", "system")) + ops(SHELL) + b"o")),
    "STACK_GLOBAL": (
        "posix.system",
        lambda: Raw(ops("posix") + ops("system") + b"\x93" + ops((SHELL,)) + b"R"),
    ),
    "memo": (
        "posix.system",
        lambda: Raw(ops(Global("posix", "system")) + b"q\x07" + b"0h\x07" + ops((SHELL,)) + b"R"),
    ),
    "EXT": ("copyreg.extension 7", lambda: Raw(b"\x82\x07)R")),
    "a class kept inert": (
        "subprocess.Popen",
        lambda: Raw(ops(Global("subprocess", "Popen")) + b"2)\x81b" + ops(([CANARY],)) + b"R"),
    ),
    "an instance": ("Record", lambda: Raw(ops(Global("nets", "Net")) + b")\x81" + b")R")),
    "a result": ("dict", lambda: Raw(ops(call("collections", "OrderedDict")) + b")R")),
    "inside a module": ("posix.system", lambda: module_ops(call("posix", "system", SHELL))),
    "inside a parameter": (
        "posix.system",
        lambda: module_ops(
            call("torch._utils", "_rebuild_parameter", call("posix", "system", SHELL), True, {})
        ),
    ),
    "inside a persistent id": (
        "posix.system",
        lambda: pid_ops("storage", call("posix", "system", SHELL), "0", "cpu", 1),
    ),
    "through a tensor's type": (
        "posix.system",
        lambda: call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            Global("posix", "system"),
            Global("torch", "Tensor"),
            (SHELL,),
            {},
        ),
    ),
    "as a state": (
        "posix.system",
        lambda: Raw(
            ops(Global("nets", "Net")) + b")\x81" + ops(call("posix", "system", "")) + b"b"
        ),
    ),
    "as a key": ("posix.system", lambda: Raw(b"}" + ops(call("posix", "system", SHELL)) + b"Ns")),
}


@pytest.mark.parametrize("pack", [archive, stream, plain], ids=["zip", "stream", "plain"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_calls_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any, attack: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, make = ATTACKS[attack]
    Path("net.pth").write_bytes(pack(make()))
    with pytest.raises(UnsafeCheckpointError) as caught:
        open_checkpoint("net.pth")
    assert name in caught.value.message
    assert "nothing was run" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


class Evil:
    """What the usual exploit looks like; ``run`` is called while it is unpickled."""

    def __init__(self, run: Callable[..., object], *args: object) -> None:
        self.reduced: tuple[object, ...] = (run, args)

    def __reduce__(self) -> Any:
        return self.reduced


class EvilWithState(Evil):
    def __reduce__(self) -> Any:
        return (*self.reduced, {"key": "value"})


@FORMS
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", [Evil, EvilWithState])
@pytest.mark.parametrize(
    ("name", "run", "args"),
    [
        (f"{os.system.__module__}.system", os.system, (SHELL,)),
        ("builtins.eval", builtins.eval, (TOUCH,)),
        ("subprocess.Popen", subprocess.Popen, (["touch", CANARY],)),
        ("functools.partial", functools.partial, (os.system, SHELL)),
    ],
    ids=["system", "eval", "Popen", "partial"],
)
def test_exploits_made_by_torch_save(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zip_form: bool,
    nested: bool,
    kind: type[Evil],
    name: str,
    run: Callable[..., object],
    args: tuple[object, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    evil: object = kind(run, *args)
    if nested:
        module = nn.Linear(1, 1)
        module._parameters["weight"] = evil  # type: ignore[assignment]
        evil = {"model": module}
    save(evil, Path("net.pth"), zip_form)
    with pytest.raises(UnsafeCheckpointError, match=name):
        open_checkpoint("net.pth")
    assert not Path(CANARY).exists()


def test_setstate_of_a_real_class_is_not_reached(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(self: object, state: object) -> None:
        pytest.fail("__setstate__ was reached")

    path = save({"model": foreign.Block()}, tmp_path / "net.pt")
    monkeypatch.setattr(foreign.Block, "__setstate__", boom)
    assert list(open_checkpoint(path).groups) == ["model"]


def test_nothing_in_the_table_can_be_changed_by_a_pickle() -> None:
    """BUILD on a function of the table changes nothing: it is a name until it is called."""
    name = Global("collections", "OrderedDict")
    code = ops(name) + ops({"__defaults__": (1,)}) + b"b."
    result = PickleMachine({}, lambda pid: pid).run(io.BytesIO(code))
    assert result == Name("collections", "OrderedDict")


def test_names_are_shown_without_control_characters() -> None:
    code = Raw(ops("os\x1b[2J") + ops("system" * 100) + b"\x93)R.")
    with pytest.raises(UnsafeCheckpointError) as caught:
        PickleMachine({}, lambda pid: pid).run(io.BytesIO(code.code))
    assert "os?[2J.systemsystem" in caught.value.message
    assert len(caught.value.message) < 400


def test_instances_are_records() -> None:
    state = b"(" + ops({"a": 1}) + ops({"slot": 2}) + b"t"
    code = ops(Global("x", "Y")) + ops((1,)) + b"\x81" + state + b"b" + ops("k") + b"Ns.\x00"
    result = PickleMachine({}, lambda pid: pid).run(io.BytesIO(code))
    assert isinstance(result, Record)
    assert (result.cls, result.args) == (Name("x", "Y"), (1,))
    assert result.state == {"a": 1, "slot": 2}
    assert result.items == {"k": None}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_of_every_protocol(protocol: int) -> None:
    value: list[object] = [
        1,
        -5,
        2**80,
        1.5,
        "é\n",
        b"\x00\xff",
        None,
        True,
        False,
        (),
        (1,),
        (1, 2),
        {"a": []},
    ]
    value += [(1, 2, 3), (1, 2, 3, 4), list(range(2000)), {n: n for n in range(2000)}]
    value += [{1, 2}, frozenset({3}), "x" * 300, OrderedDict(a=1)]
    data = pickle.dumps((value, value), protocol)
    result = PickleMachine(inert_pickle._CALLS, lambda pid: pid).run(io.BytesIO(data))
    assert result == (value, value)


def test_modules_of_old_torch(tmp_path: Path) -> None:
    """Before 1.4 every module held a backend that pickles as a call."""
    pid = pid_ops("storage", Global("torch.cuda", "FloatStorage"), "k", "cuda:0", 2, None)
    backend = call("torch.nn.backends.thnn", "_get_thnn_function_backend")
    weight = call("torch.nn.parameter", "Parameter", rebuild(pid, 0, (2,), (1,)), True)
    state: dict[str, object] = {"_backend": backend}
    state |= {"_parameters": {"weight": weight, "bias": None}}
    state |= {"_buffers": {}, "_modules": {}, "training": True}
    cls = pid_ops("module", Global("models", "Generator"), "/x/models.py", "class Generator: ...")
    root = {"epoch": 130, "generator": Raw(ops(cls) + b")\x81" + ops(state) + b"b")}
    path = tmp_path / "srgan.pth.tar"
    path.write_bytes(stream(root, ["k"], struct.pack("<q2f", 2, 0.5, 1.5)))
    assert open_checkpoint(path).groups["generator"]["weight"].tolist() == [0.5, 1.5]


# -- files that are something else, or damaged ------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html>", "web page"),
        (b"hello", "not a"),
        (b"\x00" * 257 + b"ustar\x0000" + b"\x00" * 512, "tar archive"),
    ],
)
def test_files_that_are_no_checkpoint(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    assert message in str(error_of(path))


def test_missing_file_and_device(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "net.pth").message
    os.mkfifo(tmp_path / "fifo")
    assert "neither" in error_of(tmp_path / "fifo").message


def test_plain_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    assert "holds no weights" in error_of(tmp_path / "a.pkl").message
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(1))
    assert "not a PyTorch checkpoint" in error_of(tmp_path / "a.pkl").message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_modules_in_a_plain_pickle(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    net = foreign.Network().eval()
    del net.dtype
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G": net, "note": "x", "step": 3}, protocol))
    expected = {name: t.clone() for name, t in net.state_dict().items()}
    forget(monkeypatch)
    found = open_checkpoint(tmp_path / "a.pkl")
    assert_same(found.groups["G"], expected)


def test_storages_of_a_plain_pickle(tmp_path: Path) -> None:
    def weight(content: object) -> Raw:
        return rebuild(call("torch.storage", "_load_from_bytes", content), 0, (2,), (1,))

    path = tmp_path / "a.pkl"
    values = struct.pack("<qff", 2, 1.5, -2.0)
    part = pid_ops("storage", Global("torch", "FloatStorage"), "0", "cpu", 2, None)
    good = stream(part, ["0"], values)

    def packed(content: object) -> bytes:
        if isinstance(content, bytes):  # as protocol 3 and later write them
            content = Raw(b"B" + struct.pack("<I", len(content)) + content)
        return plain({"w": weight(content)})

    path.write_bytes(packed(good))
    assert open_checkpoint(path).groups[""]["w"].tolist() == [1.5, -2.0]
    for content in (
        b"",
        "text",
        good[:-1],
        stream({"a": part}, ["0"], values),
        stream(call("torch.storage", "_load_from_bytes", "x"), [], b""),
        stream(call("posix", "system", "x"), [], b""),
        archive(part, {"0": values}),
    ):
        path.write_bytes(packed(content))
        error_of(path)


def test_persistent_objects_are_records(tmp_path: Path) -> None:
    def made(meta: object) -> Raw:
        return call("torch_utils.persistence", "_reconstruct_persistent_obj", meta)

    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_secret": 1, "gain": 0.5}
    meta = {"type": "class", "module_src": TOUCH, "class_name": "Net", "state": state}
    path = tmp_path / "a.pkl"
    path.write_bytes(plain({"G": made(meta)}))
    found = read_inert(path)["G"]  # type: ignore[index]
    assert isinstance(found, Record)
    assert str(found.cls) == "torch_utils.persistence.Net"
    assert dict(module_settings({"G": found})) == {"G": {"gain": 0.5}}
    for wrong in ({**meta, "type": "function"}, {**meta, "state": 3}, 5, {}):
        path.write_bytes(plain({"G": made(wrong)}))
        assert "persistent object" in error_of(path).found


def test_tensors_beside_state_dicts(tmp_path: Path) -> None:
    average = torch.arange(4.0)
    tree = {
        "g_ema": nn.Linear(2, 2).state_dict(),
        "latent_avg": average,
        "mask": torch.ones(2, dtype=torch.bool),
        "deep": {"a": torch.ones(3), "b": 1, "c": 2},
        "step": 3,
    }
    found = open_checkpoint(save(tree, tmp_path / "a.pt"))
    assert set(found.groups) == {"g_ema"}
    assert_same(found.singles, {"latent_avg": average, "deep.a": torch.ones(3)})


def test_settings_of_whole_modules(
    tmp_path: Path, foreign: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"model": foreign.Network()}, tmp_path / "a.pth")
    forget(monkeypatch)
    settings = open_checkpoint(tmp_path / "a.pth").settings["model"]
    assert settings["blocks.0.conv.in_channels"] == 3
    assert settings["training"] is True
    assert not any(part.startswith("_") for name in settings for part in name.split("."))


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archive({}, constants__pkl=b"."))
    assert "TorchScript" in error_of(path).message


def test_checkpoint_without_weights(tmp_path: Path) -> None:
    error = error_of(save({"epoch": 3, "lr": 0.1}, tmp_path / "a.pt"))
    assert "no weights" in error.message
    assert "epoch, lr" in error.found


@pytest.mark.parametrize(
    ("member", "found"), [("readme.txt", "readme.txt"), ("net/data.pkl", "compressed")]
)
def test_zip_of_something_else(tmp_path: Path, member: str, found: str) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(member, b"x" * 1000)
    assert found in error_of(path).found


def test_zip_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    content = bytearray(archive({}, {"0": b"\0" * 8}))
    directory = content.rindex(b"PK\x01\x02")  # of data/0: both sizes become 2 GiB
    content[directory + 20 : directory + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "a.pt").write_bytes(content)
    assert "2147483" in error_of(tmp_path / "a.pt").found


def test_big_endian_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archive(module_ops(None), byteorder=b"big"))
    with pytest.raises(CheckpointError, match="kind") as caught:
        read_inert(path)
    assert "byte order 'big'" in caught.value.found


FLOATS = pid_ops("storage", Global("torch", "FloatStorage"), "0", "cpu", 4)


@pytest.mark.parametrize(
    "weight",
    [
        rebuild(FLOATS, 0, (5,), (1,)),
        rebuild(FLOATS, 1, (4,), (1,)),
        rebuild(FLOATS, 0, (2, 2), (3, 1)),
        rebuild(FLOATS, -1, (1,), (1,)),
        rebuild(FLOATS, 0, (-1,), (1,)),
        rebuild(FLOATS, 0, (2,), (-1,)),
        rebuild(FLOATS, 0, (2, 2), (1,)),
        rebuild(FLOATS, 0, (2**62, 4), (0, 1)),
        rebuild(FLOATS, 0, (2**70,), (0,)),
        rebuild(FLOATS, 0, (1,) * 65, (1,) * 65),
        rebuild(FLOATS, 0, 4, 1),
        rebuild(FLOATS, "0", (1,), (1,)),
        rebuild(FLOATS, 0, (1.0,), (1,)),
        rebuild(FLOATS, True, (1,), (1,)),
        rebuild("storage", 0, (1,), (1,)),
        rebuild(pid_ops("storage", Global("torch", "FloatStorage"), "0", "cpu", 5), 0, (1,), (1,)),
        rebuild(pid_ops("storage", Global("torch", "FloatStorage"), "9", "cpu", 4), 0, (1,), (1,)),
        rebuild(pid_ops("storage", Global("torch", "FloatStorage"), "0", "cpu", -4), 0, (0,), (1,)),
        rebuild(pid_ops("storage", Global("torch", "QInt8Storage"), "0", "cpu", 4), 0, (1,), (1,)),
        rebuild(pid_ops("storage", Global("evil", "FloatStorage"), "0", "cpu", 4), 0, (1,), (1,)),
        rebuild(pid_ops("storage", "FloatStorage", "0", "cpu", 4), 0, (1,), (1,)),
        rebuild(
            pid_ops("storage", Global("torch", "FloatStorage"), "0", "cpu", 4, ("v", 3, 2)),
            0,
            (1,),
            (1,),
        ),
        rebuild(pid_ops("other", 1), 0, (1,), (1,)),
        rebuild(Raw(ops(3) + b"Q"), 0, (1,), (1,)),
        rebuild(Raw(b"Pjunk\n"), 0, (1,), (1,)),
        call("torch._utils", "_rebuild_parameter", 3, True, {}),
        call("torch._utils", "_rebuild_qtensor"),
        call("torch._utils", "_rebuild_sparse_tensor"),
        call("collections", "OrderedDict", 3),
        call("torch", "Size", "ab"),
        call("_codecs", "encode", "x", "rot13"),
        Raw(b"}((((ttttNs"),  # tuples within tuples as a key
        Raw(b"}]Ns"),
        Raw(b"NNb0Na"),
        Raw(b"h\x63"),
        Raw(b"\x80\x63N"),
        Raw(b"\x97N"),
    ],
)
@PACKERS
def test_malformed_pickles(tmp_path: Path, pack: Any, weight: Raw) -> None:
    path = tmp_path / "a.pt"
    root = module_ops(weight)
    data = b"\0" * 16
    content = pack(root, {"0": data}) if pack is archive else pack(root, ["0"], b"\4" + b"\0" * 23)
    path.write_bytes(content)
    assert not isinstance(error_of(path), UnsafeCheckpointError)


def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    sparse = {"a": torch.ones(2, 2), "b": torch.ones(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse["a"] = sparse["a"].to_sparse()
        path = save(sparse, tmp_path / "a.pt")
        assert "parameter a" in error_of(path).message
        meta = save({"a": torch.ones(2, device="meta")}, tmp_path / "b.pt")
    assert "meta" in error_of(meta).found


# -- trees that would never end ---------------------------------------------------------------


def test_mappings_shared_on_every_level() -> None:
    tree: Any = {"w": torch.ones(2)}
    for _ in range(60):
        tree = {"a": tree, "b": tree}
    assert len(dict(state_dicts(tree))) <= 1


def test_modules_shared_on_every_level() -> None:
    def module(**children: Record) -> Record:
        state: dict[object, object] = {"_parameters": {}, "_buffers": {}, "_modules": children}
        return Record(Name("x", "Y"), state=state)

    tree = module()
    for _ in range(60):
        tree = module(a=tree, b=tree)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        module_tensors(tree)
    assert "without end" in caught.value.found
    loop = module()
    loop.state["_modules"]["self"] = loop  # type: ignore[index]
    with pytest.raises(CheckpointError):
        module_tensors(loop)


def test_deep_nesting(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(archive(Raw(b"]" * 50_000 + b"a" * 49_999)))
    error_of(path)


# -- damage at every place --------------------------------------------------------------------


def small(tmp_path: Path, zip_form: bool) -> bytes:
    return save({"model": nn.Linear(2, 2), "epoch": 3}, tmp_path / "a.pt", zip_form).read_bytes()


@FORMS
def test_truncated_anywhere(tmp_path: Path, zip_form: bool) -> None:
    content = small(tmp_path, zip_form)
    path = tmp_path / "cut.pt"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        error_of(path)


@FORMS
def test_altered_anywhere(tmp_path: Path, zip_form: bool) -> None:
    """A changed byte gives a CheckpointError or, in a value, another value."""
    content = small(tmp_path, zip_form)
    path = tmp_path / "altered.pt"
    chance = random.Random(7)
    for _ in range(600):
        altered = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            altered[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(altered)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            assert str(error)  # noqa: PT017 - either outcome is right


def test_plain_pickle_damaged_anywhere(tmp_path: Path) -> None:
    content = pickle.dumps({"model": nn.Linear(2, 2), "epoch": 3})
    path = tmp_path / "a.pkl"
    for length in range(0, len(content), 11):
        path.write_bytes(content[:length])
        error_of(path)
    chance = random.Random(11)
    for _ in range(400):
        altered = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            altered[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(altered)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            assert str(error)  # noqa: PT017 - either outcome is right


def test_random_opcodes(tmp_path: Path) -> None:
    chance = random.Random(3)
    bits = [b"(", b")", b"]", b"}", b"N", b"0", b"1", b"2", b"K\x01", b"q\x00", b"h\x00", b"a"]
    bits += [b"e", b"s", b"u", b"t", b"l", b"d", b"b", b"\x81", b"\x85", b"\x86", b"\x87", b"\x8f"]
    bits += [b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"R", b"Q", b"o", b"X\x01\0\0\0a"]
    bits += [Global("collections", "OrderedDict").code, FLOATS.code, b"iposix\nsystem\n"]
    path = tmp_path / "a.pt"
    for _ in range(1500):
        path.write_bytes(stream(Raw(b"".join(chance.choices(bits, k=chance.randint(1, 20))))))
        error_of(path)


def test_the_registry_of_extensions_is_not_used(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 0xF0)
    try:
        (tmp_path / "a.pt").write_bytes(stream(Raw(b"\x82\xf0" + ops(("exit 1",)) + b"R")))
        assert isinstance(error_of(tmp_path / "a.pt"), UnsafeCheckpointError)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
