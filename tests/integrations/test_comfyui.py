"""The ComfyUI node, loaded and called as ComfyUI does."""

import importlib.util
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from diffrestorer.inference.photos import load_pipeline

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The folder, copied among ComfyUI's custom nodes and imported from there by its path."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "diff-restorer"
    shutil.copytree(FOLDER, folder)
    spec = importlib.util.spec_from_file_location(
        "custom_nodes_diff_restorer", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(nodes: ModuleType, random_model: Path) -> Callable[..., Any]:
    """Executes the node: FUNCTION with every input by its name, defaults where a workflow sets none."""
    node = nodes.NODE_CLASS_MAPPINGS["DiffRestorer"]

    def execute(image: torch.Tensor, **inputs: Any) -> Any:
        kinds = node.INPUT_TYPES()
        defaults = {
            name: kind[1]["default"]
            for group in kinds.values()
            for name, kind in group.items()
            if name != "image"
        }
        assert set(inputs) <= set(defaults)
        fixed = {"model": str(random_model), "device": "cpu", "steps": 2}
        return getattr(node(), node.FUNCTION)(image=image, **{**defaults, **fixed, **inputs})

    return execute


def batch(height: int, width: int, channels: int = 3, count: int = 1) -> torch.Tensor:
    """ComfyUI's images: b h w c in [0, 1]."""
    return torch.rand(count, height, width, channels, generator=torch.Generator().manual_seed(0))


def test_inputs_are_the_method_s_arguments(nodes: ModuleType) -> None:
    for key, node in nodes.NODE_CLASS_MAPPINGS.items():
        assert key in nodes.NODE_DISPLAY_NAME_MAPPINGS
        kinds = node.INPUT_TYPES()
        assert set(kinds) <= {"required", "optional", "hidden"}
        described = {name: kind for group in kinds.values() for name, kind in group.items()}
        taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert [name for name in taken if name != "self"] == list(described)
        for name, kind in described.items():
            if name != "image":
                assert kind[1]["default"] == taken[name].default, name
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
        json.dumps(kinds)  # the browser gets it


def test_a_batch_is_the_pipeline_s(run: Callable[..., Any], random_model: Path) -> None:
    images = batch(64, 96, count=2)
    pipe = load_pipeline(str(random_model), "cpu")
    generators = [torch.Generator().manual_seed(7) for _ in images]
    expected = pipe(images.movedim(-1, 1), 2, generators, output_type="pt")

    restored, degradations = run(images, seed=7)

    assert restored.shape == images.shape
    assert restored.dtype == torch.float32
    assert 0 <= restored.min() < restored.max() <= 1
    torch.testing.assert_close(restored.movedim(-1, 1), torch.stack(expected.images))
    likeliest = expected.degradation_probabilities.argmax(dim=1)
    for line, index in zip(degradations.splitlines(), likeliest, strict=True):
        assert line.startswith(f"{pipe.classes[index]} ")


def test_any_size_alpha_and_a_named_degradation(run: Callable[..., Any]) -> None:
    image = batch(45, 70, channels=4)
    detected, _ = run(image)
    named, _ = run(image, degradation=" snow ")
    assert detected.shape == named.shape == (1, 45, 70, 3)
    assert not torch.equal(detected, named)
    assert torch.equal(run(image[..., :3])[0], detected), "alpha is left out"


def test_what_is_not_usable_is_a_sentence(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="degradation must be one of"):
        run(batch(32, 32), degradation="fog")
    with pytest.raises(ValueError, match="can't be loaded"):
        run(batch(32, 32), model=str(tmp_path))


def test_the_model_is_loaded_once(run: Callable[..., Any], nodes: ModuleType) -> None:
    nodes._load.cache_clear()
    run(batch(32, 32))
    run(batch(32, 32), seed=1)
    assert nodes._load.cache_info().misses == 1
