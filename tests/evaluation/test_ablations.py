"""The rows of Tables II-V: found by name, checked against their claim, and the Consistency Decoder's wiring."""

from pathlib import Path

import pytest
import torch
from diffusers import ConsistencyDecoderVAE, UniPCMultistepScheduler
from evaluation_runs import quiet, settings

from diffrestorer.config.composition import CONFIG_DIR
from diffrestorer.config.schema import ModelConfig
from diffrestorer.evaluation.ablations import ABLATIONS
from diffrestorer.evaluation.methods import Method, choose_methods, parse_methods
from diffrestorer.evaluation.report.paper import PAPER_TABLES
from diffrestorer.evaluation.restoring.identity import check_ablation
from diffrestorer.evaluation.restoring.runners import PipelineRunner, Sampling
from diffrestorer.evaluation.run import evaluate
from diffrestorer.inference.model_folder import save_model_folder
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.restorer import Restorer


def test_every_row_has_a_config_and_every_config_a_row() -> None:
    configs = {path.stem for path in (CONFIG_DIR / "ablation").glob("*.yaml")} - {"none"}
    assert set(ABLATIONS) == configs
    printed = {name for table in PAPER_TABLES[1:] for name in table.methods}
    assert printed == {*ABLATIONS, "diff_restorer_sd", "diff_restorer"}


def test_all_of_the_ablation_suite_are_the_rows_with_the_commands_that_train_them(
    tmp_path: Path,
) -> None:
    methods = parse_methods(["all"], "ablation", "mini", str(tmp_path))
    assert [method.name for method in methods] == [*ABLATIONS, "diff_restorer_sd", "diff_restorer"]
    reasons = {method.name: method.reason for method in methods}
    assert reasons["no_dmb"] == (
        f"not trained: accelerate launch -m diffrestorer train stage1 ablation=no_dmb output_dir={tmp_path}/no_dmb"
    )
    assert "train decoder ablation=no_drb" in reasons["no_drb"]
    assert {method.name: method.decoder for method in methods} == {
        **dict.fromkeys(ABLATIONS, "sd"), "consistency_decoder": "consistency", "no_drb": "refined",
        "diff_restorer_sd": "sd", "diff_restorer": "refined",
    }  # fmt: skip


def test_a_model_that_is_not_the_ablation_is_refused(model: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, [], suite="ablation", ablation="no_semantic", model=str(model))
    entries = choose_methods([], "ablation", str(model), "no_semantic")
    assert parse_methods(entries, "ablation", str(model), "outputs") == [
        Method("no_semantic", "model", str(model), "sd")
    ]
    with pytest.raises(
        ValueError, match=r"prompt_processor says semantic=True; train it: .*ablation=no_semantic"
    ):
        evaluate(config, quiet())


def test_the_claims_are_keys_of_the_components(model: Path) -> None:
    pipe = DiffRestorerPipeline.from_pretrained(model)
    for name, ablation in ABLATIONS.items():
        if ablation.component:
            assert getattr(pipe, ablation.component).config[ablation.key] is True, name
            with pytest.raises(ValueError, match=ablation.component):
                check_ablation(Method(name, "model", str(model)), pipe)


def test_rows_that_are_not_there_are_unavailable(model: Path, tmp_path: Path) -> None:
    keys = {
        "suite": "ablation",
        "model": str(model),
        "trained": str(tmp_path),
        "consistency_decoder": "/nowhere",
    }
    evaluate(settings(tmp_path / "out", [], **keys), quiet())
    for number in (2, 3, 4, 5):
        assert (tmp_path / "out" / f"table{number}.csv").is_file()
    page = (tmp_path / "out" / "table5.md").read_text()
    assert "Consistency Decoder: no Consistency Decoder at '/nowhere'" in page
    assert "give consistency_decoder=FOLDER" in page
    assert "Means over the tasks low_light, haze, snow+noise, raindrop+blur+noise alone" in page
    assert "1 open photos" in page


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Consistency Decoder of random weights; its latents have Stable Diffusion's four channels."""
    torch.manual_seed(0)
    vae = ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 8, 8, 8),
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=(8, 8),
        decoder_layers_per_block=1,
        decoder_down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        decoder_up_block_types=("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        decoder_norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("consistency")
    vae.save_pretrained(folder)
    return folder


def test_the_consistency_decoder_reads_the_same_latents(
    tiny_restorer: Restorer, tiny_config: ModelConfig, decoder: Path, tmp_path: Path
) -> None:
    """An image does not depend on its batch, and decoders share one sampling."""
    save_model_folder(
        tiny_restorer, UniPCMultistepScheduler(**tiny_config.scheduler), tmp_path / "model"
    )
    model = str(tmp_path / "model")
    method, plain = (
        Method("consistency_decoder", "model", model, "consistency"),
        Method("x", "model", model),
    )
    runner = PipelineRunner(
        [method, plain], Sampling(steps=1, consistency_decoder=str(decoder)), torch.device("cpu")
    )
    lq = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both, single = (
        runner.restore(lq, ["one", "two"], [method, plain]),
        runner.restore(lq[1:], ["two"], [method]),
    )
    assert both[method.name].images.shape == lq.shape
    torch.testing.assert_close(
        both[method.name].images[1:], single[method.name].images, atol=1e-4, rtol=0
    )
    assert (both[method.name].images - both["x"].images).abs().mean() > 1e-3
    assert runner.settings(method)["weights"].startswith(runner.settings(plain)["weights"] + "+")


def test_other_latents_than_stable_diffusions_are_refused(
    model: Path, decoder: Path, tmp_path: Path
) -> None:
    keys = {"model": str(model), "consistency_decoder": str(decoder), "suite": "mixed"}
    scores = evaluate(settings(tmp_path / "out", ["consistency_decoder", "degraded"], **keys), quiet())
    assert {score.method for score in scores} == {"degraded"}
    assert (
        "latents of 4 channels, Stable Diffusion's; this model's have 16"
        in (tmp_path / "out" / "run.json").read_text()
    )
