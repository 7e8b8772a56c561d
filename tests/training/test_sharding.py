"""A run that divides its optimiser's state among processes is the run that does not, bit for bit."""

import copy
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import torch
import training_runs as runs
from tiny_runs import copy_run
from torch import distributed, nn

from diffrestorer.training.checkpoint import list_checkpoints
from diffrestorer.training.sharding import ShardedOptimizer, consolidate, shard

SHARD = "train.hardware.shard_optimizer=true"
STEPS, EVERY = 6, 3


@pytest.fixture(scope="module")
def arguments(tiny_overrides: list[str], photos_dir: Path) -> list[str]:
    """The rate changes at every step, gradients are clipped, and two micro batches make a process's share."""
    return [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=32", f"train.max_steps={STEPS}",
        "train.global_batch_size=4", "train.micro_batch_size=1", "train.num_workers=0", "train.log_every=1",
        f"train.checkpoint_every={EVERY}", "train.sample_every=1000", "train.lr=1e-3", "train.warmup_steps=2",
        "train.lr_schedule=cosine", "train.max_grad_norm=0.5", "train.ema_decay=0.9", "model.train_unet=all",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes without the key, and beside it (`sharded`) two with it."""
    output = tmp_path_factory.mktemp("two") / "whole"
    sharded = [*arguments, SHARD, f"output_dir={output.parent / 'sharded'}"]
    commands = [[*arguments, f"output_dir={output}"], sharded]
    runs.run_ranks("train_stage1.py", commands, output.parent / "log", 2)
    return output


@pytest.fixture(scope="module")
def sharded(whole: Path) -> Path:
    return whole.parent / "sharded"


def learned(run: Path) -> dict[str, bytes]:
    """Every file that depends on what was learned: losses, tensors and options of the checkpoints, the model."""
    files = {"losses.csv": (run / "losses.csv").read_bytes()}
    for checkpoint in list_checkpoints(run / "checkpoints"):
        for path in checkpoint.glob("*.safetensors"):
            files[f"{checkpoint.name}/{path.name}"] = path.read_bytes()
        groups = json.loads((checkpoint / "state.json").read_text())["content"]["param_groups"]
        files[f"{checkpoint.name}/groups"] = json.dumps(groups).encode()
    return {**files, **runs.files_of(run / "model")}


def unfinished(run: Path, output: Path) -> Path:
    """A copy of a run as it was after its first checkpoint."""
    copy_run(run, output)
    shutil.rmtree(output / "model")
    shutil.rmtree(list_checkpoints(output / "checkpoints")[-1])
    lines = (output / "losses.csv").read_text().splitlines(keepends=True)
    (output / "losses.csv").write_text("".join(lines[: 1 + EVERY]))
    return output


@pytest.mark.slow
def test_two_processes_learn_the_same_and_write_the_same_checkpoints(
    whole: Path, sharded: Path
) -> None:
    assert len(list_checkpoints(whole / "checkpoints")) == 2
    assert len(runs.losses(whole)) == STEPS
    assert learned(sharded) == learned(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "processes", "options"),
    [
        pytest.param(
            "whole", 2, [SHARD], marks=pytest.mark.soak, id="an undivided run goes on divided"
        ),
        pytest.param("sharded", 2, [], marks=pytest.mark.soak, id="a divided run goes on undivided"),
        pytest.param("sharded", 2, [SHARD], marks=pytest.mark.soak, id="a divided run goes on"),
    ],
)
def test_any_run_goes_on_from_any_checkpoint(
    source: str, processes: int, options: list[str], arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    output = unfinished(whole.parent / source, tmp_path / "run")
    command = [*arguments, *options, f"output_dir={output}"]
    runs.run_ranks("train_stage1.py", [command], tmp_path / "log", processes)
    assert learned(output) == learned(whole)


@pytest.mark.soak
@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_goes_on_as_without_the_key(
    processes: int, arguments: list[str], sharded: Path, tmp_path: Path
) -> None:
    """Sums over other processes round in another way: each number has its own outcome, divided or not."""
    outputs = [unfinished(sharded, tmp_path / name) for name in ("plain", "divided")]
    for options, output in zip(([], [SHARD]), outputs, strict=True):
        command = [*arguments, *options, f"output_dir={output}"]
        runs.run_ranks("train_stage1.py", [command], tmp_path / "log", processes)
    assert learned(outputs[1]) == learned(outputs[0])


@pytest.mark.soak
def test_a_killed_divided_run_ends_like_one_that_was_not(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, SHARD, f"output_dir={output}"]
    ranks = runs.start_ranks("train_stage1.py", [command], log, 2)
    while not list_checkpoints(output / "checkpoints"):
        assert all(rank.is_alive() for rank in ranks), log.read_text()
        time.sleep(0.001)
    for rank in ranks:
        rank.kill()
        rank.join()
    assert not (output / "model").exists()
    runs.run_ranks("train_stage1.py", [command], log, 2)
    assert learned(output) == learned(whole)


@pytest.mark.soak
@pytest.mark.parametrize("asked", [0, 1])
def test_a_divided_run_stops_with_a_checkpoint(
    asked: int, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """All processes agree to stop after a step, which is not one of the regular checkpoints'."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, SHARD, "train.checkpoint_every=1000", f"output_dir={output}"]
    ranks = runs.start_ranks("train_stage1.py", [command], log, 2)
    while not (output / "losses.csv").exists() or not runs.losses(output):
        assert all(rank.is_alive() for rank in ranks), log.read_text()
        time.sleep(0.001)
    os.kill(ranks[asked].pid or 0, signal.SIGTERM)
    for rank in ranks:
        rank.join(1800)
    assert [rank.exitcode for rank in ranks] == [75, 75], log.read_text()
    assert "Traceback" not in log.read_text()
    (checkpoint,) = list_checkpoints(output / "checkpoints")
    assert f"stopped at step {checkpoint.name[5:]} (SIGTERM)" in log.read_text()

    runs.run_ranks("train_stage1.py", [[*arguments, SHARD, f"output_dir={output}"]], log, 2)
    assert runs.losses(output) == runs.losses(whole)
    assert runs.files_of(output / "model") == runs.files_of(whole / "model")


@pytest.mark.soak
@pytest.mark.parametrize("stalled", [0, 1])
def test_a_divided_run_that_is_stuck_keeps_its_last_checkpoint(
    stalled: int, arguments: list[str], tmp_path: Path
) -> None:
    """A process waits for its data for ever: nobody can collect the state, and the run says so."""
    output, log = tmp_path / "run", tmp_path / "log"
    command = [*arguments, SHARD, "train.num_workers=1", "train.max_steps=60", f"output_dir={output}"]
    ranks = runs.start_ranks("train_stage1.py", [command], log, 2)
    while not list_checkpoints(output / "checkpoints"):
        assert all(rank.is_alive() for rank in ranks), log.read_text()
        time.sleep(0.002)
    main = psutil.Process(ranks[stalled].pid)
    for worker in (child for child in main.children() if child.cmdline() == main.cmdline()):
        worker.send_signal(signal.SIGSTOP)
    rows = -1
    while rows != (rows := len(runs.losses(output))):
        time.sleep(3)
    kept = runs.files_of(list_checkpoints(output / "checkpoints")[-1])

    os.kill(ranks[1 - stalled].pid or 0, signal.SIGTERM)
    for rank in ranks:
        rank.join(1800)
    text = log.read_text()
    assert [rank.exitcode for rank in ranks] == [75, 75], text
    assert "Traceback" not in text
    assert text.count("stopped (SIGTERM) without a new checkpoint: processes that wait for each") == 1
    assert runs.files_of(list_checkpoints(output / "checkpoints")[-1]) == kept


def step_both(rank: int, port: int, folder: Path) -> None:
    """Step an optimiser and a divided copy of it; write what was found. Runs in a process of its own."""
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    copied = copy.deepcopy(network)
    optimizer, other = (
        torch.optim.AdamW(
            [{"params": one[:3].parameters()}, {"params": one[3:].parameters(), "start_step": 7}],
            fused=True,
        )
        for one in (network, copied)
    )
    (divided,) = shard([other])
    assert isinstance(divided, ShardedOptimizer)

    # At first the plain one alone; then both, from its state and at other rates.
    for step in range(4):
        if step == 2:
            divided.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            copied.load_state_dict(network.state_dict())
        both = [(network, optimizer), (copied, divided)]
        for trained, stepped in both if step >= 2 else both[:1]:
            stepped.param_groups[0]["lr"] = 0.1 / (step + 1)
            trained(torch.full((1, 6), step + 1.0)).square().sum().backward()
            stepped.step()
            stepped.zero_grad()

    held = [name for name, parameter in copied.named_parameters() if divided.state.get(parameter)]
    inner = [
        (group["lr"], group["fused"], group.get("start_step")) for group in divided.optim.param_groups
    ]
    (folder / f"{rank}.json").write_text(json.dumps({"held": held, "inner": inner}))
    for one, two in zip(network.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, two)

    # The whole state comes to the main process.
    consolidate([divided])
    if rank == 0:
        found, wanted = divided.state_dict(), optimizer.state_dict()
        assert found["param_groups"] == wanted["param_groups"]
        torch.testing.assert_close(found["state"], wanted["state"], rtol=0, atol=0)
    distributed.barrier()
    distributed.destroy_process_group()


def test_each_process_holds_a_share_and_the_whole_is_the_plain_optimizer_s(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [runs.context.Process(target=step_both, args=(rank, port, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0, 0]

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    names = [f"{layer}.{kind}" for layer in range(5) for kind in ("weight", "bias")]
    assert sorted([*first["held"], *second["held"]]) == sorted(names)
    elements = [sum(36 if "weight" in name else 6 for name in one["held"]) for one in (first, second)]
    assert sorted(elements) == [102, 108], "parameters are not cut"
    assert first["inner"] == second["inner"] == [[0.1 / 4, True, None], [1e-3, True, 7]]
