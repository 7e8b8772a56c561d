"""Whatever is wrong with downloads, disk or process: one sentence, nothing lost, and the same command goes on."""

import multiprocessing
import os
import resource
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import miniatures
import pytest
import training_runs as runs
from miniatures import make, photos, tree

from diffrestorer.config.schema import PrepareConfig
from diffrestorer.data.manifest import MANIFEST, list_test_pairs
from diffrestorer.preparation import prepare as preparation
from diffrestorer.preparation.prepare import prepare


def refused(name: str, root: Path, out: Path, **keys: Any) -> str:
    """The sentence with which a preparation is refused; nothing is claimed to be done."""
    with pytest.raises(ValueError, match=r"\S") as error:
        make(name, root, out, **keys)
    assert not (out / MANIFEST).exists()
    return str(error.value)


@pytest.fixture
def lol(tmp_path: Path) -> Path:
    miniatures.build("lol", tmp_path / "lol")
    return tmp_path / "lol"


def test_a_missing_set(lol: Path, tmp_path: Path) -> None:
    assert "gopro: train (train/GOPR" in refused("gopro", lol, tmp_path / "out")
    sentence = refused("all", lol, tmp_path / "out")
    assert "rtts: RTTS" in sentence
    assert "allow_incomplete=true" in sentence
    rows = make("all", lol, tmp_path / "out", allow_incomplete=True)
    assert {row["set"] for row in rows} == {"lol"}
    assert "does not exist" in refused("lol", tmp_path / "absent", tmp_path / "other")


def test_a_set_takes_over_the_share_of_one_that_is_missing(tmp_path: Path) -> None:
    miniatures.build("div2k", tmp_path / "div2k")
    rows = make("div2k", tmp_path / "div2k", tmp_path / "out", allow_incomplete=True)
    assert sum(row["degradation"] == "noise" and row["split"] == "train" for row in rows) == 40


@pytest.mark.parametrize("side", ["low", "high"])
def test_half_unpacked(lol: Path, tmp_path: Path, side: str) -> None:
    lost = lol / "LOLdataset" / "our485" / side / "10.png"
    lost.unlink()
    sentence = refused("lol", lol, tmp_path / "out")
    assert sentence.startswith("1 files lack their partner")
    assert "10.png has no" in sentence
    rows = make("lol", lol, tmp_path / "out", allow_incomplete=True)
    assert sum(not row["augmentation"] for row in rows if row["split"] == "train") == 1


def test_unreadable_images_are_named_counted_and_skipped_only_when_asked(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", *range(12))
    for number in (3, 7):
        path = root / f"{number}.png"
        path.write_bytes(path.read_bytes()[:200])
    keys = {"budget": None, "degradations": ["noise", "jpeg"]}
    sentence = refused("photos", root, tmp_path / "out", **keys)
    assert sentence.startswith("2 images cannot be read: ")
    assert f"{root / '3.png'}: the file is cut off" in sentence
    assert "skip_unreadable=true" in sentence
    assert len(make("photos", root, tmp_path / "out", skip_unreadable=True, **keys)) == 2 * 10
    with pytest.raises(ValueError, match="2 images cannot be read"):
        make("photos", root, tmp_path / "out", **keys)


def test_check_reads_every_download(lol: Path) -> None:
    prepare(PrepareConfig("lol", str(lol), check=True, num_workers=1))
    path = lol / "LOLdataset" / "eval15" / "low" / "1.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"1 images cannot be read: .*eval15/low/1\.png"):
        prepare(PrepareConfig("lol", str(lol), check=True, num_workers=1))


def test_a_pair_that_differs_in_size(lol: Path, tmp_path: Path) -> None:
    miniatures.save(lol / "LOLdataset" / "our485" / "low" / "2.png", miniatures.scene(0)[:-1])
    for keys in ({}, {"skip_unreadable": True}):
        sentence = refused("lol", lol, tmp_path / "out", **keys)
        assert sentence.startswith("1 pairs are no pairs: a pair differs in size: ")
        assert "low/2.png 56x47 and " in sentence


def test_training_and_test_that_overlap(lol: Path, tmp_path: Path) -> None:
    shutil.copy(lol / "LOLdataset/our485/high/2.png", lol / "LOLdataset/eval15/high/1.png")
    sentence = refused("lol", lol, tmp_path / "out")
    assert "training and test overlap" in sentence
    assert "our485/high/2.png (train)" in sentence


def test_two_commands_that_overlap(tmp_path: Path) -> None:
    make("photos", photos(tmp_path / "train", 1, 2, 3), tmp_path / "out", budget=None)
    before = tree(tmp_path / "out")
    photos(tmp_path / "test", 9)
    shutil.copy(tmp_path / "train" / "2.png", tmp_path / "test" / "renamed.png")
    with pytest.raises(ValueError, match=r"overlap: photos 2 \(train\) and .*renamed\.png \(test\)"):
        make("photos", tmp_path / "test", tmp_path / "out", split="test", budget=None)
    assert tree(tmp_path / "out") == before


def test_a_set_that_is_there_twice(lol: Path, tmp_path: Path) -> None:
    shutil.copytree(lol / "LOLdataset", lol / "copy" / "LOLdataset")
    assert "lol is there twice" in refused("lol", lol, tmp_path / "out")


def test_other_settings_in_the_same_folder(lol: Path, tmp_path: Path) -> None:
    make("lol", lol, tmp_path / "out")
    before = tree(tmp_path / "out")
    for keys in ({"seed": 1}, {"size": 24}, {"budget": 41}, {"fit": "crop"}):
        with pytest.raises(ValueError, match="other settings"):
            make("lol", lol, tmp_path / "out", **keys)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"set": "div3k"}, "set=div3k does not exist; choose one of div2k"),
        ({"size": 20}, "size=20 is not a multiple of 8"),
        ({"budget": 0}, "budget=0"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"degradations": ["fog"]}, "degradations=fog is not valid, did you mean"),
        ({"root": None}, "root is not set"),
        ({"out": None}, "out is not set"),
        ({"set": "photos", "out": "photos/out"}, "lies in root"),
        ({"out": "s3://bucket/pairs"}, "is a URL: prepare into a folder, then copy it there"),
        ({"set": "photos", "root": "empty"}, "holds no images"),
        ({"set": "photos", "root": "photos/1.png"}, "is not a folder of photos"),
        ({"set": "photos", "degradations": ["blur+noise"]}, "gives no pairs of blur"),
    ],
)
def test_wrong_keys(
    keys: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=sentence):
        prepare(PrepareConfig(**{"set": "lol", "root": "photos", "out": "out", **keys}))


