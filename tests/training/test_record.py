"""A run's log: every line once, whatever the libraries around it do with Python's logging."""

import logging
from pathlib import Path

import pytest
from accelerate import Accelerator

from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.training.record import prepare_output


def test_a_library_that_logs_to_the_root_doubles_no_line(
    tiny_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`logging.info` installs a handler at the root if there is none: open_clip calls it while it loads CLIP."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("diffrestorer.training"), "handlers", [])
    log = prepare_output(tmp_path, load("train_stage1", Stage1Config, tiny_overrides), Accelerator(cpu=True))
    logging.info("parsing model identifier")
    log.info("step 0")
    log.warning("a checkpoint is damaged")
    logging.getLogger("a_library").warning("it is deprecated")

    lines = capsys.readouterr().err.splitlines()
    for text in ("step 0", "a checkpoint is damaged", "it is deprecated"):
        assert [text in line for line in lines].count(True) == 1, lines
    assert "parsing model identifier" not in "".join(lines)
    written = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in written] == ["step 0", "a checkpoint is damaged"]
