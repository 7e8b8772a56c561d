"""The study kit: blind pairs, a page that people answer on a phone and from disk, and the ranking from their files."""

import io
import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from browser import Browser
from PIL import Image, ImageCms

from diffrestorer.cli import main
from diffrestorer.data.formats.encoding import encode
from diffrestorer.data.images import Photo, read_photo
from diffrestorer.evaluation.restoring.outputs import write_output
from diffrestorer.evaluation.study import blind_pairs, bradley_terry
from diffrestorer.evaluation.study.answers import read_answers, score_study
from diffrestorer.evaluation.study.blind_pairs import choose_pairs
from diffrestorer.evaluation.study.bradley_terry import Answer, fit_strengths, rank_methods
from diffrestorer.evaluation.study.kit import make_study

COUNT = 8


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An evaluation's folder: two methods on eight images; `bright` is white, `gloomy` is black."""
    folder = tmp_path / "evaluation"
    rows = []
    for index in range(COUNT):
        place = f"haze/photo{index}.png"
        files = {"suite/lq": 100 + index, "restored/bright": 255, "restored/gloomy": 0}
        for name, value in files.items():
            (folder / name / place).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (value, value, value)).save(folder / name / place)
        rows += [
            ["demo", "haze", f"photo{index}", method, 20.0]
            for method in ("degraded", "bright", "bright@1", "gloomy")
        ]
    columns = ["suite", "degradation", "image", "method", "psnr"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "scores.csv", index=False)
    return folder


