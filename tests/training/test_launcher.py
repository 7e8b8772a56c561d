"""What a launcher asks for is used, or refused in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import training_runs as runs
from accelerate.commands.config.config_args import load_config_from_file
from tiny_runs import arguments as tiny_arguments
from tiny_runs import train_stage1

from diffrestorer.config.composition import CONFIG_DIR
from diffrestorer.training.launcher import check_launcher


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, r"train\.micro_batch_size"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, r"give train\.mixed_precision"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, r"give train\.mixed_precision"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, r"train\.hardware\.compile_blocks=true"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ({"ACCELERATE_USE_MEGATRON_LM": "1"}, "Megatron-LM"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "torchrun --nproc_per_node"),
    ],
)
def test_what_would_be_ignored_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_launcher(environment, "no")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "ACCELERATE_MIXED_PRECISION": "no"},
        {
            "ACCELERATE_MIXED_PRECISION": "bf16",
            "ACCELERATE_DYNAMO_BACKEND": "no",
            "ACCELERATE_USE_CPU": "True",
        },
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"},
        {"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"},
    ],
)
def test_what_asks_for_nothing_else_passes(environment: dict[str, str]) -> None:
    check_launcher(environment, "bf16")


@pytest.mark.slow
def test_the_launcher_itself_starts_what_was_asked_for_or_nothing(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    """accelerate launch on a machine without a GPU: one process where two were asked for is a refusal."""
    command = tiny_arguments(tiny_overrides, photos_dir, "train.max_steps=2")
    script = str(runs.ROOT / "scripts" / "train_stage1.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*launch, *options, script, *command, f"output_dir={tmp_path}/run"],
            env=environment, capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip

    refused = start("--num_processes", "2")
    assert refused.returncode != 0
    assert "was asked for several processes and started one" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()
    done = start("--num_processes", "1")
    assert done.returncode == 0, done.stderr
    train_stage1(command, tmp_path / "plain")
    assert runs.files_of(tmp_path / "run" / "model") == runs.files_of(tmp_path / "plain" / "model")


@pytest.mark.parametrize(("name", "processes"), [("1gpu", 1), ("8gpus", 8), ("2nodes", 16)])
def test_launch_configurations_are_accelerate_s_and_ask_for_nothing_else(
    name: str, processes: int
) -> None:
    """Accelerate reads them without a complaint about keys; precision is left to the run."""
    config = load_config_from_file(str(CONFIG_DIR / "accelerate" / f"{name}.yaml"))
    assert (config.num_processes, config.mixed_precision) == (processes, "no")
    assert config.num_machines == (2 if name == "2nodes" else 1)
    assert config.use_cpu is False
    check_launcher({"ACCELERATE_MIXED_PRECISION": config.mixed_precision}, "bf16")
