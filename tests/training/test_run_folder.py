"""A run's folder: one owner, one configuration, files that are whole, rebuilt where they are damaged."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import training_runs as runs
from soaking import some_now
from tiny_runs import DAMAGES, copy_run, damage, small_files, train_stage1

from diffrestorer.data.ownership import own_folder
from diffrestorer.training.checkpoint import read_state
from diffrestorer.training.kept_files import DamagedFileError, read_sealed, write_sealed
from diffrestorer.training.recipe import STAGES, _read_plan


def goes_on(command: list[str], output: Path, finished: Path) -> None:
    train_stage1(command, output)
    assert runs.files_of(output / "model") == runs.files_of(finished / "model")
    assert (output / "losses.csv").read_bytes() == (finished / "losses.csv").read_bytes()


def damage_and_go_on(
    seed: int,
    command: list[str],
    unfinished: Path,
    finished: Path,
    folder: Path,
    kind: str | None = None,
) -> None:
    chance = random.Random(seed)
    output = copy_run(unfinished, folder / "run")
    path = chance.choice(small_files(output))
    kind = damage(path, chance, kind)
    told = f"seed {seed}: {path.relative_to(output)} {kind}"
    refusal = None
    try:
        train_stage1(command, output)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert len(refusal.splitlines()) == 1, told
        assert str(output) in refusal, told
        return
    assert runs.files_of(output / "model") == runs.files_of(finished / "model"), told
    assert (output / "losses.csv").read_bytes() == (finished / "losses.csv").read_bytes(), told


@pytest.mark.slow
@pytest.mark.parametrize("kind", some_now(DAMAGES, 1))
def test_a_damaged_file_costs_nothing_or_is_named(
    kind: str, arguments: list[str], unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    damage_and_go_on(DAMAGES.index(kind), arguments, unfinished, finished, tmp_path, kind)


@pytest.mark.slow
def test_what_its_owner_laid_into_the_model_stays(
    arguments: list[str], finished: Path, tmp_path: Path
) -> None:
    """The same command once more writes the model anew, beside their card and licence. A card of ours is ours."""
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    ours = (output / "model" / "README.md").read_bytes()
    own = {"README.md": "# Rain gone\n\nBy me.", "LICENSE": "mine", "notes.txt": "0.1"}
    for name, text in own.items():
        (output / "model" / name).write_text(text)
    train_stage1(arguments, output)
    assert {name: (output / "model" / name).read_text() for name in own} == own

    (output / "model" / "README.md").write_bytes(ours.replace(b"[image-restoration,", b"["))
    train_stage1(arguments, output)
    assert (output / "model" / "README.md").read_bytes() == ours
    for name in ("LICENSE", "notes.txt"):
        (output / "model" / name).unlink()
    assert runs.files_of(output / "model") == runs.files_of(finished / "model")


@pytest.mark.soak
def test_two_hundred_damaged_files(
    arguments: list[str], unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    for seed in range(100, 300):
        damage_and_go_on(seed, arguments, unfinished, finished, tmp_path)


REBUILT = ("config.yaml", "data.json", "losses.csv", "data_files.json", "environment.json")


def rebuilds(
    names: Sequence[str],
    content: bytes,
    command: list[str],
    unfinished: Path,
    finished: Path,
    folder: Path,
) -> None:
    output = copy_run(unfinished, folder / "run")
    for name in names:
        (output / name).write_bytes(content)
    before = len((output / "train.log").read_text())
    goes_on(command, output, finished)
    for name in names:
        assert (output / name).read_bytes() != content
        if name != "environment.json":
            assert name in (output / "train.log").read_text()[before:]


@pytest.mark.slow
@pytest.mark.parametrize("name", some_now(REBUILT, 2))
def test_every_file_is_rebuilt(
    name: str, arguments: list[str], unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    rebuilds([name], b"\xff\xfe garbage \x00", arguments, unfinished, finished, tmp_path)


@pytest.mark.slow
def test_all_files_are_rebuilt_at_once(
    arguments: list[str], unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    """Of a content that is sound YAML and says something else."""
    rebuilds(REBUILT, b"train:\n  lr: 0.5\n", arguments, unfinished, finished, tmp_path)


@pytest.mark.slow
def test_a_damaged_configuration_does_not_let_another_one_in(
    arguments: list[str], unfinished: Path, tmp_path: Path
) -> None:
    output = copy_run(unfinished, tmp_path / "run")
    (output / "config.yaml").unlink()
    with pytest.raises(
        ValueError, match=r"holds a run with another configuration \(train.lr: 1e-05 -> 0.5\)"
    ):
        train_stage1([*arguments, "train.lr=0.5"], output)


@pytest.mark.soak
def test_no_damage_of_a_state_is_taken_for_a_state(unfinished: Path, tmp_path: Path) -> None:
    """Every byte of it flipped once, in one bit."""
    checkpoint = copy_run(unfinished / "checkpoints" / "step_6", tmp_path / "step_6")
    sound = (checkpoint / "state.json").read_bytes()
    expected = read_state(checkpoint)
    for place in range(len(sound)):
        data = bytearray(sound)
        data[place] ^= 1 << place % 8
        (checkpoint / "state.json").write_bytes(bytes(data))
        try:
            found = read_state(checkpoint)
        except (OSError, ValueError):
            continue
        assert found == expected, place


@pytest.mark.slow
def test_stray_names_are_no_checkpoints(
    arguments: list[str], unfinished: Path, finished: Path, tmp_path: Path
) -> None:
    output = copy_run(unfinished, tmp_path / "run")
    checkpoints = output / "checkpoints"
    for name in ("step_6 (copy)", "step_", "step_007", "step_-1", "step_x", "step_9.old", "my notes"):
        shutil.copytree(checkpoints / "step_6", checkpoints / name)
    (checkpoints / "step_99").write_text("a file")
    goes_on(arguments, output, finished)


@pytest.mark.slow
def test_a_folder_with_a_run_refuses_a_second_one(
    arguments: list[str], unfinished: Path, tmp_path: Path
) -> None:
    """The sentence names the first; once that is killed, the folder is free, though its data workers still live."""
    output = copy_run(unfinished, tmp_path / "run")
    first = runs.start(
        "train_stage1.py", [*arguments, "train.max_steps=8", "train.num_workers=2", f"output_dir={output}"],
        tmp_path / "log",
    )  # fmt: skip
    while (
        not (output / "owner.json").exists()
        or f'"pid": {first.pid}' not in (output / "owner.json").read_text()
    ):
        assert first.is_alive(), (tmp_path / "log").read_text()
    os.kill(first.pid or 0, 19)  # SIGSTOP: it holds the folder for as long as the test likes
    before = runs.files_of(output)
    try:
        with pytest.raises(ValueError, match=f"is in use by process {first.pid} on .*train_stage1.py"):
            train_stage1(arguments, output)
        assert runs.files_of(output) == before
    finally:
        first.kill()
        first.join()
    train_stage1(arguments, output)


def test_a_requeued_job_waits_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from diffrestorer.data.ownership import own_folder\n"
        f"with own_folder(Path({str(tmp_path)!r})):\n  print('has it', flush=True); time.sleep(2)"
    )
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with own_folder(tmp_path):
            assert other.poll() is not None or other.wait(5) == 0


def test_sealed_files_are_written_only_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_sealed(path, {"a": 1})
    before = path.stat()
    write_sealed(path, {"a": 1})
    assert path.stat().st_ino == before.st_ino
    write_sealed(path, {"a": 2})
    assert path.stat().st_ino != before.st_ino
    assert read_sealed(path) == {"a": 2}
    path.write_text(path.read_text().replace('"a": 2', '"a": 3'))
    with pytest.raises(DamagedFileError, match=re.escape(f"{path} is damaged")):
        read_sealed(path)


@pytest.mark.soak
def test_a_finished_run_can_be_extended(arguments: list[str], finished: Path, tmp_path: Path) -> None:
    """With a constant schedule it ends like one that was as long from the beginning; otherwise it is refused."""
    longer = [*arguments, "train.max_steps=11"]
    train_stage1(longer, tmp_path / "whole")
    output = copy_run(finished, tmp_path / "extended")
    train_stage1(longer, output)
    assert runs.files_of(output / "model") == runs.files_of(tmp_path / "whole" / "model")
    assert runs.losses(output) == runs.losses(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"has done 11 steps: train.max_steps=8 is less"):
        train_stage1(arguments, output)

    falling = tmp_path / "falling"
    train_stage1([*arguments, "train.lr_schedule=cosine"], falling)
    with pytest.raises(ValueError, match=r"train\.max_steps: 8 -> 11"):
        train_stage1([*longer, "train.lr_schedule=cosine"], falling)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b'{"stage1": 70}', b'{"content": {"stage1": 1}, "sha256": "0"}']
)
def test_a_damaged_plan_keeps_the_steps_of_stages_that_began(
    content: bytes | None, unfinished: Path, tmp_path: Path
) -> None:
    copy_run(unfinished, tmp_path / "stage1")
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    assert _read_plan(path) == {"stage1": 8}
    write_sealed(path, dict.fromkeys(STAGES, 7))
    assert _read_plan(path) == dict.fromkeys(STAGES, 7)
    earlier = dict.fromkeys(("stage1", "decoder", "student"), 9)
    path.write_text(json.dumps(earlier))
    assert _read_plan(path) == earlier, "as earlier versions wrote it"