def test_the_page_is_blind_and_the_key_stays_behind(run: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    assert make_study([run], study, 100, 0) == COUNT
    files = [path for path in (study / "page").rglob("*") if path.is_file()]
    shown = [path.relative_to(study / "page").as_posix() for path in files]
    assert len(shown) == 3 * COUNT + 1
    everything = " ".join(shown) + (study / "page" / "index.html").read_text()
    assert not any(word in everything for word in ("bright", "gloomy", "photo0", "http:", "https:"))
    key = json.loads((study / "key.json").read_text())["pairs"]
    assert {frozenset((pair["left"], pair["right"])) for pair in key} == {
        frozenset(("bright", "gloomy"))
    }
    assert len({pair["left"] for pair in key}) == 2, "sides change"
    for index, pair in enumerate(key):
        with Image.open(study / "page" / "images" / f"{index:04d}_left.png") as image:
            assert image.getpixel((0, 0))[0] == {"bright": 255, "gloomy": 0}[pair["left"]]  # type: ignore[index]
    with pytest.raises(ValueError, match="holds a study already"):
        make_study([run], study, 8, 0)


def chunks_of(data: bytes) -> list[bytes]:
    """Return the types of a PNG's chunks in order, with b"rest" for what follows the last one."""
    place, kinds = 8, []
    while not kinds or kinds[-1] != b"IEND":
        (length,) = struct.unpack(">I", data[place : place + 4])
        kinds.append(data[place + 4 : place + 8])
        place += 12 + length
    return kinds + [b"rest"] * (place < len(data))


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """Put a chunk behind the header of a PNG."""
    framed = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + framed + data[33:]


def noise(index: int, *shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(index).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def described(index: int, name: str) -> bytes:
    """A PNG with everything in it that can name a method."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0131] = name  # Software
    photo = Photo(
        noise(index, 64, 64, 3), noise(index + 1, 64, 64), profile, exif.tobytes()[6:], name.encode()
    )
    data = encode(photo, "png")
    text = f"diffrestorer\0{name}".encode()
    for kind, body in (
        (b"tEXt", text),
        (b"zTXt", b"Software\0\0" + zlib.compress(text)),
        (b"iTXt", b"Comment\0\0\0\0\0" + text),
        (b"tIME", struct.pack(">H5B", 2024, 1, 2, 3, 4, index)),
        (b"pHYs", struct.pack(">IIB", 2835 + index, 2835, 1)),
        (b"gAMA", struct.pack(">I", 45455)),
        (b"miNE", text),
    ):
        data = with_chunk(data, kind, body)
    return data + text


def deep(index: int, name: str) -> bytes:
    pixels = noise(index, 64, 64, 3, dtype=np.uint16)
    return with_chunk(bytes(imagecodecs.png_encode(pixels)), b"tEXt", f"a\0{name}".encode())


def jpeg(index: int, name: str) -> bytes:
    """A JPEG under a PNG's name, which lies on its side."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0131] = 6, name  # Orientation, Software
    return saved(Image.fromarray(noise(index, 64, 64, 3)), "JPEG", exif=exif, comment=name.encode())


def grey(index: int, name: str) -> bytes:
    return with_chunk(saved(Image.fromarray(noise(index, 64, 64))), b"tEXt", f"a\0{name}".encode())


def palette(index: int, name: str) -> bytes:
    return saved(Image.fromarray(noise(index, 64, 64, 3)).quantize(16), transparency=3)


def own_output(index: int, name: str, file: Path) -> bytes:
    """What `evaluate` writes."""
    made_by = {"steps": index, "decoder": name, "weights": name * 4}
    write_output(file, noise(index, 64, 64, 3), made_by)
    return file.read_bytes()


WRITERS = {
    "evaluate": None,
    "described": described,
    "deep": deep,
    "jpeg": jpeg,
    "grey": grey,
    "palette": palette,
}


@pytest.mark.parametrize("place", ["own inputs", "prepared inputs"])
@pytest.mark.parametrize("kind", WRITERS)
def test_pictures_are_pixels_and_nothing_else(
    kind: str, place: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither chunks nor bytes, names or times of the page's files say which method made them."""
    # Prepared inputs lie elsewhere.
    lq = run / "suite" / "lq"
    if place == "prepared inputs":
        lq = (run / "suite").rename(tmp_path / "prepared") / "lq"
        items = [
            SimpleNamespace(degradation="haze", image=file.stem, lq=file)
            for file in (lq / "haze").iterdir()
        ]
        monkeypatch.setattr(blind_pairs, "read_settings", lambda folder: None)
        monkeypatch.setattr(blind_pairs, "build_suite", lambda config: SimpleNamespace(items=items))
    write = WRITERS[kind]
    folders = {"input": lq, "bright": run / "restored/bright", "gloomy": run / "restored/gloomy"}
    for number, (name, folder) in enumerate(folders.items()):
        for index, file in enumerate(sorted((folder / "haze").iterdir())):
            seed = 100 * number + index
            file.write_bytes(own_output(seed, name, file) if write is None else write(seed, name))
            os.utime(file, (number, number))

    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    key = key_of(study)["pairs"]
    assert len(list((study / "page" / "images").iterdir())) == 3 * len(key) == 3 * COUNT
    for number, pair in enumerate(key):
        for side in ("input", "left", "right"):
            source = read_photo(folders[pair.get(side, "input")] / f"{pair['place']}.png")
            shown = study / "page" / "images" / f"{number:04d}_{side}.png"
            data = shown.read_bytes()
            assert set(chunks_of(data)) == {b"IHDR", b"IDAT", b"IEND"}
            assert data[24:26] == (b"\x10\x02" if kind == "deep" else b"\x08\x02"), "depth, and RGB"
            assert not any(name.encode() in data for name in folders)
            assert data == encode(Photo(source.pixels), "png"), "equal pixels are equal files"
            found = read_photo(shown)
            assert found.pixels.dtype == source.pixels.dtype
            assert np.array_equal(found.pixels, source.pixels)
            assert shown.stat().st_mtime > len(folders)


def test_a_damaged_picture_is_named(run: Path, tmp_path: Path) -> None:
    file = run / "restored" / "bright" / "haze" / "photo3.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"^{file}: the file is cut off$"):
        make_study([run], tmp_path / "study", COUNT, 0)
    assert not (tmp_path / "study" / "key.json").exists()


def test_pairs_depend_on_the_seed_alone(run: Path) -> None:
    first, again, other = (choose_pairs([run], 6, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == 6


def answer_all(browser: Browser, study: Path, person: int, prefer: str) -> dict[str, object]:
    """Answer the page as a person who recognises a method by its picture; return the saved file."""
    browser.open(f"{(study / 'page' / 'index.html').resolve().as_uri()}?person={person}")
    for _ in range(COUNT):
        browser.wait(
            "document.getElementById('left').complete && document.getElementById('left').naturalWidth === 64"
        )
        number = int(browser.run("document.getElementById('left').src").rsplit("/", 1)[1][:4])
        key = json.loads((study / "key.json").read_text())["pairs"][number]
        side = "left" if key["left"] == prefer else "right"
        browser.click(f"[data-answer={side}]")
    assert browser.run("!document.getElementById('end').hidden")
    return dict(json.loads(browser.run("document.getElementById('text').value")))


def test_a_study_is_answered_in_a_browser_on_a_phone_and_scored(
    run: Path, browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    assert main(["study", "make", str(run), "-o", str(study), "--pairs", str(COUNT)]) == 0
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True
    )
    try:
        orders = []
        for person, prefer in ((1, "bright"), (2, "bright"), (3, "gloomy")):
            saved = answer_all(browser, study, person, prefer)
            assert saved["person"] == person
            orders.append([answer["pair"] for answer in saved["answers"]])  # type: ignore[attr-defined]
            (study / "answers" / f"{person}.json").write_text(json.dumps(saved))
        assert sorted(orders[0]) == list(range(COUNT))
        assert orders[0] != orders[1], "each person has an order of their own"
        assert browser.run("document.documentElement.scrollWidth") == 390
        browser.download_to(tmp_path / "saved")
        browser.click("#save")
        file = tmp_path / "saved" / "answers-3.json"
        for _ in range(100):
            if file.is_file():
                break
            browser._settle()
        assert json.loads(file.read_text()) == saved
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
    assert main(["study", "score", str(study)]) == 0
    told = capsys.readouterr().out
    assert "24 answers of 3 people" in told
    ranked = score_study(study)
    assert [(found.method, found.wins, found.n) for found in ranked] == [
        ("bright", 16, 24),
        ("gloomy", 8, 24),
    ]
    assert ranked[0].strength - ranked[1].strength == pytest.approx(math.log(2), rel=0.02)
    assert (study / "study.csv").is_file()


def test_answers_are_resumed_and_taken_back(run: Path, browser: Browser, tmp_path: Path) -> None:
    study = tmp_path / "study"
    make_study([run], study, COUNT, 5)
    page = study / "page" / "index.html"
    progress = "document.getElementById('progress').textContent"
    browser.open(page)
    for number, answer in ((1, "same"), (2, "left")):
        browser.click(f"[data-answer={answer}]")
        browser.wait(f"{progress} === '{number} of {COUNT}'", 60)
    # The browser hands storage from one page to the next in its own time, seconds on a busy machine.
    deadline = time.monotonic() + 120
    browser.open(page)
    while browser.run(progress) != f"2 of {COUNT}":
        assert time.monotonic() < deadline, browser.run(progress)
        browser.open(page)
    browser.click("#back")
    assert browser.run(progress) == f"1 of {COUNT}"
    browser.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    assert browser.run("state.answers.map((answer) => answer.choice).join()") == "same,right"

    # Another study at the same address, of the same seed and number, begins with no answers.
    shutil.rmtree(study)
    repaint(run)
    make_study([run], study, COUNT, 5)
    browser.open(page)
    assert browser.run(progress) == f"0 of {COUNT}"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no answers"), ("text", r"a\.json is no file of answers"),
     ("[]", "is no file of answers"), ('{"seed": 0, "person": 1, "answers": []}', "another study's answers")],
)  # fmt: skip
def test_wrong_answers_are_named(content: str | None, message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no study"):
        score_study(tmp_path)
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    if content is not None:
        (study / "answers" / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        score_study(study)
    assert main(["study", "score", str(study)]) == 2


def key_of(study: Path) -> dict[str, Any]:
    return dict(json.loads((study / "key.json").read_text()))


def write_answers(study: Path, saved: dict[str, Any]) -> Path:
    file = study / "answers" / "a.json"
    file.write_text(json.dumps(saved))
    return file


def all_left(study: Path) -> dict[str, Any]:
    """A person's answers to all pairs, as the page saves them."""
    key = key_of(study)
    answers = [{"pair": number, "choice": "left"} for number in range(len(key["pairs"]))]
    return {"study": key["study"], "seed": key["seed"], "person": 7, "answers": answers}


def repaint(run: Path) -> None:
    Image.new("RGB", (64, 64)).save(run / "restored" / "bright" / "haze" / "photo3.png")


def rename(run: Path) -> None:
    """Let the two methods change places, by which answers would count for the wrong one."""
    folder = run / "restored"
    (folder / "bright").rename(folder / "other")
    (folder / "gloomy").rename(folder / "bright")
    (folder / "other").rename(folder / "gloomy")


def other_photo(run: Path) -> None:
    text = (run / "scores.csv").read_text()
    (run / "scores.csv").write_text(text.replace("photo3", "photo9"))
    for file in sorted(run.rglob("photo3.png")):
        file.rename(file.with_name("photo9.png"))


@pytest.mark.parametrize(
    ("change", "count", "seed"),
    [(repaint, COUNT, 0), (rename, COUNT, 0), (other_photo, COUNT, 0), (None, COUNT, 1), (None, COUNT - 1, 0)],
    ids=["pixels of one picture", "names of the methods", "name of a photo", "seed", "number of pairs"],
)  # fmt: skip
def test_answers_to_another_study_are_refused(
    change: Callable[[Path], None] | None, count: int, seed: int, run: Path, tmp_path: Path
) -> None:
    """Seed and number of pairs are the same by default; the methods behind the sides are not."""
    one, two = tmp_path / "one", tmp_path / "two"
    make_study([run], one, COUNT, 0)
    make_study([run], tmp_path / "again", COUNT, 0)
    assert key_of(one) == key_of(tmp_path / "again"), "a study that is made again takes its answers"
    if change is not None:
        change(run)
    make_study([run], two, count, seed)
    write_answers(one, all_left(one))
    assert len(read_answers(one)) == COUNT
    file = write_answers(two, all_left(one))
    with pytest.raises(ValueError, match=rf"{file} is no file .*another study's answers"):
        score_study(two)
    assert not (two / "study.csv").exists()


def test_answers_of_older_versions_are_taken_where_someone_vouches_for_them(
    run: Path, tmp_path: Path
) -> None:
    """Their pages gave the seed alone: no file says which study it belongs to."""
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    saved, key = all_left(study), key_of(study)
    del saved["study"], key["study"]
    write_answers(study, saved)
    with pytest.raises(ValueError, match="another study's answers"):
        score_study(study)
    (study / "key.json").write_text(json.dumps(key))
    with pytest.raises(ValueError, match=r'key\.json is of an older version.*put "study": "" into it'):
        score_study(study)
    (study / "key.json").write_text(json.dumps({**key, "study": ""}))
    assert sum(strength.wins for strength in score_study(study)) == COUNT
    write_answers(study, {**saved, "seed": 3})
    with pytest.raises(ValueError, match="another study's answers"):
        score_study(study)


@pytest.mark.parametrize("number", [-1, -COUNT, COUNT, 10**30, 1.0, True, "0", None, [0]])
def test_numbers_of_no_pair_are_refused(number: object, run: Path, tmp_path: Path) -> None:
    """A negative one counted from the end."""
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    saved = all_left(study)
    saved["answers"][2]["pair"] = number
    write_answers(study, saved)
    with pytest.raises(ValueError, match=r"a\.json is no file .*there is no pair"):
        score_study(study)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"person": None}, "names no person"), ({"person": ""}, "names no person"),
     ({"answers": [{"pair": 1, "choice": "left"}] * 2}, "pair 1 is answered twice"),
     ({"answers": [{"pair": 1, "choice": "up"}]}, "'up'"), ({"answers": [{"choice": "left"}]}, "'pair'"),
     ({"answers": {"pair": 1}}, "is no file"), ({"answers": None}, "is no file"), ({"study": 3}, "another study's")],
)  # fmt: skip
def test_answers_that_no_page_saves_are_refused(
    change: dict[str, Any], message: str, run: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    write_answers(study, {**all_left(study), **change})
    with pytest.raises(
        ValueError, match=rf"a\.json is no file .*{message}" if "is no" not in message else message
    ):
        score_study(study)


def sentence_of(*words: object, largest: int | None = None) -> tuple[int, str]:
    """Run `diffrestorer study` in a process of its own; return its status and the one line on stderr.

    Args:
        words: of the command line.
        largest: bytes that a file may have, as on a full disk.
    """

    def limit() -> None:
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    program = "import sys; from diffrestorer.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "study", *map(str, words)]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, preexec_fn=limit
    )
    (line,) = answer.stderr.splitlines()
    return answer.returncode, line


def test_studies_that_can_t_be_written_are_one_sentence(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file in the way, on the way, a folder in the place of a file, and a full disk."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "full" / "page" / "index.html").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "study", tmp_path / "full"):
        assert main(["study", "make", str(run), "-o", str(folder)]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"diffrestorer: {folder} can't be written: ")
    status, line = sentence_of("make", run, "-o", tmp_path / "study", largest=10)
    assert (status, line) == (
        1,
        f"diffrestorer: {tmp_path / 'study'} can't be written: File too large",
    )

    # What can be read, but not written to.
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    write_answers(study, all_left(study))
    (study / "study.csv").mkdir()
    assert main(["study", "score", str(study)]) == 1
    assert capfd.readouterr().err == f"diffrestorer: {study} can't be written: Is a directory\n"


def test_pictures_that_can_t_be_read_are_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert main(["study", "make", str(run), "-o", str(tmp_path / "study")]) == 1
    told = capfd.readouterr().err
    assert told.startswith(f"diffrestorer: {run}")
    assert told.endswith(".png can't be used: Permission denied\n")


@pytest.mark.parametrize("place", ["answers/a.json", "key.json", "answers"])
@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "dangling link", "link in a circle", "file", "no text", "deep"]
)
def test_answers_that_are_no_files_are_one_sentence(
    place: str, kind: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    write_answers(study, all_left(study))
    file = study / place
    file.rename(tmp_path / "moved")
    {
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "dangling link": lambda: file.symlink_to("nowhere"),
        "link in a circle": lambda: file.symlink_to(file),
        "file": file.touch,
        "no text": lambda: file.write_bytes(b"\xff\xfe{\0"),
        "deep": lambda: file.write_text("[" * 100_000),
    }[kind]()
    assert main(["study", "score", str(study)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert str(file if place != "key.json" else study) in line


@pytest.mark.parametrize("name", ["a.json", "0.JSON", "answers-7 (1).Json"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "with a byte order mark"])
def test_files_that_other_systems_wrote_count(name: str, mark: str, run: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    file = write_answers(study, all_left(study)).rename(study / "answers" / name)
    for written in (file, study / "key.json"):
        written.write_text(mark + written.read_text(encoding="utf-8"), encoding="utf-8")
    assert len(read_answers(study)) == COUNT


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"study": "", "seed": 0, "pairs": [{"left": "a"}]}']
)
def test_a_damaged_key_is_named(text: str, run: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    make_study([run], study, COUNT, 0)
    write_answers(study, all_left(study))
    (study / "key.json").write_text(text)
    with pytest.raises(ValueError, match=r"key\.json is damaged"):
        score_study(study)


def test_runs_that_make_no_study_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no scores\.csv"):
        choose_pairs([tmp_path], 4, 0)
    table = pd.read_csv(run / "scores.csv")
    table[table["method"] != "gloomy"].to_csv(run / "scores.csv", index=False)
    with pytest.raises(ValueError, match="at least two restoring methods"):
        choose_pairs([run], 4, 0)


@pytest.mark.parametrize(
    "damage",
    [lambda text: "", lambda text: "a,b\n1,2\n", lambda text: "\x00" + text, lambda text: "\xff" + text,
     lambda text: text.replace("suite,", ""), lambda text: text + "a,b,c,d,e,f,g\n",
     lambda text: text.replace("demo", "x,demo")],
    ids=["empty", "another table", "a zero", "no text", "a column less", "a row too long", "all rows too long"],
)  # fmt: skip
def test_damaged_scores_are_named(damage: Callable[[str], str], run: Path, tmp_path: Path) -> None:
    file = run / "scores.csv"
    file.write_bytes(damage(file.read_text()).encode("latin-1"))
    with pytest.raises(
        ValueError, match=rf"^{file} is damaged \(.*\): run diffrestorer evaluate again$"
    ):
        make_study([run], tmp_path / "study", COUNT, 0)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("kind", ["suite/lq", "restored/bright"])
def test_a_missing_picture_is_named(kind: str, run: Path, tmp_path: Path) -> None:
    file = run / kind / "haze" / "photo3.png"
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file} is missing; run diffrestorer evaluate again"):
        make_study([run], tmp_path / "study", COUNT, 0)
    assert not (tmp_path / "study").exists()


def test_two_methods_have_the_log_odds() -> None:
    strengths = fit_strengths(np.array([[0, 30.0], [10.0, 0]]))
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3), rel=0.01)
    assert strengths.sum() == pytest.approx(0)
    always = fit_strengths(np.array([[0, 20.0], [0, 0]]))
    assert 2 < always[0] - always[1] < 10, "finite where a method always wins"


