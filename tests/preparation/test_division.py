"""A preparation in parts gives the files of one machine's, whatever the order and whatever is killed."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest
import training_runs as runs
from miniatures import BUDGET, SIZE, make, photos, tree
from soaking import some_now

from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import PrepareConfig
from diffrestorer.data.manifest import MANIFEST
from diffrestorer.data.ownership import own_folder
from diffrestorer.data.storage import remove_unfinished, whole_file
from diffrestorer.preparation import shards
from diffrestorer.preparation.division import PARTS, Part, read_part
from diffrestorer.preparation.prepare import prepare


def make_part(shard: str | None, root: Path, out: Path, name: str = "photos", **keys: object) -> None:
    """Runs a part, or the merge, in this process."""
    fixed = {"size": SIZE, "budget": BUDGET, "num_workers": 1}
    prepare(PrepareConfig(name, str(root), str(out), shard=shard, **{**fixed, **keys}))  # type: ignore[arg-type]


@pytest.fixture
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of seven pairs, so that a class has several."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 7 * 2 * 3 * SIZE * SIZE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", 1, 2, 3, 4)


@pytest.mark.usefixtures("short_shards")
@pytest.mark.parametrize(
    "order", some_now([(order,) for order in itertools.permutations(range(3))][1::2], 2)
)
def test_parts_in_any_order_equal_one_machine(
    order: tuple[int, ...], root: Path, tmp_path: Path
) -> None:
    make("photos", root, tmp_path / "one")
    for index in order:
        make_part(f"{index}/3", root, tmp_path / "parts")
        assert not (tmp_path / "parts" / MANIFEST).exists()
    make_part("merge", root, tmp_path / "parts")
    assert tree(tmp_path / "parts") == tree(tmp_path / "one")
    assert len(list((tmp_path / "one").rglob("0*.npy"))) == 8 * 6


@pytest.mark.usefixtures("short_shards")
def test_sets_in_archives_training_and_test(tmp_path: Path) -> None:
    """Parts unpack archives once, together; the merge removes what was unpacked. Another set was there before."""
    for name in ("lol", "snow100k"):
        miniatures.build(name, tmp_path / "unpacked" / name)
        shutil.make_archive(str(tmp_path / "downloads" / name), "zip", tmp_path / "unpacked" / name)
    for out in ("one", "parts"):
        make("photos", photos(tmp_path / "photos", 1), tmp_path / out)
    for name in ("lol", "snow100k"):
        make(name, tmp_path / "downloads", tmp_path / "one")
    before = (tmp_path / "parts" / MANIFEST).read_bytes()
    keys = {"name": "all", "allow_incomplete": True}
    for index in range(4):
        make_part(f"{index}/4", tmp_path / "downloads", tmp_path / "parts", **keys)
        assert (tmp_path / "parts" / ".unpacked").exists()
    assert (tmp_path / "parts" / MANIFEST).read_bytes() == before
    make_part("merge", tmp_path / "downloads", tmp_path / "parts", **keys)
    make_part(None, tmp_path / "downloads", tmp_path / "two", **keys)
    make("photos", tmp_path / "photos", tmp_path / "two")
    assert tree(tmp_path / "parts") == tree(tmp_path / "two")


def test_more_parts_than_shards(root: Path, tmp_path: Path) -> None:
    keys = {"degradations": ["noise", "jpeg"]}
    make("photos", root, tmp_path / "one", **keys)
    for index in range(5):
        make_part(f"{index}/5", root, tmp_path / "parts", **keys)
    make_part("merge", root, tmp_path / "parts", **keys)
    assert tree(tmp_path / "parts") == tree(tmp_path / "one")


def test_a_merge_names_what_is_missing(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="lacks 8 of 8 shards, and no part has begun"):
        make_part("merge", root, out)
    assert not list(out.iterdir())
    make_part("1/3", root, out)
    with pytest.raises(ValueError, match="shard=0/3 has 3 of its 3 to make, shard=2/3 has 2 of its 2"):
        make_part("merge", root, out)
    make_part("2/3", root, out)
    with pytest.raises(ValueError, match="lacks 3 of 8 shards: shard=0/3 has 3 of its 3 to make; wait"):
        make_part("merge", root, out)
    assert not (out / MANIFEST).exists()


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    """Other settings, another number of parts, other classes, one machine: a sentence, and nothing is touched."""
    out = tmp_path / "out"
    make_part("0/3", root, out)
    before = tree(out)
    for keys in ({"seed": 1}, {"size": 24}, {"budget": 41}):
        with pytest.raises(ValueError, match="other files or other settings"):
            make_part("1/3", root, out, **keys)
        with pytest.raises(ValueError, match="other files or other settings"):
            make_part("merge", root, out, **keys)
    with pytest.raises(
        ValueError, match="in 3 parts, and shard=1/4 is none of them: give shard=0/3 to 2/3"
    ):
        make_part("1/4", root, out)
    with pytest.raises(
        ValueError, match="in 3 parts of other sets or classes, such as pairs/photos/train"
    ):
        make_part("1/3", root, out, degradations=["noise", "low_light"])
    with pytest.raises(ValueError, match="is being prepared in parts: give their shard=, then"):
        make_part(None, root, out)
    changed = tree(out)
    changed.pop(f"{PARTS}/owner.json"), before.pop(f"{PARTS}/owner.json")
    assert changed == before

    # As the sentences say: without the division, the rest is divided otherwise, or made by one machine.
    make("photos", root, tmp_path / "one")
    shutil.rmtree(out / PARTS)
    make_part("1/4", root, out)
    shutil.rmtree(out / PARTS)
    make_part(None, root, out)
    assert tree(out) == tree(tmp_path / "one")


def test_a_part_and_a_merge_run_again_change_nothing(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for shard in ("0/2", "0/2", "1/2", "1/2", "merge"):
        make_part(shard, root, out)
    before = tree(out)
    for shard in ("0/2", "merge", "1/3", None):
        make_part(shard, root, out)
        assert tree(out) == before


@pytest.mark.slow
def test_a_part_that_is_held_is_refused(root: Path, tmp_path: Path) -> None:
    make_part("0/2", root, tmp_path, size=32)
    command = ["set=photos", f"root={root}", f"out={tmp_path}", "size=32", f"budget={BUDGET}"]
    with own_folder(tmp_path / PARTS / "1-of-2"):
        process = runs.start("prepare_data.py", [*command, "shard=1/2"], tmp_path / "log")
        process.join(1800)
    assert process.exitcode == 2
    said = (tmp_path / "log").read_text()
    assert "1-of-2 is in use by process" in said
    assert "start another part" in said


def test_images_that_cannot_be_read_are_the_part_s_own(root: Path, tmp_path: Path) -> None:
    for number in (2, 3):
        (root / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes()[:200])
    make("photos", root, tmp_path / "one", skip_unreadable=True)
    with pytest.raises(ValueError, match="2 images cannot be read"):
        make_part("0/2", root, tmp_path / "parts")
    for shard in ("0/2", "1/2"):
        make_part(shard, root, tmp_path / "parts", skip_unreadable=True)
    with pytest.raises(ValueError, match="2 images cannot be read"):
        make_part("merge", root, tmp_path / "parts")
    make_part("merge", root, tmp_path / "parts", skip_unreadable=True)
    assert tree(tmp_path / "parts") == tree(tmp_path / "one")


@pytest.mark.parametrize(
    "shard", ["3/3", "-1/3", "1", "1/", "/3", "a/b", "1/3/3", "1.0/3", "0/0", "²/3", ""]
)
def test_no_part(shard: str) -> None:
    with pytest.raises(ValueError, match="is not a part: give 0/3, 1/3 and 2/3"):
        read_part(shard)


def test_parts_make_every_shard_once() -> None:
    assert read_part("2/16") == Part(2, 16)
    all_of_them = [shards.Group("photos", "train", "noise", (), (), (), first) for first in range(20)]
    for count in (1, 2, 3, 7, 30):
        dealt = [Part(index, count).select(all_of_them) for index in range(count)]
        assert sorted(shard.first for own in dealt for shard in own) == list(range(20))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("key", [{"check": True}, {"set": "readme"}, {"set": "open_photos"}])
def test_parts_are_for_making_pairs(key: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave it out here"):
        prepare(PrepareConfig(root="a", out=str(tmp_path), shard="0/2", **key))  # type: ignore[arg-type]


def test_only_leftovers_of_the_named_files_are_removed(tmp_path: Path) -> None:
    """By the name without its suffix, however long it is."""
    names = ["00000.npy", "00007.npy", "a.b.png", f"{'x' * 250}.png"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # a process that is killed
        for name in names:
            with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / name):
                raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 4
    remove_unfinished(
        [tmp_path / "00000.json", tmp_path / "a.b.webp", tmp_path / "absent" / "00007.npy"]
    )
    assert len(list(tmp_path.iterdir())) == 2
    remove_unfinished(tmp_path / name for name in names)
    assert not list(tmp_path.iterdir())


def _writes_a_shard(folder: Path) -> bool:
    """Its array is begun; the plan was written before."""
    return (folder / "plan.json").exists() and any(folder.glob(".*.tmp"))


@pytest.mark.soak
def test_three_processes_of_which_one_is_killed(tmp_path: Path) -> None:
    """Parts run at once; one is killed while it writes a shard, and runs again beside the others."""
    root, out, log = photos(tmp_path / "photos", *range(1, 25)), tmp_path / "out", tmp_path / "log"
    command = ["set=photos", f"root={root}", f"out={out}", "size=256", "num_workers=1"]
    parts = {n: runs.start("prepare_data.py", [*command, f"shard={n}/3"], log) for n in range(3)}
    first = out / "pairs" / "photos" / "train" / DEGRADATIONS[1]
    runs.kill_when(parts.pop(1), first, _writes_a_shard)
    assert list(first.glob(".*.tmp"))

    # Its second run removes what the first left, and nothing of what the others are writing.
    parts[1] = runs.start("prepare_data.py", [*command, "shard=1/3"], log)
    for process in parts.values():
        runs.finish(process, log)
    assert not list(out.rglob(".*.tmp"))
    runs.run("prepare_data.py", [*command, "shard=merge"], log)
    make("photos", root, tmp_path / "one", size=256, budget=None)
    assert tree(out) == tree(tmp_path / "one")


@pytest.mark.soak
def test_a_sweep_makes_the_parts_and_merges_them(root: Path, tmp_path: Path) -> None:
    """`-m`, with Hydra's basic launcher: one job after the other, into one `out`."""
    command = [
        "-m", "set=photos", f"root={root}", f"out={tmp_path / 'out'}", "size=32", f"budget={BUDGET}",
        "num_workers=1", f"hydra.sweep.dir={tmp_path / 'sweep'}", "shard=0/3,1/3,2/3,merge",
    ]  # fmt: skip
    for _ in range(2):
        runs.run("prepare_data.py", command, tmp_path / "log")
    make("photos", root, tmp_path / "one", size=32)
    assert tree(tmp_path / "out") == tree(tmp_path / "one")


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_run_the_parts_at_once(launcher: str, root: Path, tmp_path: Path) -> None:
    """In processes of their own, which are sent the script by pickling; `out` is relative, and one for all."""
    keys = ["set=photos", f"root={root}", "out=parts", "size=32", f"budget={BUDGET}", "num_workers=1"]
    line = [sys.executable, str(runs.ROOT / "scripts" / "prepare_data.py"), *keys]
    sweep = ["-m", f"hydra/launcher={launcher}", "shard=0/3,1/3,2/3"]
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    for more in (sweep, ["shard=merge"]):
        done = subprocess.run(
            [*line, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    make("photos", root, tmp_path / "one", size=32)
    assert tree(tmp_path / "parts") == tree(tmp_path / "one")
