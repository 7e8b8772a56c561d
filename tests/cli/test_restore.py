"""`diffrestorer restore`: what is promised, on real files and a real (random) model folder."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from photo_files import RNG, files_in, noise, save
from PIL import Image

from diffrestorer.cli import main
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.data.images import read_photo
from diffrestorer.models.components import load_component, save_component
from diffrestorer.models.prompt_processor import PromptProcessor


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


def test_names(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jpg", "a.png", "sub/a.jpg", "sub/b.c.jpg", "other/a.jpg"):
        save(photos / name)
    lone = save(tmp_path / "lone.bmp")
    assert restore(photos, photos, photos / "other", lone, "--json") == 1
    out, err = capfd.readouterr()
    assert files_in(tmp_path / "out") == [
        "a.jpg.png",
        "a.png.png",
        "lone.png",
        "other/a.png",
        "sub/a.png",
        "sub/b.c.png",
    ]
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


def test_outputs_are_no_inputs(
    random_model: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "a.jpg")
    command = ["restore", str(photos), "--model", str(random_model), "--steps", "1", "-o"]
    for summary in ("restored 1, skipped 0", "restored 0, skipped 1"):
        assert main([*command, str(photos / "out")]) == 0
        assert summary in capfd.readouterr().err
    assert main([*command, str(photos / "sub" / "..")]) == 2
    assert "choose another folder" in capfd.readouterr().err


def test_an_input_is_never_replaced(
    random_model: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = save(photos / "a.png").read_bytes()
    command = [
        "restore",
        str(photos / "a.png"),
        "-o",
        str(photos),
        "--overwrite",
        "--model",
        str(random_model),
    ]
    assert main(command) == 1
    assert "would replace an input" in capfd.readouterr().err
    assert (photos / "a.png").read_bytes() == original


def test_every_kind_of_image_keeps_its_size_and_depth(
    restore: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    cv2.imwrite(str(photos / "deep.png"), RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16))
    save(photos / "dot.png", noise(1, 1))
    save(photos / "odd.png", noise(37, 53))
    save(photos / "line.png", noise(1, 70))
    save(photos / "strip.png", noise(3, 1000))
    save(photos / "tall.png", noise(1000, 3))
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
        assert after.pixels.shape[:2] == (
            (30, 20) if source.stem == "turned" else before.pixels.shape[:2]
        )
    deep = read_photo(tmp_path / "out" / "deep.png").pixels
    assert np.any(deep % 257)  # more than 8 bits spread out


def test_batches_and_company_do_not_change_a_result(
    restore: Callable[..., int], photos: Path, tmp_path: Path
) -> None:
    for i in range(5):
        save(photos / f"{i}.png", noise(32, 32 if i % 2 else 40))
    assert restore(photos / "3.png", steps=2) == 0
    alone = read_photo(tmp_path / "out" / "3.png").pixels.astype(int)
    assert restore(photos, "--batch-size", "2", "--overwrite", steps=2) == 0
    together = read_photo(tmp_path / "out" / "3.png").pixels.astype(int)
    assert np.abs(together - alone).max() <= 1
    assert restore(photos / "3.png", "--seed", "1", "--overwrite", steps=2) == 0
    assert np.abs(read_photo(tmp_path / "out" / "3.png").pixels.astype(int) - alone).max() > 1


def forget_prototypes(model: Path, folder: Path) -> Path:
    """A copy of a model that was saved without its degradations' prototypes."""
    copy = shutil.copytree(model, folder / "forgetful")
    known = load_component(copy / "prompt_processor")
    config = {name: value for name, value in known.config.items() if not name.startswith("_")}
    forgetful = PromptProcessor(**{**config, "prototypes": False})
    del known.class_prototypes
    forgetful.load_state_dict(known.state_dict())
    save_component(forgetful, copy / "prompt_processor", torch.float32)
    return copy


