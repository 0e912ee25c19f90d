"""The plan cache: one build for many, no damage unseen, nothing left by the killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pixelrt.errors import InputError, OutputError, UsageError
from pixelrt.plans import cache as cache_module
from pixelrt.plans import seal as seal_module
from pixelrt.plans.cache import Artefact, Entry, PlanCache


def key(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def never() -> Artefact:
    raise AssertionError("made although it was there")


def maker(data: bytes = b"a plan", **metadata: object) -> Callable[[], Artefact]:
    return lambda: Artefact(data, metadata)


def put(cache: PlanCache, name: object, data: bytes = b"a plan", **metadata: object) -> Path:
    with cache.get_or_make(key(name), maker(data, **metadata)) as entry:
        return entry.path


def rubbish(folder: Path) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in [*(folder / "staging").rglob("*"), *(folder / "locks").rglob("*")]
    ]


def keys(cache: PlanCache) -> list[str]:
    return [stored.key for stored in cache.entries(check=True) if not stored.problem]


PRELUDE = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
from pixelrt.plans.cache import Artefact, PlanCache
folder = Path(sys.argv[1])
def key(name): return hashlib.sha256(str(name).encode()).hexdigest()
"""


@contextmanager
def start(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process; the first line that it prints says that it is where the test wants it."""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(script: str, *arguments: object) -> str:
    with start(script, *arguments) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


BUILDER = """
def make():
    print("making", flush=True)
    sys.stdin.readline()
    return Artefact(b"a plan")
entry = PlanCache(folder).get_or_make(key(1), make)
"""

USER = """
entry = PlanCache(folder).get_or_make(key(1), lambda: Artefact(b"x" * 60))
print(entry.path, flush=True)
time.sleep(300)
"""


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "plans")


# --- hits, misses and what make may do ------------------------------------------------


def test_made_once_then_found(cache: PlanCache) -> None:
    with cache.get_or_make(key(1), maker(b"abc", gpu="sm89", shapes=(1, 2))) as made:
        assert made.made
        assert made.path.read_bytes() == made.read() == b"abc"
    with cache.get_or_make(key(1), never) as found:
        assert not found.made
        assert found.read() == b"abc"
        assert found.metadata == made.metadata == {"gpu": "sm89", "shapes": [1, 2]}
        assert found.sha256 == made.sha256 == hashlib.sha256(b"abc").hexdigest()
        assert found.notes == ()
        found.close()  # twice is allowed
    assert rubbish(cache.folder) == []


@pytest.mark.parametrize("bad", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_a_key_is_a_sha256(cache: PlanCache, bad: str) -> None:
    with pytest.raises(UsageError, match="64 hex digits"):
        cache.get_or_make(bad, never)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), OSError(errno.ENOENT, "no"), KeyboardInterrupt()]
)
def test_what_make_raises_goes_on_and_leaves_nothing(
    cache: PlanCache, error: BaseException
) -> None:
    def fail() -> Artefact:
        raise error

    with pytest.raises(type(error)) as caught:
        cache.get_or_make(key(1), fail)
    assert caught.value is error
    assert cache.entries() == ()
    assert rubbish(cache.folder) == []
    put(cache, 1)


def test_metadata_that_json_cannot_hold_leaves_nothing(cache: PlanCache) -> None:
    with pytest.raises(TypeError):
        put(cache, 1, what=object())
    assert cache.entries() == ()
    assert rubbish(cache.folder) == []


def test_make_may_ask_for_another_key(cache: PlanCache) -> None:
    def make() -> Artefact:
        with cache.get_or_make(key("timing"), maker(b"timings")) as timing:
            return Artefact(timing.read() + b" used")

    with cache.get_or_make(key("plan"), make) as entry:
        assert entry.read() == b"timings used"


def test_threads_make_it_once(cache: PlanCache) -> None:
    made: list[int] = []

    def make() -> Artefact:
        made.append(1)
        time.sleep(0.2)
        return Artefact(b"a plan")

    def ask() -> None:
        cache.get_or_make(key(1), make).close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert rubbish(cache.folder) == []


# --- many processes -------------------------------------------------------------------


def test_sixteen_processes_make_it_once(tmp_path: Path) -> None:
    script = """
    def make():
        with open(folder / "builds", "a") as file:
            file.write("built\\n")
        time.sleep(0.5)
        return Artefact(bytes(100_000), {"n": 1})
    print("ready", flush=True)
    sys.stdin.readline()
    with PlanCache(folder / "plans").get_or_make(key(1), make) as entry:
        assert entry.read() == bytes(100_000) and entry.metadata == {"n": 1}
        print("made" if entry.made else "found")
    """
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(16)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=300)[0] for process in processes)
    assert said == ["found\n"] * 15 + ["made\n"]
    assert (tmp_path / "builds").read_text() == "built\n"
    assert rubbish(tmp_path / "plans") == []


def test_waiting_is_said_and_ends_with_the_other_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 0.1)
    said: list[str] = []
    with start(BUILDER, tmp_path) as builder:
        assert builder.stdin is not None
        assert builder.stdout is not None
        assert builder.stdout.readline() == "making\n"

        def report(text: str) -> None:
            said.append(text)
            builder.communicate("go on\n")

        with PlanCache(tmp_path, report=report).get_or_make(key(1), never) as entry:
            assert not entry.made
    assert said == [f"waiting for another process that is making {key(1)[:12]}"]


def test_a_killed_builder_s_work_is_taken_over(tmp_path: Path) -> None:
    with start(BUILDER, tmp_path) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "making\n"
        threading.Timer(0.3, builder.kill).start()
        with PlanCache(tmp_path).get_or_make(key(1), maker()) as entry:
            assert entry.made
    assert rubbish(tmp_path) == []


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    waiter_script = """
    def say(text): print(text, flush=True)
    PlanCache(folder, report=say).get_or_make(key(1), lambda: Artefact(b""))
    """
    with start(BUILDER, tmp_path) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "making\n"
        with start(waiter_script, tmp_path) as waiter:
            assert waiter.stdout is not None
            assert waiter.stdout.readline().startswith("waiting")
            waiter.send_signal(signal.SIGINT)
            _, err = waiter.communicate(timeout=300)
        assert "KeyboardInterrupt" in err
        assert builder.poll() is None  # and the builder goes on
        builder.kill()
    put(PlanCache(tmp_path), 1)
    assert rubbish(tmp_path) == []


# --- killed at any moment -------------------------------------------------------------

KILLED = """
def make():
    n = random.choice([1, 1000, 200_000])
    return Artefact(os.urandom(n), {"n": n})

def work(seed):
    random.seed(seed)
    cache = PlanCache(folder, max_bytes=600_000)
    while True:
        name = random.randrange(8)
        with cache.get_or_make(key(name), make) as entry:
            assert len(entry.read()) == entry.metadata["n"]
            assert not entry.notes, entry.notes
        if random.random() < 0.1:
            cache.clear()

def fork(seed):
    pid = os.fork()
    if pid == 0:
        try:
            work(seed)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid

random.seed(0)
workers = [fork(seed) for seed in range(3)]
try:
    for round in range(200):
        time.sleep(random.uniform(0.0, 0.04))
        pid = workers.pop(random.randrange(3))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "a worker ended by itself"
        workers.append(fork(1000 + round))
finally:
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_two_hundred_kills_leave_neither_damage_nor_rubbish(tmp_path: Path) -> None:
    run(KILLED, tmp_path)
    cache = PlanCache(tmp_path)
    assert [stored.problem for stored in cache.entries(check=True)] == [""] * len(keys(cache))
    put(cache, "afterwards")
    assert rubbish(tmp_path) == []
    for name in range(8):
        with cache.get_or_make(key(name), maker()) as entry:
            assert entry.notes == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["entries", "staging", "locks", "guard.lock", "collect.lock"]
    )


