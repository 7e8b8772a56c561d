"""Weights of metrics are read as tensors: no file of `metric_weights` is executed, whatever it holds."""

import hashlib
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from pyiqa.archs import clip_model
from soaking import some_now

from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric
from diffrestorer.evaluation.scoring.pyiqa_networks import WeightsError, create

CPU = torch.device("cpu")

WITH_FILES = [metric for metric in METRICS.values() if metric.files]


class Attack:
    """An object whose pickle creates a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def write_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps(Attack(target)))


def write_checkpoint(path: Path, target: Path) -> None:
    torch.save({"params": Attack(target)}, path)


def write_old_checkpoint(path: Path, target: Path) -> None:
    torch.save({"params": Attack(target)}, path, _use_new_zipfile_serialization=False)


def write_archive(path: Path, target: Path) -> None:
    """A TorchScript archive whose description of the weights is a pickle of ours."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Attack(target)))
        archive.writestr("archive/constants.pkl", pickle.dumps(()))
        archive.writestr("archive/code/__torch__.py", "")
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("write", [write_pickle, write_checkpoint, write_old_checkpoint, write_archive])
@pytest.mark.parametrize("metric", some_now(WITH_FILES, 2), ids=lambda metric: metric.name)
def test_no_file_is_executed(
    metric: Metric, write: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """Every metric that reads files, each file an attack; a file that is Python leaves its trace as well."""
    target = tmp_path / "executed"
    for name in metric.files:
        path = tmp_path / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            path.write_text(f"import os\nos.mkdir({str(target)!r})\n")
        else:
            write(path, target)

    with pytest.raises(WeightsError) as caught:
        create(metric, CPU, tmp_path / "hub")

    assert not target.exists()
    assert "\n" not in str(caught.value)
    assert "hub" in str(caught.value) or "metric_weights" in str(caught.value)


@pytest.mark.parametrize("name", some_now(["lpips", "dists", "fid"], 1))
def test_one_attacked_file_among_good_ones_is_not_executed(
    name: str, metric_weights: Path, tmp_path: Path
) -> None:
    """An attack by the second file, too, which is read after the first was found good."""
    target = tmp_path / "executed"
    for attacked in METRICS[name].files:
        hub = tmp_path / "hub"
        for file in METRICS[name].files:
            (hub / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(metric_weights / file, hub / file)
        write_checkpoint(hub / attacked, target)
        with pytest.raises(WeightsError, match="holds more than tensors"):
            create(METRICS[name], CPU, hub)
        assert not target.exists()
        shutil.rmtree(hub)


def test_clips_archive_is_read_without_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP-IQA on an archive like OpenAI's RN50.pt, of random weights: scores, and the setting is put back."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    clip = CLIP(
        1024, {"image_size": 224, "layers": [1, 1, 1, 1], "width": 64}, text, quick_gelu=True
    ).half()
    (tmp_path / "clip").mkdir()
    archive = tmp_path / "clip" / "RN50.pt"
    save_archive(clip.state_dict(), archive)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()  # pyiqa takes no other file
    monkeypatch.setitem(clip_model._MODELS, "RN50", f"https://localhost/{digest}/RN50.pt")
    loader = torch.jit.load

    scorer = Scorer([METRICS["clipiqa"]], CPU, tmp_path)

    assert not scorer.unavailable
    (score,) = scorer(torch.rand(1, 3, 64, 64))["clipiqa"]
    assert 0 < score < 1
    assert torch.jit.load is loader
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def save_archive(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save a TorchScript archive with tensors of these names."""
    root = torch.nn.Module()
    for name, value in state.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))
    torch.jit.script(root).save(path)
