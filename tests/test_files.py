"""Atomic writing: either the whole file or folder, or what was there before."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pixelrt import files
from pixelrt.errors import OutputError
from pixelrt.files import atomic_folder, atomic_write, sha256_file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(path: Path, data: bytes, **options: bool) -> None:
    with atomic_write(path, **options) as file:
        file.write(data)


def test_a_new_file_has_its_bytes_and_the_umask_s_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "a.bin", b"abc")
    finally:
        os.umask(old)
    assert (tmp_path / "a.bin").read_bytes() == b"abc"
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.bin"]


def test_replacing_keeps_the_mode_as_open_would(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def _write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit, GeneratorExit])
def test_any_exception_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error):
        _write_half(path, error)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "larger than allowed"),
        (errno.EIO, "input/output error"),
        (errno.EROFS, "read-only"),
        (errno.EBUSY, "busy"),
    ],
)
def test_a_failing_disk_is_said_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    path = tmp_path / "a.bin"
    with pytest.raises(OutputError, match=words) as caught:
        write(path, b"abc")
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert names(tmp_path) == []


def test_a_failing_rename_removes_the_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "no", str(self), None, str(target))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match="permission"):
        write(tmp_path / "a.bin", b"abc")
    assert names(tmp_path) == []


def test_no_clobber(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write(path, b"first", overwrite=False)
    with pytest.raises(OutputError, match="exists already"):
        write(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_no_clobber_against_a_file_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", _no_links)
    path = tmp_path / "a.bin"
    with pytest.raises(OutputError, match="exists already"):
        _write_while_another_appears(path)
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.bin"]


def test_no_clobber_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", _no_links)
    write(tmp_path / "a.bin", b"abc", overwrite=False)
    assert (tmp_path / "a.bin").read_bytes() == b"abc"
    assert names(tmp_path) == ["a.bin"]


def _write_while_another_appears(path: Path) -> None:
    with atomic_write(path, overwrite=False) as file:
        file.write(b"mine")
        path.write_bytes(b"theirs")


def _no_links(self: Path, target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(self), None, str(target))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "missing" / "a.bin", "folder does not exist"),
        (lambda folder: folder / "file" / "a.bin", "not a folder"),
        (lambda folder: folder / ("x" * 300), "name is too long"),
        (lambda folder: folder / "folder", "it is a folder"),
        (lambda folder: folder / "pipe", "not a regular file"),
        (lambda folder: folder / "loop", "could not be written"),
        (lambda folder: folder / "zero\0byte", "could not be written"),
    ],
)
def test_impossible_targets(tmp_path: Path, make, words: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = names(tmp_path)
    with pytest.raises(OutputError, match=words):
        write(make(tmp_path), b"abc")
    assert names(tmp_path) == before


def test_the_longest_allowed_name_works(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255), b"abc")
    assert names(tmp_path) == ["x" * 255]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real = tmp_path / "real" / "a.bin"
    real.parent.mkdir()
    (tmp_path / "link").symlink_to(real)
    write(tmp_path / "link", b"abc")
    assert (tmp_path / "link").is_symlink()
    assert real.read_bytes() == b"abc"


def test_an_error_about_another_file_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.bin"):
        Path("/nowhere/input").read_bytes()
    assert names(tmp_path) == []


def test_a_real_file_size_limit(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from pixelrt.errors import OutputError
        from pixelrt.files import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with atomic_write(Path(sys.argv[1])) as file:
                file.write(bytes(100_000))
        except OutputError as error:
            print(error)
    """
    result = _python(code, str(tmp_path / "a.bin"))
    assert "larger than allowed" in result.stdout, result.stderr
    assert names(tmp_path) == []


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(files.__file__).parents[1],
    )


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from pixelrt.files import atomic_folder, atomic_write
    path = Path(sys.argv[1])
    if sys.argv[2] == "file":
        with atomic_write(path) as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "folder":
        with atomic_folder(path, overwrite=True) as folder:
            (folder / "half").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "between the renames":
        rename = Path.rename
        def first_only(self, target):
            rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)
        Path.rename = first_only
        with atomic_folder(path, overwrite=True) as folder:
            pass
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_leftovers_of_a_killed_process_are_removed_by_the_next(tmp_path: Path, what: str) -> None:
    assert _python(KILLED, str(tmp_path / "a"), what).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    assert names(tmp_path)[0].startswith(".pixelrt-")
    write(tmp_path / "b", b"abc")
    assert names(tmp_path) == ["b"]


def test_a_folder_moved_aside_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_bytes(b"old")
    _python(KILLED, str(tmp_path / "a"), "between the renames")
    assert not (tmp_path / "a").exists()
    write(tmp_path / "b", b"abc")
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a" / "old").read_bytes() == b"old"


def test_temporary_files_of_the_living_and_of_other_machines_stay(tmp_path: Path) -> None:
    here = files._place()
    others = [f".pixelrt-{here}-{os.getppid()}-00000000", ".pixelrt-0123456789ab-999999-00000000"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / f".pixelrt-{here}-99999999-00000000").touch()
    write(tmp_path / "z", b"abc")
    assert names(tmp_path) == sorted([*others, "z"])


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with atomic_folder(path) as folder:
        (folder / "graphs").mkdir()
        (folder / "graphs" / "a.onnx").write_bytes(b"abc")
        assert not path.exists()
    assert (path / "graphs" / "a.onnx").read_bytes() == b"abc"
    assert names(tmp_path) == ["bundle"]


def test_a_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for word in ("one", "two"):
        with atomic_folder(path, overwrite=True) as folder:
            (folder / word).touch()
    assert names(path) == ["two"]
    with pytest.raises(OutputError, match="exists already"), atomic_folder(path) as folder:
        (folder / "three").touch()
    assert names(path) == ["two"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_failing_folder_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").touch()
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        _fill_half(path, error)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["bundle"]


def _fill_half(path: Path, error: BaseException) -> None:
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "new").touch()
        raise error


def test_a_failing_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def fail_second(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(errno.EIO, "broken", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OutputError, match="input/output"), atomic_folder(path, overwrite=True):
        pass
    assert names(path) == ["old"]
    assert names(tmp_path) == ["bundle"]


def test_a_folder_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(OutputError, match="it is a file"), atomic_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(FileNotFoundError):
        sha256_file(tmp_path / "b")
