"""What processes share out is what one of them would have made alone."""

import json
from pathlib import Path

import pytest
import torch
import training_runs as runs
from torch import Tensor

from diffrestorer.models.components import load_component
from diffrestorer.training.shared_work import share_out

SHOWN = ("validation.csv", "validation/step_1.png", "samples/step_1.png")


def test_alone_a_process_does_everything() -> None:
    assert share_out(lambda item: item * item, 5) == [0, 1, 4, 9, 16]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_validation_samples_and_prototypes_are_those_of_one_process(
    processes: int, tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    """The one step moves no weight, so that gradients, whose sums depend on the number, play no part."""
    command = [
        *tiny_overrides, "data=photos", f"data.root={photos_dir}", "data.size=64", "train.max_steps=1",
        "train.global_batch_size=8", "train.num_workers=0", f"data.validation_root={photos_dir}", "train.lr=1e-30",
        "train.weight_decay=0", "train.validate_every=1", "train.validation_images=13", "train.ema_decay=0.9",
    ]  # fmt: skip
    one, several, log = tmp_path / "one", tmp_path / "several", tmp_path / "log"
    runs.run("train_stage1.py", [*command, f"output_dir={one}"], log)
    runs.run_ranks("train_stage1.py", [[*command, f"output_dir={several}"]], log, processes)

    assert json.loads((several / "environment.json").read_text())["num_processes"] == processes
    for name in SHOWN:
        assert (several / name).read_bytes() == (one / name).read_bytes(), name
    assert torch.equal(prototypes(several), prototypes(one))


def prototypes(output: Path) -> Tensor:
    return load_component(output / "model" / "prompt_processor").class_prototypes


@pytest.mark.soak
def test_an_image_encoder_is_fitted_together(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    """Each process looks at some of the crops. A second start of both leaves it as it is."""
    command = [
        *tiny_overrides, f"data.root={photos_dir}", "data.size=64", "part=image_encoder", "image_encoder_batches=3",
    ]  # fmt: skip
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    runs.run("train_base.py", [*command, f"output_dir={one}"], log)
    for _ in range(2):
        runs.run_ranks("train_base.py", [[*command, f"output_dir={two}"]], log, 2)
        assert runs.files_of(two / "image_encoder") == runs.files_of(one / "image_encoder")