def test_checksums_find_what_was_changed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make("photos", photos(tmp_path / "photos", 1, 2), out, budget=None)
    make("photos", photos(tmp_path / "test", 3), out, budget=None, split="test")
    shard = out / "pairs/photos/train/rain/00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (out / "pairs/photos/test/haze/lq/3.png").unlink()
    with pytest.raises(
        ValueError, match=r"2 of 28 pairs in .* are damaged or missing: .*haze/lq/3\.png, .*rain.*#1/0"
    ):
        prepare(PrepareConfig(out=str(out), check=True))
    (pair,) = list_test_pairs(out)["photos", "haze"]
    with pytest.raises(ValueError, match="no such file"):
        pair.read()
    shutil.copy(out / "pairs/photos/test/snow/lq/3.png", pair.lq)
    with pytest.raises(ValueError, match="not what was prepared"):
        pair.read()


@pytest.mark.parametrize("damage", ["absent", "cut off", "no rows"])
def test_a_manifest_that_is_none(damage: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make("photos", photos(tmp_path / "photos", 1), out, budget=None)
    content = (out / MANIFEST).read_bytes()
    (out / MANIFEST).unlink()
    if damage == "cut off":
        (out / MANIFEST).write_bytes(content[: len(content) // 2])
    elif damage == "no rows":
        shutil.rmtree(out / "pairs")
        preparation.write_manifest(out)
    expected = {"absent": "holds no manifest", "cut off": "cannot be read", "no rows": "names no pair"}[
        damage
    ]
    with pytest.raises(ValueError, match=expected):
        prepare(PrepareConfig(out=str(out), check=True))


def test_a_disk_that_is_too_small_is_said_before_anything_is_made(
    lol: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparation, "free_bytes", lambda folder: 1000)
    sentence = refused("lol", lol, tmp_path / "out")
    assert "GB more" in sentence
    assert not list((tmp_path / "out").rglob("*.npy"))
    assert "41 pairs at 16x16" in capsys.readouterr().err.replace("\n", " ")


def _prepare_on_a_full_disk(root: str, out: str, limit: int, answer: Connection) -> None:
    """No file may be larger than this, which a write learns as it learns that a disk is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the test's own log is a file as well
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        prepare(PrepareConfig("photos", root, out, size=64, num_workers=1))
    except ValueError as error:
        answer.send(str(error))


@pytest.mark.parametrize("limit", [0, 150, 1000, 20_000])
def test_a_disk_that_fills_up(limit: int, tmp_path: Path) -> None:
    """At the lock, the plan, the record or the pixels."""
    root = photos(tmp_path / "photos", *range(1, 4))
    here, there = multiprocessing.Pipe()
    arguments = (str(root), str(tmp_path / "out"), limit, there)
    process = multiprocessing.get_context("fork").Process(
        target=_prepare_on_a_full_disk, args=arguments
    )
    process.start()
    process.join(1800)
    assert process.exitcode == 0
    assert here.poll()
    assert "cannot be written (File too large); nothing is lost: free some disk" in here.recv()
    assert not list((tmp_path / "out").rglob("*.npy"))
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "owner.json").exists()
    keys = {"size": 64, "budget": None}
    make("photos", root, tmp_path / "out", **keys)
    make("photos", root, tmp_path / "clean", **keys)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


@pytest.mark.parametrize("kind", ["file", "below a file", "link to nowhere"])
def test_a_folder_that_cannot_be_one(kind: str, tmp_path: Path) -> None:
    """One sentence, which does not speak of the disk."""
    out = tmp_path / "out"
    if kind == "link to nowhere":
        out.symlink_to(tmp_path / "absent")
    else:
        out.write_bytes(b"")
    out = out / "deeper" if kind == "below a file" else out
    with pytest.raises(ValueError, match=rf"^out={out} cannot be written \(.*\); repair it or choose"):
        prepare(PrepareConfig("photos", str(photos(tmp_path / "photos", 1)), str(out), size=16))


@pytest.mark.soak
def test_a_killed_preparation_ends_like_one_that_was_not(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", *range(1, 25))
    keys = {"size": 256, "budget": None}
    command = ["set=photos", f"root={root}", f"out={tmp_path / 'out'}", "size=256", "num_workers=2"]
    process = runs.start("prepare_data.py", command, tmp_path / "log")
    runs.kill_when(process, tmp_path / "out", lambda out: len(list(out.rglob("0*.json"))) >= 2)
    assert not (tmp_path / "out" / MANIFEST).exists()
    runs.run("prepare_data.py", command, tmp_path / "log")
    make("photos", root, tmp_path / "clean", **keys)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [0.5, 1, 2, 3, 5])
def test_a_preparation_killed_at_any_moment(tmp_path: Path, seconds: float) -> None:
    root = photos(tmp_path / "photos", *range(1, 25))
    command = [
        "set=photos",
        f"root={root}",
        f"out={tmp_path / 'out'}",
        "size=256",
        "split=test",
        "num_workers=2",
    ]
    for _ in range(3):
        process = runs.start("prepare_data.py", command, tmp_path / "log")
        process.join(seconds)
        process.kill()
        process.join()
    runs.run("prepare_data.py", command, tmp_path / "log")
    make("photos", root, tmp_path / "clean", size=256, split="test", budget=None)
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")


ODD_NAMES = [
    "a b",
    "k=v",
    "写真",
    "-dash",
    "q?*[x]",
    "new\nline",
    "%s%d",
    "[red]x",
    "#x'\"",
    "a#5",
    ":c",
    "{b}",
]


@pytest.mark.parametrize("kind", ["photos", "folders"])
def test_names_of_any_kind(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of photos and of folders: what was prepared is found again and agrees with its checksums."""
    root = tmp_path / "photos"
    for number, name in enumerate(ODD_NAMES):
        photos(tmp_path / "single", number)
        path = root / (name if kind == "folders" else "") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "single" / f"{number}.png").rename(path)
    out = tmp_path / "out [a]=b #1 写"
    keys = {"size": 16, "num_workers": 1, "degradations": ["noise"]}
    for split in ("test", "train"):
        source = root if split == "test" else photos(tmp_path / "more", *range(50, 53))
        prepare(PrepareConfig("photos", str(source), str(out), split=split, **keys))  # type: ignore[arg-type]
    prepare(PrepareConfig(out=str(out), check=True))
    assert f"pairs in {out}/{MANIFEST}" in capsys.readouterr().err
    pairs = list_test_pairs(out)["photos", "noise"]
    assert len(pairs) == len(ODD_NAMES)
    for pair in pairs:
        assert pair.read()[0].shape == (16, 16, 3)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos", 1)
    (root / "1.png").rename(root / os.fsdecode(b"caf\xe9.png"))
    sentence = refused("photos", root, tmp_path / "out")
    assert sentence.startswith("1 images have names that are not UTF-8, such as 'caf\\udce9")
    assert sentence.endswith("rename them")


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    root = photos(tmp_path / "photos", 1)
    assert "is not a folder of photos" in refused("photos", tmp_path / "circle", tmp_path / "out")
    with pytest.raises(ValueError, match="circle cannot be written"):
        make("photos", root, tmp_path / "circle")


@pytest.mark.parametrize("kind", ["cut off", "folder", "pipe"])
def test_a_damaged_record_is_named(kind: str, tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", 1), tmp_path / "out"
    make("photos", root, out, budget=None)
    before = tree(out)
    record = out / "pairs/photos/train/rain/00000.json"
    content = record.read_bytes()
    record.unlink()
    if kind == "cut off":
        record.write_bytes(content[: len(content) // 2])
    elif kind == "folder":
        record.mkdir()
    else:
        os.mkfifo(record)
    with pytest.raises(ValueError, match=f"^{record} (is damaged|cannot be read)"):
        make("photos", root, out, budget=None)

    # As the sentence says.
    record.rmdir() if kind == "folder" else record.unlink()
    make("photos", root, out, budget=None)
    assert tree(out) == before


@pytest.mark.parametrize("name", ["readme", "photos"])
def test_whatever_is_written_goes_to_a_folder_that_can(name: str, tmp_path: Path) -> None:
    """A new folder, and none where there can be none."""
    root = photos(tmp_path / "photos", 1)
    prepare(PrepareConfig(name, str(root), str(tmp_path / "new" / "out"), size=16, num_workers=1))
    assert list((tmp_path / "new" / "out").iterdir())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be"):
        prepare(PrepareConfig(name, str(root), str(tmp_path / "file"), size=16))
