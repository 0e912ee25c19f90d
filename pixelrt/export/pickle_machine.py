"""Reads a pickle without running it.

``pickle.Unpickler`` imports what the file names and calls what the file says. This machine
knows the same opcodes (``pickletools`` splits the stream) and does neither:

- a global is a ``Name``, never an import;
- an instance is a ``Record`` of its class's name, arguments and state; no ``__new__``,
  ``__setstate__`` or ``__reduce__`` of anything is reached;
- a call is made only when its ``Name`` stands in the table of the caller, whose functions
  are ours; any other call raises ``UnsafeCheckpointError`` with the name.

The same idea as ``torch/_weights_only_unpickler.py``, which refuses whole modules.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from pixelrt.errors import CheckpointError, UnsafeCheckpointError

_HIGHEST_PROTOCOL = 5


def shown(text: str) -> str:
    """``text`` as it may be shown: the file chose it and a terminal shows it, so it is
    shortened and without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:200])


@dataclass(frozen=True)
class Name:
    """A global that a pickle names: a class or a function, not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False)
class Record:
    """An instance of a class, as data. ``items`` and ``appended`` are what a subclass of
    ``dict`` or ``list`` holds."""

    cls: Name
    args: tuple[object, ...] = ()
    state: dict[object, object] = field(default_factory=dict)
    items: dict[object, object] = field(default_factory=dict)
    appended: list[object] = field(default_factory=list)


Call = Callable[..., object]
Persistent = Callable[[object], object]


def refuse_call(callee: object) -> NoReturn:
    """Raises ``UnsafeCheckpointError`` for a call that the pickle asks for."""
    # Only a Name is printed: the repr of anything else may be as large as the file likes.
    name = str(callee) if isinstance(callee, Name) else f"a {type(callee).__name__}"
    raise UnsafeCheckpointError(
        f"the checkpoint asks to call {name} while it is loaded; nothing was run",
        found=f"a call of {name}",
        expected="tensors, plain values and modules",
        hint="if you trust where it came from, load it there with PyTorch and save "
        "model.state_dict() instead",
    )


def malformed(found: str, expected: str = "a pickle as torch.save writes it") -> CheckpointError:
    """The error for a pickle that breaks the rules of its format."""
    return CheckpointError(
        "the checkpoint is damaged or not a checkpoint",
        found=found,
        expected=expected,
        hint="download or copy it again",
    )


def hashable(key: object) -> object:
    """``key``, if it is cheap to hash; raises ``CheckpointError`` otherwise.

    Tuples within tuples are refused: hashing them takes exponential time when one tuple is
    shared on every level.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, (tuple, frozenset, list, dict, set, bytearray)) for part in parts):
        raise malformed(f"a {type(key).__name__} of containers as a key")
    return key


