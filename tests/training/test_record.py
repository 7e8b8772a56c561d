"""A run's log: every line once, whatever the libraries around it do with Python's logging."""

import logging
from pathlib import Path

import pytest

from diffrestorer.training.record import LOG, run_log


def written(path: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("when", ["before the run", "during the run"])
def test_a_handler_at_the_root_doubles_no_line(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`logging.info` installs one if there is none (open_clip calls it while it loads CLIP), and so does hydra."""
    monkeypatch.setattr(logging.root, "handlers", [])
    if when == "before the run":
        logging.root.addHandler(logging.StreamHandler())
    with run_log(tmp_path / "train.log", is_main_process=True) as log:
        logging.info("parsing model identifier")
        log.info("step 0")
        log.warning("a checkpoint is damaged")
        logging.getLogger("a_library").warning("it is deprecated")

    lines = capsys.readouterr().err.splitlines()
    for text in ("step 0", "a checkpoint is damaged", "it is deprecated"):
        assert [text in line for line in lines].count(True) == 1, lines
    assert "parsing model identifier" not in "".join(lines)
    assert written(tmp_path / "train.log") == ["step 0", "a checkpoint is damaged"]


def test_runs_in_one_process_have_a_log_each(tmp_path: Path) -> None:
    """As the parts of train_base.py; the logger is afterwards what it was."""
    before = (LOG.level, LOG.propagate, list(LOG.handlers))
    for name in ("first", "second"):
        with run_log(tmp_path / name, is_main_process=True) as log:
            log.info(name)
    assert [written(tmp_path / name) for name in ("first", "second")] == [["first"], ["second"]]
    assert (LOG.level, LOG.propagate, list(LOG.handlers)) == before


def test_other_processes_log_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_log(tmp_path / "train.log", is_main_process=False) as log:
        log.warning("as the main process does")
        log.error("mine")
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["mine"]
    assert not (tmp_path / "train.log").exists()
