"""`diffrestorer restore` and `detect`: what is promised, on real files and a real (random) model folder."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image

from diffrestorer import cli
from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.data.images import read_photo
from diffrestorer.degradations import DEGRADATIONS
from diffrestorer.model_folder import save_model_folder
from diffrestorer.models.pretrained import load_base
from diffrestorer.models.restorer import build_restorer

RNG = np.random.default_rng(0)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of mini's networks with random weights."""
    folder = tmp_path_factory.mktemp("random_model")
    torch.manual_seed(0)
    config = load("train_stage1", Stage1Config, ["model=mini", "model.base=none"]).model
    restorer = build_restorer(config, *load_base(config))
    save_model_folder(restorer, UniPCMultistepScheduler(**config.scheduler), folder, torch.float16)
    return folder


@pytest.fixture
def restore(model: Path, tmp_path: Path) -> Callable[..., int]:
    """`diffrestorer restore ... -o tmp_path/out`, in one step."""

    def run(*arguments: str | Path, steps: int = 1) -> int:
        fixed = ["--model", str(model), "-o", str(tmp_path / "out"), "--steps", str(steps), "--device", "cpu"]
        return cli.main(["restore", *map(str, arguments), *fixed])

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder a test fills."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


def noise(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    """Random bytes (h, w, c)."""
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path: Path, array: np.ndarray | None = None, **options: object) -> Path:
    """An image file, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise() if array is None else array).save(path, **options)
    return path


def outputs(tmp_path: Path) -> list[str]:
    """Everything below OUT, hidden files too."""
    out = tmp_path / "out"
    return sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir())


def write_bad_files(folder: Path) -> dict[str, str]:
    """Seven files that can't be restored -> a word of the reason."""
    (folder / "empty.png").write_bytes(b"")
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    (folder / "half.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.png").write_text("no picture")
    chunks = (b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]), b"IDAT" + zlib.compress(b"\0" * 99))
    framed = [(len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks]
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    frames = [Image.fromarray(noise()) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(RNG.random((8, 8), dtype=np.float32)).save(folder / "floats.tif")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return {
        "empty.png": "empty",
        "half.jpg": "cut off",
        "text.png": "not an image",
        "bomb.png": "60000x60000",
        "moving.gif": "animation",
        "floats.tif": "32-bit",
        "gone.png": "no such file",
    }


def test_bad_files_are_named_and_good_ones_restored(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "b.webp", "sub/deep/c.png"):
        save(photos / name)
    (photos / "folder.png").mkdir()
    reasons = write_bad_files(photos)
    assert restore(photos, tmp_path / "missing.png") == 1
    out, err = capfd.readouterr()
    assert outputs(tmp_path) == ["a.png", "b.png", "sub/deep/c.png"]
    assert out == ""
    for name, reason in reasons.items():
        assert any(str(photos / name) in line and reason in line for line in err.splitlines()), (name, err)
    assert f"diffrestorer: {tmp_path / 'missing.png'}: there is no such file\n" in err
    assert err.endswith("restored 3, skipped 0 (already there), failed 8\n")
    assert len(err.splitlines()) == 9, err  # libraries keep quiet


def test_outputs_are_kept_unless_overwrite_says_otherwise(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "a.png")
    save(photos / "b.png")
    kept = save(tmp_path / "out" / "a.png").read_bytes()
    assert restore(photos) == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == kept
    assert "restored 1, skipped 1 (already there), failed 0" in capfd.readouterr().err
    assert restore(photos, "--model", "is/not/needed") == 0  # nothing is left to do
    assert restore(photos, "--overwrite") == 0
    assert (tmp_path / "out" / "a.png").read_bytes() != kept


def test_names(restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "a.png", "sub/a.jpg", "sub/b.c.jpg", "other/a.jpg"):
        save(photos / name)
    lone = save(tmp_path / "lone.bmp")
    assert restore(photos, photos, photos / "other", lone, "--json") == 1
    out, err = capfd.readouterr()
    assert outputs(tmp_path) == ["a.jpg.png", "a.png.png", "lone.png", "other/a.png", "sub/a.png", "sub/b.c.png"]
    taken = f"its output {tmp_path / 'out' / 'a.jpg.png'} would replace that of {photos / 'a.jpg'}"
    assert f"diffrestorer: {photos / 'other' / 'a.jpg'}: {taken}\n" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert sorted(line["status"] for line in lines) == ["failed"] + ["restored"] * 6
    for line in lines:
        assert line["input"].startswith(str(tmp_path))
        assert line["output"].startswith(str(tmp_path / "out"))
        if line["status"] == "failed":
            assert line["reason"] == taken
        else:
            assert list(line["degradations"]) == list(DEGRADATIONS)
            assert sum(line["degradations"].values()) == pytest.approx(1, abs=1e-4)


def test_outputs_are_no_inputs(model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(photos / "a.jpg")
    command = ["restore", str(photos), "--model", str(model), "--steps", "1", "-o"]
    for summary in ("restored 1, skipped 0", "restored 0, skipped 1"):
        assert cli.main([*command, str(photos / "out")]) == 0
        assert summary in capfd.readouterr().err
    assert cli.main([*command, str(photos / "sub" / "..")]) == 2
    assert "choose another folder" in capfd.readouterr().err


def test_an_input_is_never_replaced(model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = save(photos / "a.png").read_bytes()
    command = ["restore", str(photos / "a.png"), "-o", str(photos), "--overwrite", "--model", str(model)]
    assert cli.main(command) == 1
    assert "would replace an input" in capfd.readouterr().err
    assert (photos / "a.png").read_bytes() == original


def test_every_kind_of_image_keeps_its_size_and_depth(
    restore: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(photos / "deep.png"), RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16))
    save(photos / "dot.png", noise(1, 1))
    save(photos / "odd.png", noise(37, 53))
    save(photos / "line.png", noise(1, 70))
    save(photos / "alpha.webp", noise(20, 30, 4), lossless=True)
    Image.fromarray(noise(20, 30, 4), "CMYK").save(photos / "cmyk.jpg")
    Image.fromarray(noise(20, 30)).quantize(16).save(photos / "palette.gif")
    Image.fromarray(noise(20, 30)).convert("1").save(photos / "bits.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(photos / "turned.jpg", noise(20, 30), exif=exif)
    assert restore(photos, "--batch-size", "3") == 0
    for source in photos.iterdir():
        before, after = read_photo(source), read_photo(tmp_path / "out" / f"{source.stem}.png")
        assert after.pixels.shape == before.pixels.shape, source.name
        assert after.pixels.dtype == before.pixels.dtype, source.name
        assert (after.alpha is None) == (before.alpha is None), source.name
        assert after.alpha is None or np.array_equal(after.alpha, before.alpha), source.name
        assert after.pixels.shape[:2] == ((30, 20) if source.stem == "turned" else before.pixels.shape[:2])
    deep = read_photo(tmp_path / "out" / "deep.png").pixels
    assert np.any(deep % 257)  # more than 8 bits spread out


def test_batches_and_company_do_not_change_a_result(restore: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    for i in range(5):
        save(photos / f"{i}.png", noise(32, 32 if i % 2 else 40))
    assert restore(photos / "3.png", steps=2) == 0
    alone = read_photo(tmp_path / "out" / "3.png").pixels.astype(int)
    assert restore(photos, "--batch-size", "2", "--overwrite", steps=2) == 0
    together = read_photo(tmp_path / "out" / "3.png").pixels.astype(int)
    assert np.abs(together - alone).max() <= 1
    assert restore(photos / "3.png", "--seed", "1", "--overwrite", steps=2) == 0
    assert np.abs(read_photo(tmp_path / "out" / "3.png").pixels.astype(int) - alone).max() > 1


def test_what_memory_cannot_hold_is_refused(
    restore: Callable[..., int],
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The batch of small ones is too large together and restored one by one."""
    save(photos / "large.png", noise(300, 200))
    for name in ("s1.png", "s2.png"):
        save(photos / name, noise(160, 160))
    monkeypatch.setattr(cli, "free_memory", lambda: 64_000_000)
    assert restore(photos, "--batch-size", "2") == 1
    assert outputs(tmp_path) == ["s1.png", "s2.png"]
    assert "large.png: restoring it takes about 84 MB of memory, 51 MB are free" in capfd.readouterr().err


def test_free_memory_is_that_of_this_machine() -> None:
    assert 10**8 < cli.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("format", "kind"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_formats(restore: Callable[..., int], photos: Path, tmp_path: Path, format: str, kind: str) -> None:
    cv2.imwrite(str(photos / "deep.png"), RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16))
    profile = Image.open(save(photos / "icc.png", icc_profile=rgb_profile())).info["icc_profile"]
    assert restore(photos, "--format", format, "--decoder", "sd") == 0
    assert outputs(tmp_path) == [f"deep.{format}", f"icc.{format}"]
    with Image.open(tmp_path / "out" / f"deep.{format}") as deep, Image.open(tmp_path / "out" / f"icc.{format}") as icc:
        assert deep.format == kind
        assert deep.mode == ("RGBA" if format == "webp" else "RGB")
        assert icc.info["icc_profile"] == profile


def rgb_profile() -> bytes:
    """A colour profile as cameras write them."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("damage", ["missing", "truncated", "mismatched", "nonsense"])
def test_a_bad_model_folder_is_one_sentence(
    model: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    weights, config = broken / "unet" / "diffusion_pytorch_model.safetensors", broken / "vae" / "config.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "mismatched":
        shutil.copy(model / "decoder" / weights.name, weights)
    else:
        config.write_text("{")
    save(photos / "a.png")
    assert cli.main(["restore", str(photos), "-o", str(tmp_path / "out"), "--model", str(broken)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert str(config if damage == "nonsense" else weights) in err
    assert outputs(tmp_path) == []


def test_where_nothing_can_be_written(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "a.png")
    save(photos / "sub" / "b.png")
    (tmp_path / "out").write_text("a file")
    assert restore(photos) == 2
    assert f"diffrestorer: can't write to {tmp_path / 'out'} (File exists)\n" == capfd.readouterr().err
    (tmp_path / "out").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file")
    assert restore(photos) == 1
    err = capfd.readouterr().err
    assert outputs(tmp_path) == ["a.png", "sub"]
    assert f"diffrestorer: {photos / 'sub' / 'b.png'}: File exists: {tmp_path / 'out' / 'sub'}\n" in err


def test_nothing_to_do(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for command in (["restore", str(photos), "-o", str(tmp_path / "out")], ["detect", str(photos)]):
        assert cli.main(command) == 1
        assert capfd.readouterr().err == "diffrestorer: there are no images in INPUT: nothing to do\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_an_unusable_device_is_one_sentence(photos: Path, capfd: pytest.CaptureFixture[str], device: str) -> None:
    save(photos / "a.png")
    assert cli.main(["detect", str(photos), "--device", device]) == 2
    assert (
        capfd.readouterr().err == f"diffrestorer: device '{device}' can't be used on this machine; try --device cpu\n"
    )


@pytest.mark.parametrize(
    "wrong",
    ["--steps=0", "--steps=-3", "--steps=many", "--fidelity=1.5", "--fidelity=nan", "--seed=-1", "--batch-size=0",
     "--format=gif", "--decoder=vae", "--tile=auto", "--degradation=haze", "--over"],
)  # fmt: skip
def test_wrong_options_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["restore", "x.png", "-o", "out", wrong])
    assert end.value.code == 2
    assert wrong.split("=")[0] in capsys.readouterr().err


def test_detect(model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(photos / "a.jpg")
    odd = save(photos / "new\nline.png", noise(9, 300))
    (photos / "empty.png").write_bytes(b"")
    command = ["detect", str(photos), "--model", str(model), "--device", "cpu"]
    assert cli.main([*command, "--json"]) == 1
    out, err = capfd.readouterr()
    lines = {line["input"]: line for line in map(json.loads, out.splitlines())}
    assert err == f"diffrestorer: {photos / 'empty.png'}: the file is empty\n"
    assert lines[str(photos / "empty.png")]["reason"] == "the file is empty"
    found = lines[str(odd)]
    assert found["status"] == "detected"
    assert found["degradation"] == max(found["degradations"], key=found["degradations"].get)

    assert cli.main(command) == 1
    table = capfd.readouterr().out.splitlines()
    assert table[0].split() == ["file", "most", "probable", *DEGRADATIONS]
    assert len(table) == 3
    row = next(line for line in table if "new\\nline.png" in line).split()
    assert row[1] == found["degradation"]
    assert [float(cell.rstrip("%")) / 100 for cell in row[2:]] == pytest.approx(
        list(found["degradations"].values()), abs=6e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_leaves_whole_files_only(model: Path, photos: Path, tmp_path: Path, name: str) -> None:
    for i in range(40):
        save(photos / f"{i:02}.png", noise(96, 96))
    out = tmp_path / "out"
    command = [sys.executable, "-c", "import sys; from diffrestorer.cli import main; sys.exit(main())"]
    command += ["restore", str(photos), "-o", str(out), "--model", str(model), "--steps", "10", "--device", "cpu"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job is started deaf to it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 120
        while not (out.is_dir() and any(out.glob("*.png"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    files = outputs(tmp_path)
    assert 0 < len(files) < 40
    assert err == f"stopped; {len(files)} restored so far stand\n"
    for file in files:
        assert read_photo(out / file).pixels.shape == (96, 96, 3)
