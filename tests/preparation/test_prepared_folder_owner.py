"""A prepared folder has one preparation at a time: a second one is refused and harms nothing of the first."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from miniatures import BUDGET, SIZE, build, make, photos, tree
from soaking import some_now

from diffrestorer.config.schema import PrepareConfig
from diffrestorer.data.ownership import own_folder
from diffrestorer.preparation.division import PARTS, own_prepared, read_part
from diffrestorer.preparation.prepare import prepare

FORK = multiprocessing.get_context("fork")
SIDE = 64  # of pairs that take a while


@contextmanager
def running(process: BaseProcess) -> Iterator[BaseProcess]:
    """Starts a process, and kills it at the end."""
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def prepare_photos(root: Path, out: Path, side: int = SIZE, shard: str | None = None) -> None:
    """Prepares photos in this process."""
    prepare(PrepareConfig("photos", str(root), str(out), size=side, num_workers=1, shard=shard))


def hold(out: Path, shard: str | None, ready: Connection) -> None:
    """Holds a prepared folder as a preparation does, until it is killed."""
    with own_prepared(out, read_part(shard)):
        ready.send(os.getpid())
        time.sleep(1800)


@contextmanager
def holding(out: Path, shard: str | None) -> Iterator[int]:
    """Has another process hold a prepared folder; yields its number."""
    here, there = FORK.Pipe()
    with running(FORK.Process(target=hold, args=(out, shard, there))):
        yield here.recv()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", 1, 2)


def test_two_sets_into_one_folder(tmp_path: Path) -> None:
    """While a real preparation stands still in the middle of a shard, another set is refused."""
    root, out = photos(tmp_path / "photos", *range(1, 6)), tmp_path / "out"
    build("lol", tmp_path / "lol")
    with running(FORK.Process(target=prepare_photos, args=(root, out, SIDE))) as first:
        while not list(out.glob("pairs/*/*/*/.*.tmp")):
            assert first.is_alive()
            time.sleep(0.001)
        os.kill(first.pid or 0, signal.SIGSTOP)
        before = tree(out)
        for name, source in (("lol", tmp_path / "lol"), ("photos", root)):
            with pytest.raises(
                ValueError, match=rf"^{out} is in use by process {first.pid} on "
            ) as error:
                make(name, source, out)
            assert str(error.value).endswith("wait for its end, or choose another out")
            assert "\n" not in str(error.value)
        assert tree(out) == before

        # The first one's unfinished file was left to it: it ends as if it had been alone.
        os.kill(first.pid or 0, signal.SIGCONT)
        first.join(1800)
        assert first.exitcode == 0
    rows = make("lol", tmp_path / "lol", out)
    assert {row["set"] for row in rows} == {"photos", "lol"}
    make("photos", root, tmp_path / "one", size=SIDE, budget=None)
    make("lol", tmp_path / "lol", tmp_path / "one")
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.parametrize("first", [None, "merge", "0/2"])
@pytest.mark.parametrize("second", some_now([None, "merge", "0/2", "1/2"], 2))
def test_parts_work_together_and_all_else_alone(
    first: str | None, second: str | None, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    together = read_part(first) is not None and read_part(second) is not None
    with holding(out, first) as process:
        before = tree(out)
        if together:
            prepare_photos(root, out, shard=second)
            assert (out / "owner.json").exists()
        else:
            with pytest.raises(ValueError, match=f"is in use by process {process} on"):
                prepare_photos(root, out, shard=second)
            assert tree(out) == before

    # Killed, it keeps no lock, and what it left is gone after the next one.
    for shard in ("0/2", "1/2", "merge"):
        prepare_photos(root, out, shard=shard)
    make("photos", root, tmp_path / "one", budget=None)
    assert tree(out) == tree(tmp_path / "one")


def test_parts_that_ended_are_not_named(root: Path, tmp_path: Path) -> None:
    """Of several parts the one that still works is named, whichever came last."""
    out = tmp_path / "out"
    with holding(out, "0/3") as working:
        with holding(out, "1/3"):
            pass
        prepare_photos(root, out, shard="2/3")
        with pytest.raises(ValueError, match=f"is in use by process {working} on"):
            prepare_photos(root, out, shard="merge")
    prepare_photos(root, out, shard="2/3")
    assert not (out / "owner.json").exists()
    assert (out / PARTS).exists()


def test_a_refused_preparation_leaves_nothing(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for keys in ({"set": "gopro"}, {"set": "photos", "shard": "merge"}):
        with pytest.raises(ValueError, match=r"lacks|gopro"):
            prepare(PrepareConfig(root=str(root), out=str(out), budget=BUDGET, size=SIZE, **keys))  # type: ignore[arg-type]
        assert not list(out.iterdir())


def take_in_turn(folder: Path, entered: Connection, rounds: int) -> None:
    """Takes a folder again and again, and tells of every time that it was not alone."""
    for _ in range(rounds):
        try:
            with own_folder(folder, wait=0.0, remove=True):
                try:
                    (folder / "inside").mkdir()
                except FileExistsError:
                    entered.send("two are in")
                else:
                    (folder / "inside").rmdir()
        except ValueError:
            continue
    entered.send("end")


def test_a_lock_that_is_removed_at_its_end_lets_nobody_in_beside_another(tmp_path: Path) -> None:
    """A process that opened the file before it was removed must not believe that it holds the folder."""
    here, there = FORK.Pipe()
    processes = [FORK.Process(target=take_in_turn, args=(tmp_path, there, 800)) for _ in range(3)]
    for process in processes:
        process.start()
    there.close()
    said = []
    with suppress(EOFError):
        while True:
            said.append(here.recv())
    for process in processes:
        process.join()
    assert said == ["end"] * len(processes)