def test_what_a_killed_process_staged_goes_with_the_next_call(cache: PlanCache) -> None:
    put(cache, 1)
    (cache.folder / "staging" / key(2)).mkdir()
    (cache.folder / "staging" / key(2) / "artefact").write_bytes(b"half")
    for name in (f"{key(2)}.lock", f"{key(1)}.0123456789abcdef.lease"):
        (cache.folder / "locks" / name).touch()
    cache.get_or_make(key(1), never).close()
    assert rubbish(cache.folder) == []


# --- damage ---------------------------------------------------------------------------


def flip(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def change_metadata(path: Path) -> None:
    sealed = json.loads(path.read_text())
    sealed["seal"]["metadata"] = {"gpu": "other"}
    path.write_text(json.dumps(sealed))


def replace_by_link(path: Path) -> None:
    path.rename(path.parents[3] / path.name)
    path.symlink_to(path.parents[3] / path.name)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "flipped-bit": ("artefact was altered", lambda home: flip(home / "artefact", 3)),
    "truncated": (
        "artefact has 2 bytes, not 6",
        lambda home: os.truncate(home / "artefact", 2),
    ),
    "longer": ("has 7 bytes", lambda home: (home / "artefact").write_bytes(b"a plan!")),
    "empty": ("has 0 bytes", lambda home: os.truncate(home / "artefact", 0)),
    "no-artefact": ("artefact: No such file", lambda home: (home / "artefact").unlink()),
    "no-seal": ("seal.json: No such file", lambda home: (home / "seal.json").unlink()),
    "garbage": ("not a seal", lambda home: (home / "seal.json").write_bytes(b"\xff\x00{")),
    "empty-seal": ("not a seal", lambda home: (home / "seal.json").write_bytes(b"")),
    "nested": ("not a seal", lambda home: (home / "seal.json").write_text("[" * 100_000)),
    "other-json": ("not a seal", lambda home: (home / "seal.json").write_text('{"seal": 3}')),
    "metadata": ("seal.json was altered", lambda home: change_metadata(home / "seal.json")),
    "link": ("Too many levels", lambda home: replace_by_link(home / "artefact")),
    "seal-link": ("Too many levels", lambda home: replace_by_link(home / "seal.json")),
    "entry-link": ("not a folder", lambda home: replace_by_link(home)),
    "pipe": ("no file of ours", lambda home: replace_by_pipe(home / "artefact")),
    "writable": ("no file of ours", lambda home: (home / "artefact").chmod(0o666)),
    "a-file": ("not a folder", lambda home: home.rename(home.parents[1] / "x") and home.touch()),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_reported_and_repaired(tmp_path: Path, case: str) -> None:
    reason, harm = DAMAGE[case]
    said: list[str] = []
    cache = PlanCache(tmp_path / "base" / "plans", report=said.append)
    home = put(cache, 1, gpu="this").parent
    harm(home)
    (listed,) = cache.entries(check=True)
    assert reason in listed.problem
    with cache.get_or_make(key(1), maker(b"again", gpu="this")) as entry:
        assert entry.made
        assert entry.read() == b"again"
        assert list(entry.notes) == said
        assert reason in said[0]
        assert "damaged" in said[0]
    with cache.get_or_make(key(1), never) as entry:
        assert entry.notes == ()
    assert rubbish(cache.folder) == []


@pytest.mark.parametrize("name", ["artefact", "seal.json"])
def test_every_flipped_bit_is_found_or_means_nothing(cache: PlanCache, name: str) -> None:
    path = put(cache, 1, n=1).parent / name
    good = path.read_bytes()
    for bit in range(len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        (listed,) = cache.entries(check=True)
        assert listed.problem, f"bit {bit} of {name}: {bytes(data)!r}"


def test_an_entry_of_another_key_is_not_taken(cache: PlanCache) -> None:
    home = put(cache, 1).parent
    home.rename(home.parent / key(2))
    with cache.get_or_make(key(2), maker(b"mine")) as entry:
        assert entry.made
        assert "altered" in entry.notes[0]


def test_damage_after_the_check_is_found_by_read(cache: PlanCache) -> None:
    with cache.get_or_make(key(1), maker()) as entry:
        flip(entry.path)
        with pytest.raises(InputError, match="rebuilt"):
            entry.read()
        entry.path.unlink()
        with pytest.raises(InputError, match="No such file"):
            entry.read()


def test_too_many_open_files_is_no_damage(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            seal_module, "open_file", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "many"))
        )
        with pytest.raises(OutputError, match="many"):
            cache.get_or_make(key(1), never)
    cache.get_or_make(key(1), never).close()