class PickleMachine:
    """Runs one pickle over plain stacks.

    ``calls``: what a REDUCE of a ``Name`` does; ``persistent``: what a persistent id stands
    for. Both return plain data or records.
    """

    def __init__(self, calls: Mapping[Name, Call], persistent: Persistent) -> None:
        self._calls = calls
        self._persistent = persistent
        self._memo: dict[int, object] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []

    def run(self, file: IO[bytes]) -> object:
        """The object of the pickle that starts at the file's position; the position ends
        after it.

        Raises ``UnsafeCheckpointError`` for calls that are not in the table,
        ``CheckpointError`` for wrong opcodes and whatever ``pickletools`` and the wrong
        types of a damaged pickle raise (``ValueError``, ``TypeError``, ``IndexError`` ...).
        """
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name in _LITERALS:
                self._stack.append(arg)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _HANDLERS:
                _HANDLERS[opcode.name](self, arg)
            else:
                raise malformed(f"the pickle opcode {opcode.name}")
        return self._stack.pop()

    # -- stack ------------------------------------------------------------------------

    def _mark(self, _: object) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _pop_mark(self, _: object) -> None:
        self._to_mark()

    def _dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _proto(self, version: int) -> None:
        if version > _HIGHEST_PROTOCOL:
            raise malformed(f"pickle protocol {version}", f"at most {_HIGHEST_PROTOCOL}")

    def _nothing(self, _: object) -> None:
        """FRAME is a reading aid and STOP ends the stream by itself."""

    # -- containers -------------------------------------------------------------------

    def _append(self, _: object) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _appends(self, _: object) -> None:
        self._extend(self._to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Record):
            target.appended.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise malformed(f"items appended to a {type(target).__name__}")

    def _setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key, value])

    def _setitems(self, _: object) -> None:
        self._update(self._to_mark())

    def _update(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict):
            raise malformed(f"keys set on a {type(target).__name__}")
        items.update(_pairs(flat))

    def _additems(self, _: object) -> None:
        items = self._to_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise malformed(f"items added to a {type(target).__name__}")
        target.update(hashable(item) for item in items)

    def _list(self, _: object) -> None:
        self._stack_new(self._to_mark())

    def _tuple(self, _: object) -> None:
        self._stack_new(tuple(self._to_mark()))

    def _dict(self, _: object) -> None:
        self._stack_new(_pairs(self._to_mark()))

    def _frozenset(self, _: object) -> None:
        self._stack_new(frozenset(hashable(item) for item in self._to_mark()))

    def _stack_new(self, value: object) -> None:
        # A line of its own: _to_mark() replaces the stack, so it has to be done by now.
        self._stack.append(value)

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack.pop() for _ in range(count))
        self._stack.append(items[::-1])

    # -- names, instances and calls ---------------------------------------------------

    def _global(self, arg: str) -> None:
        self._stack.append(_name_of(*arg.split(" ", 1)))

    def _stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise malformed("a global whose name is not text")
        self._stack.append(_name_of(module, name))

    def _reduce(self, _: object) -> None:
        args, callee = self._stack.pop(), self._stack.pop()
        if not isinstance(callee, Name) or callee not in self._calls:
            refuse_call(callee)
        if not isinstance(args, tuple):
            raise malformed(f"arguments that are a {type(args).__name__}", "a tuple")
        self._stack.append(self._calls[callee](*args))

    def _newobj(self, _: object) -> None:
        args, cls = self._stack.pop(), self._stack.pop()
        self._stack.append(_record(cls, args))

    def _newobj_ex(self, _: object) -> None:
        kwargs, args, cls = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(_record(cls, (args, kwargs)))

    def _inst(self, arg: str) -> None:
        refuse_call(_name_of(*arg.split(" ", 1)))

    def _obj(self, _: object) -> None:
        refuse_call(self._to_mark()[0])

    def _ext(self, code: int) -> None:
        # The registry of extension codes belongs to the process, not to the file.
        refuse_call(Name("copyreg", f"extension {code}"))

    def _build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Record):
            _set_state(target, state)
        # Attributes of a dict (state_dict's _metadata) or of a tensor are of no use here.

    def _persid(self, pid: object) -> None:
        self._stack.append(self._persistent(pid))

    def _binpersid(self, _: object) -> None:
        pid = self._stack.pop()
        self._stack.append(self._persistent(pid))


def _name_of(module: str, name: str) -> Name:
    """Python 2's names, which protocols before 3 always use, become today's
    (``commands.Popen`` is ``subprocess.Popen``)."""
    if (module, name) in NAME_MAPPING:
        return Name(*NAME_MAPPING[module, name])
    return Name(IMPORT_MAPPING.get(module, module), name)


def _pairs(flat: list[Any]) -> dict[object, object]:
    if len(flat) % 2:
        raise malformed("a key without a value")
    return {hashable(key): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


def _record(cls: object, args: object) -> Record:
    if not isinstance(cls, Name) or not isinstance(args, tuple):
        raise malformed(f"an instance of a {type(cls).__name__}", "an instance of a class")
    return Record(cls, args)


def _set_state(record: Record, state: object) -> None:
    # (attributes, slots) is what copyreg makes for classes with __slots__.
    parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for part in parts:
        if isinstance(part, dict):
            record.state.update(part)


_LITERALS = frozenset(
    (
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING",
        "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
        "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    )
)  # fmt: skip

_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}

_M = PickleMachine
_HANDLERS: Mapping[str, Callable[[PickleMachine, Any], None]] = {
    "PROTO": _M._proto,
    "FRAME": _M._nothing,
    "STOP": _M._nothing,
    "MARK": _M._mark,
    "POP": _M._pop,
    "POP_MARK": _M._pop_mark,
    "DUP": _M._dup,
    "PUT": _M._put,
    "BINPUT": _M._put,
    "LONG_BINPUT": _M._put,
    "MEMOIZE": _M._memoize,
    "GET": _M._get,
    "BINGET": _M._get,
    "LONG_BINGET": _M._get,
    "APPEND": _M._append,
    "APPENDS": _M._appends,
    "SETITEM": _M._setitem,
    "SETITEMS": _M._setitems,
    "ADDITEMS": _M._additems,
    "LIST": _M._list,
    "TUPLE": _M._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "DICT": _M._dict,
    "FROZENSET": _M._frozenset,
    "GLOBAL": _M._global,
    "STACK_GLOBAL": _M._stack_global,
    "REDUCE": _M._reduce,
    "NEWOBJ": _M._newobj,
    "NEWOBJ_EX": _M._newobj_ex,
    "BUILD": _M._build,
    "INST": _M._inst,
    "OBJ": _M._obj,
    "EXT1": _M._ext,
    "EXT2": _M._ext,
    "EXT4": _M._ext,
    "PERSID": _M._persid,
    "BINPERSID": _M._binpersid,
}
