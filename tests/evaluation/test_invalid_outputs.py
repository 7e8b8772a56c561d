"""Numbers that are not finite are no pixels: every method is refused by name, and the same command goes on later."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import quiet, restored, settings
from safetensors.torch import load_file, save_file

from diffrestorer.baselines.registry import build_baseline
from diffrestorer.evaluation.restoring.outputs import as_pixels
from diffrestorer.evaluation.run import evaluate
from diffrestorer.models.components import save_component

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_spoils_an_image(value: float) -> None:
    image = torch.linspace(0, 1, 48).reshape(3, 4, 4)
    pixels = as_pixels(image)
    assert pixels is not None
    assert np.array_equal(pixels, (image * 255).round().permute(1, 2, 0).numpy())
    image[1, 2, 3] = value
    assert as_pixels(image) is None


def nafnet(folder: Path, weight: float) -> Path:
    """A small NAFNet that adds its last convolution's weights to the image: 0 is the image itself, 3e38 infinity."""
    network = build_baseline(
        "nafnet", {"width": 4, "encoder_blocks": [1, 1, 1], "decoder_blocks": [1, 1, 1]}
    )
    for parameter in network.parameters():
        parameter.data.zero_()
    network.network.intro.bias.data.fill_(1)
    network.network.ending.weight.data.fill_(weight)
    save_component(network, folder / "model", torch.float32)
    return folder


def test_a_compared_method_that_overflows_is_named_and_the_command_goes_on(tmp_path: Path) -> None:
    """It gives infinities, of which clamping would make white pixels. What was made before it stays."""
    nafnet(tmp_path / "sound", 0)
    nafnet(tmp_path / "weights", 3e38)
    methods = [f"sound={tmp_path / 'sound'}", f"nafnet={tmp_path / 'weights'}"]
    run = settings(tmp_path / "run", methods, suite="mixed", metrics=["psnr"])
    with pytest.raises(
        ValueError, match=r"^nafnet turned blur\+noise/astronaut\.png into numbers that are"
    ) as error:
        evaluate(run, quiet())
    assert "\n" not in str(error.value)
    before = restored(tmp_path / "run")
    assert {name.partition("/")[0] for name in before} == {"sound"}
    assert not (tmp_path / "run" / "scores.csv").exists()

    # Sound weights under the same name: the same command ends, and keeps what was made.
    shutil.rmtree(tmp_path / "weights")
    nafnet(tmp_path / "weights", 0)
    evaluate(run, quiet())
    made = json.loads((tmp_path / "run" / "run.json").read_text())["methods"]
    assert (made["sound"]["restored"], made["nafnet"]["restored"]) == (0, 4)
    after = restored(tmp_path / "run")
    assert before.items() < after.items()


def spoiled(model: Path, folder: Path, factor: float) -> Path:
    """The model with a refined decoder whose first convolution is multiplied."""
    shutil.copytree(model, folder)
    (file,) = (folder / "decoder").glob("*.safetensors")
    state = load_file(file)
    state["decoder.conv_in.weight"] *= factor
    file.unlink()
    save_file(state, file)
    return folder


@pytest.mark.parametrize(
    ("dtype", "factor", "remedy"),
    [
        pytest.param(
            "float32", 1e38, "give other weights, or leave the method out", marks=pytest.mark.soak
        ),
        ("float16", 1e5, "take dtype=bfloat16 or dtype=float32"),
    ],
)
def test_a_decoder_that_overflows_is_named_and_what_shares_its_sampling_stays(
    dtype: str, factor: float, remedy: str, model: Path, tmp_path: Path
) -> None:
    """float16 overflows where float32 does not: there the remedy is another precision."""
    weights = spoiled(model, tmp_path / "model", factor)
    keys = {"suite": "mixed", "model": str(weights), "metrics": ["psnr"]}
    methods = ["diff_restorer_sd", "diff_restorer"]
    message = rf"^diff_restorer turned blur\+noise/astronaut\.png into numbers .*{remedy}$"
    with pytest.raises(ValueError, match=message):
        evaluate(settings(tmp_path / "run", methods, dtype=dtype, **keys), quiet())
    assert list(restored(tmp_path / "run")) == ["diff_restorer_sd/blur+noise/astronaut.png"]
    if dtype == "float16":
        evaluate(settings(tmp_path / "run", methods, only="restore", **keys), quiet())
        assert len(restored(tmp_path / "run")) == 8
