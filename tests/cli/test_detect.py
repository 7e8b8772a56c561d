"""`diffrestorer detect`: a table for people, JSON for machines."""

import json
from pathlib import Path

import pytest
from photo_files import noise, save

from diffrestorer.cli import main
from diffrestorer.config.degradations import DEGRADATIONS


def test_detect(random_model: Path, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(photos / "a.jpg")
    odd = save(photos / "new\nline.png", noise(9, 300))
    (photos / "empty.png").write_bytes(b"")
    command = ["detect", str(photos), "--model", str(random_model), "--device", "cpu"]
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
    assert [float(cell.rstrip("%")) / 100 for cell in row[2:]] == pytest.approx(
        list(found["degradations"].values()), abs=6e-4
    )
