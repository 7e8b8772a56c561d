"""Stage 1 ends with the degradations' prototypes in the model folder."""

from pathlib import Path

import torch

from diffrestorer.config.composition import load
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.schema import Stage1Config
from diffrestorer.models.components import load_component
from diffrestorer.models.prompt_processor import PromptProcessor
from diffrestorer.training.stage1 import Stage1Task


def test_a_saved_model_knows_each_degradation_it_saw(
    tiny_overrides: list[str], photos_dir: Path, tmp_path: Path
) -> None:
    seen = ["noise", "blur"]
    data = [
        "data=photos",
        f"data.root={photos_dir}",
        "data.size=64",
        f"data.degradations=[{','.join(seen)}]",
    ]
    task = Stage1Task(load("train_stage1", Stage1Config, [*tiny_overrides, *data]))
    trained = [name for name, _ in task.named_parameters()]
    task.conclude()
    task.save_model(tmp_path, torch.float32)
    processor = load_component(tmp_path / "prompt_processor")
    assert isinstance(processor, PromptProcessor)
    for degradation, row in zip(DEGRADATIONS, processor.class_prototypes, strict=True):
        assert bool(row.any()) == (degradation in seen)
    assert not torch.allclose(processor.prototype("noise"), processor.prototype("blur"), atol=1e-4)
    assert [name for name, _ in task.named_parameters()] == trained, "a buffer, not a parameter"