@pytest.mark.soak
def test_a_planted_ranking_is_found_and_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four methods, 20 studies of 300 answers: the order is found, and the intervals hold the planted strengths."""
    monkeypatch.setattr(bradley_terry, "DRAWS", 100)
    planted = {"a": 1.2, "b": 0.3, "c": -0.3, "d": -1.2}
    names = list(planted)
    held, right = 0, 0
    for study in range(20):
        rng = np.random.default_rng(study)
        answers = []
        for index in range(300):
            first, second = rng.choice(4, 2, replace=False)
            p = 1 / (1 + math.exp(planted[names[second]] - planted[names[first]]))
            answers.append(Answer(f"{index % 6}", names[first], names[second], float(rng.random() < p)))
        ranked = rank_methods(answers)
        right += [strength.method for strength in ranked] == names
        held += sum(strength.low <= planted[strength.method] <= strength.high for strength in ranked)
    assert right >= 18
    assert 0.88 <= held / 80 <= 1


def test_people_are_drawn_where_there_are_enough() -> None:
    """Twelve people who each say the same thing twenty times are twelve judgements, not 240."""
    answers = [
        Answer(f"{person}", "a", "b", float(person % 3 > 0)) for person in range(12) for _ in range(20)
    ]
    by_people = rank_methods(answers)[0]
    as_one = rank_methods([Answer("one", a.first, a.second, a.score) for a in answers])[0]
    assert by_people.strength == pytest.approx(as_one.strength)
    assert by_people.high - by_people.low > 3 * (as_one.high - as_one.low)