def test_the_degradation_can_be_given(
    restore: Callable[..., int],
    random_model: Path,
    photos: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It changes the result, not what is detected; a model that has not learned what classes look like says so."""
    save(photos / "a.png")
    found, pixels = [], []
    for options in ((), ("--degradation", "haze"), ("--degradation", "noise")):
        assert restore(photos, "--overwrite", "--json", *options) == 0
        found.append(json.loads(capfd.readouterr().out)["degradations"])
        pixels.append(read_photo(tmp_path / "out" / "a.png").pixels.astype(int))
    assert found[0] == found[1] == found[2]
    assert np.abs(pixels[1] - pixels[0]).max() > 1
    assert np.abs(pixels[1] - pixels[2]).max() > 1

    assert restore(photos, "--overwrite", "--degradation", "dust") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"diffrestorer: degradation must be one of noise, .*, jpeg, not 'dust', did you mean .*\n", err
    )

    forgetful = forget_prototypes(random_model, tmp_path)
    assert restore(photos, "--overwrite", "--degradation", "haze", "--model", forgetful) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("diffrestorer: this model holds no prototype of haze")
    assert len(err.splitlines()) == 1
    assert np.array_equal(read_photo(tmp_path / "out" / "a.png").pixels, pixels[2]), (
        "nothing was restored"
    )


def test_tiles(restore: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    save(photos / "a.png", noise(48, 400))
    pixels = {}
    for tile in ("auto", "none", "256"):
        assert restore(photos, "--overwrite", "--tile", tile) == 0
        pixels[tile] = read_photo(tmp_path / "out" / "a.png").pixels.astype(int)
    assert np.array_equal(pixels["auto"], pixels["none"]), "a small photo is taken whole"
    assert np.abs(pixels["256"] - pixels["none"]).max() > 0


@pytest.mark.parametrize(("format", "kind"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_formats(
    restore: Callable[..., int], photos: Path, tmp_path: Path, format: str, kind: str
) -> None:
    cv2.imwrite(str(photos / "deep.png"), RNG.integers(0, 65536, (20, 30, 4), dtype=np.uint16))
    profile = Image.open(save(photos / "icc.png", icc_profile=rgb_profile())).info["icc_profile"]
    assert restore(photos, "--format", format, "--decoder", "sd") == 0
    assert files_in(tmp_path / "out") == [f"deep.{format}", f"icc.{format}"]
    with (
        Image.open(tmp_path / "out" / f"deep.{format}") as deep,
        Image.open(tmp_path / "out" / f"icc.{format}") as icc,
    ):
        assert deep.format == kind
        assert deep.mode == ("RGBA" if format == "webp" else "RGB")
        assert icc.info["icc_profile"] == profile


def rgb_profile() -> bytes:
    """A colour profile as cameras write them."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    "wrong",
    ["--steps=0", "--steps=-3", "--steps=many", "--fidelity=1.5", "--fidelity=nan", "--seed=-1", "--batch-size=0",
     "--format=gif", "--decoder=vae", "--tile=255", "--tile=-1", "--tile=some",
     "--over"],
)  # fmt: skip
def test_wrong_options_are_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["restore", "x.png", "-o", "out", wrong])
    assert end.value.code == 2
    assert wrong.split("=")[0] in capsys.readouterr().err


def test_photos_without_a_clear_degradation_are_left_alone(
    restore: Callable[..., int], photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(photos / "a.png")
    save(photos / "b.png", noise(9, 64))
    assert restore(photos, "--skip-clean", "--threshold", "1", "--json") == 0
    out, err = capfd.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["status"], line["reason"]) for line in lines] == [
        ("clean", "no clear degradation")
    ] * 2
    assert list((tmp_path / "out").iterdir()) == []
    assert "restored 0, skipped 0 (already there), failed 0, left alone 2 (no clear degradation)" in err
    assert "trained without clean photos" in err

    assert restore(photos, "--skip-clean", "--threshold", "0") == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