# --- a full disk ----------------------------------------------------------------------


def test_a_file_size_limit_leaves_nothing(tmp_path: Path) -> None:
    script = """
    import resource
    from pixelrt.errors import OutputError
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        PlanCache(folder).get_or_make(key(1), lambda: Artefact(bytes(500_000)))
    except OutputError as exc:
        print(exc)
    """
    assert "larger than allowed" in run(script, tmp_path)
    assert PlanCache(tmp_path).entries() == ()
    assert rubbish(tmp_path) == []


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_nothing(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    put(cache, 0)
    calls = 0

    def full(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if at < 3:
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "rename", lambda *_: full(0))
            calls = 2
        with pytest.raises(OutputError, match="the disk is full"):
            put(cache, 1)
    assert keys(cache) == [key(0)]
    assert rubbish(cache.folder) == []
    put(cache, 1)


# --- for one user only ----------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_user_may_read(cache: PlanCache, umask: int) -> None:
    old = os.umask(umask)
    try:
        with cache.get_or_make(key(1), maker()):
            for path in [cache.folder, *cache.folder.rglob("*")]:
                mode = stat.S_IMODE(path.stat().st_mode)
                assert mode == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(old)


@pytest.mark.parametrize("inner", ["", "entries", "staging", "locks"])
@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(
    cache: PlanCache, inner: str, mode: int
) -> None:
    put(cache, 1)
    (cache.folder / inner).chmod(mode)
    for use in (lambda: put(cache, 1), cache.collect, cache.clear, cache.entries):
        with pytest.raises(OutputError, match="chmod go-w") as caught:
            use()
        assert "executable code" in str(caught.value)
        assert f"{mode:o}" in caught.value.found


def test_a_folder_of_another_user_is_refused(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, 1)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(OutputError, match=f"this is user {other}"):
        put(cache, 1)


@pytest.mark.parametrize("inner", ["entries", "staging", "locks"])
def test_a_link_in_place_of_a_folder_is_refused(cache: PlanCache, inner: str) -> None:
    put(cache, 1)
    elsewhere = cache.folder.parent / "elsewhere"
    (cache.folder / inner).rename(elsewhere)
    (cache.folder / inner).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="symbolic link"):
        put(cache, 1)


