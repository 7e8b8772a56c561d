"""`diffrestorer detect`: a table for people, JSON for machines."""

import json
from pathlib import Path

import pytest
from photo_files import noise, save

from diffrestorer.cli import main
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.inference.photos import is_clear


def test_detect(random_model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(photos / "a.jpg")
    odd = save(photos / "new\nline.png", noise(9, 300))
    (photos / "empty.png").write_bytes(b"")
    command = [
        "detect",
        str(photos),
        "--model",
        str(random_model),
        "--device",
        "cpu",
        "--threshold",
        "0",
    ]
    assert main([*command, "--json"]) == 1
    out, err = capfd.readouterr()
    lines = {line["input"]: line for line in map(json.loads, out.splitlines())}
    assert err == f"diffrestorer: {photos / 'empty.png'}: the file is empty\n"
    assert lines[str(photos / "empty.png")]["reason"] == "the file is empty"
    found = lines[str(odd)]
    assert found["status"] == "detected"
    assert found["degradation"] == max(found["degradations"], key=found["degradations"].get)

    assert main(command) == 1
    table = capfd.readouterr().out.splitlines()
    assert table[0].split() == ["file", "most", "probable", *DEGRADATIONS]
    assert len(table) == 3
    row = next(line for line in table if "new\\nline.png" in line).split()
    assert row[1] == found["degradation"]
    assert found["clear"] is True
    assert [float(cell.rstrip("%")) / 100 for cell in row[2:]] == pytest.approx(
        list(found["degradations"].values()), abs=6e-4
    )


def test_below_the_threshold_no_degradation_is_clear(
    random_model: Path, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The threshold lies between the probabilities that the model finds in two photos."""
    save(photos / "a.png")
    save(photos / "b.png", noise(9, 300))
    command = ["detect", str(photos), "--model", str(random_model), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    probable = [max(line["degradations"].values()) for line in lines]
    assert probable[0] != probable[1]
    threshold = str(sum(probable) / 2)

    assert main([*command, "--threshold", threshold]) == 0
    rows = capfd.readouterr().out.splitlines()[1:]
    told = ["no clear degradation" in row for row in rows]
    assert told == [value < float(threshold) for value in probable]
    assert sum(told) == 1
    assert main([*command, "--threshold", threshold, "--json"]) == 0
    again = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["clear"] for line in again] == [not clean for clean in told]


def test_clean_is_no_degradation() -> None:
    assert not is_clear({"noise": 0.2, "clean": 0.8}, 0.5)
    assert is_clear({"noise": 0.5, "clean": 0.5}, 0.5)
    assert not is_clear({"clean": 1.0}, 0.0)
