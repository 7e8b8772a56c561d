"""Evaluation's precision: what a name means on a GPU, for every method, and that it is recorded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from evaluation_runs import quiet, settings
from rich.progress import Progress

from diffrestorer.baselines.registry import build_baseline
from diffrestorer.evaluation import run as evaluation_run
from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.restoring.outputs import made_by
from diffrestorer.evaluation.restoring.precision import (
    DTYPES,
    check_precision,
    gpu_products,
    precision_of,
)
from diffrestorer.evaluation.restoring.restore_suite import restore_suite
from diffrestorer.evaluation.restoring.runners import Sampling
from diffrestorer.evaluation.run import evaluate
from diffrestorer.models.components import save_component

CPU = torch.device("cpu")


def allowed() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    """PyTorch's default, from which every test starts and to which everything must return."""
    assert allowed() == (False, True)
    yield
    assert allowed() == (False, True)


@pytest.mark.parametrize("name", DTYPES)
def test_only_tf32_lets_a_gpu_drop_digits(name: str) -> None:
    with gpu_products(name):
        assert allowed() == (name == "tf32", name == "tf32")


def test_a_failure_leaves_pytorch_s_default_behind() -> None:
    def fail() -> None:
        with gpu_products("tf32"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_tf32_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype=tf32 is a mode of NVIDIA's GPUs, there is none on cpu"):
        evaluate(settings(tmp_path, ["degraded"], dtype="tf32"), quiet())
    check_precision("tf32", torch.device("cuda"))


def test_what_is_recorded() -> None:
    assert precision_of("float32", torch.float32) == "float32"
    assert precision_of("tf32", torch.float32) == "tf32"
    assert precision_of("bfloat16", torch.bfloat16) == "bfloat16"
    assert precision_of("bfloat16", torch.float32) == "float32", "a compared method stays as it is"


@pytest.mark.soak
def test_every_method_runs_in_the_precision_of_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs say so, and those of another precision are made again. Scores are strict float32 in any case."""
    nafnet = build_baseline("nafnet", {"width": 4, "encoder_blocks": [1], "decoder_blocks": [1]})
    save_component(nafnet, tmp_path / "nafnet", torch.float32)
    methods = [
        Method("diff_restorer", "model", str(model)),
        Method("nafnet", "baseline", str(tmp_path / "nafnet")),
    ]
    seen: list[tuple[str, tuple[bool, bool]]] = []
    watch = lambda module, *_: seen.append((type(module).__name__, allowed()))  # noqa: E731
    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    for name in ("float32", "tf32", "float32"):
        config = settings(tmp_path / "out", [], model=str(model), dtype=name)
        suite = build_suite(config)
        with Progress(console=quiet()) as progress:
            sampling, state = Sampling(dtype=name, steps=1), PartialState(cpu=True)
            _, made = restore_suite(methods, suite, tmp_path / "out", sampling, 8, CPU, state, progress)
        networks = {network for network, _ in seen}
        assert {"MiniDecoder", "NAFNet"} <= networks
        assert {flags for _, flags in seen} == {(name == "tf32",) * 2}
        for method in methods:
            assert made[method.name]["dtype"] == name
            assert made[method.name]["kept"] == 0, "what another precision made is not kept"
            assert made_by(method.output(suite.items[0], tmp_path / "out"))["dtype"] == name
        seen.clear()
    hook.remove()

    scored: list[tuple[bool, bool]] = []
    score = evaluation_run._score
    watched: Any = lambda *arguments: (scored.append(allowed()), score(*arguments))[1]  # noqa: E731
    monkeypatch.setattr(evaluation_run, "_score", watched)
    evaluate(settings(tmp_path / "scored", ["degraded"]), quiet())
    assert scored == [(False, False)]