def test_the_cache_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "plans").symlink_to(tmp_path / "disk")
    put(PlanCache(tmp_path / "plans"), 1)
    PlanCache(tmp_path / "disk").get_or_make(key(1), never).close()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plans").touch()
    with pytest.raises(OutputError, match="a file"):
        put(PlanCache(tmp_path / "plans"), 1)


# --- the limit ------------------------------------------------------------------------


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, max_bytes=300)
    for name in (1, 2, 3):
        put(cache, name, bytes(100))
    cache.get_or_make(key(1), never).close()
    put(cache, 4, bytes(100))
    assert keys(cache) == [key(3), key(1), key(4)]
    put(cache, 5, bytes(200))
    assert keys(cache) == [key(4), key(5)]
    assert [stored.size for stored in cache.entries()] == [100, 200]


def test_collect_by_hand(tmp_path: Path) -> None:
    for name in (1, 2, 3):
        put(PlanCache(tmp_path), name, bytes(100))
    assert PlanCache(tmp_path).collect() == ()
    assert PlanCache(tmp_path, max_bytes=150).collect() == (key(1), key(2))
    assert rubbish(tmp_path) == []


def test_one_larger_than_the_limit_lives_while_it_is_used(tmp_path: Path) -> None:
    said: list[str] = []
    cache = PlanCache(tmp_path, max_bytes=100, report=said.append)
    put(cache, 1, bytes(60))
    with cache.get_or_make(key(2), maker(bytes(101))) as large:
        assert large.read() == bytes(101)
        assert list(large.notes) == said
        assert "101 bytes, more than the cache's 100" in said[0]
        with cache.get_or_make(key(2), never) as again:
            assert again.path == large.path
        assert large.path.exists()
    assert keys(cache) == [key(1)]
    assert rubbish(tmp_path) == []


def test_an_entry_in_use_elsewhere_stays(tmp_path: Path) -> None:
    small = PlanCache(tmp_path, max_bytes=100)
    with start(USER, tmp_path) as user:
        assert user.stdout is not None
        path = Path(user.stdout.readline().strip())
        put(small, 2, bytes(60))
        put(small, 3, bytes(60))
        assert small.clear() == (key(3),)
        assert path.read_bytes() == b"x" * 60
        user.kill()
    assert small.clear() == (key(1),)
    assert rubbish(tmp_path) == []


def test_an_entry_in_use_here_stays(cache: PlanCache) -> None:
    held: list[Entry] = [cache.get_or_make(key(name), maker()) for name in (1, 2)]
    assert cache.clear() == ()
    held[0].close()
    assert cache.clear() == (key(1),)
    assert held[1].read() == b"a plan"
    held[1].close()


def test_collecting_beside_readers(tmp_path: Path) -> None:
    reader = """
    cache = PlanCache(folder)
    print("ready", flush=True)
    end, made = time.monotonic() + 3, 0
    while time.monotonic() < end:
        with cache.get_or_make(key(1), lambda: Artefact(b"x" * 50_000)) as entry:
            made += entry.made
            for _ in range(3):
                assert entry.path.read_bytes() == b"x" * 50_000
            assert not entry.notes, entry.notes
    print(made)
    """
    with start(reader, tmp_path) as one, start(reader, tmp_path) as two:
        cache, removed = PlanCache(tmp_path, max_bytes=10), 0
        while one.poll() is None or two.poll() is None:
            removed += len(cache.collect())
            time.sleep(0.01)
        for process in (one, two):
            out, err = process.communicate()
            assert process.returncode == 0, err
            assert out.startswith("ready")
    assert removed > 0


def test_nothing_stored_is_no_error_and_makes_no_folder(cache: PlanCache) -> None:
    assert cache.entries() == ()
    assert not cache.folder.exists()
    assert cache.clear() == cache.collect() == ()


def test_what_doctor_lists(cache: PlanCache) -> None:
    before = time.time()
    path = put(cache, 1, b"abc", gpu="sm89")
    (stored,) = cache.entries()
    assert (stored.key, stored.path, stored.size) == (key(1), path, 3)
    assert stored.metadata == {"gpu": "sm89"}
    assert before - 1 < stored.used < time.time() + 1
    flip(path)
    assert cache.entries()[0].problem == ""
    assert cache.entries(check=True)[0].problem == "artefact was altered"
