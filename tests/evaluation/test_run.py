"""evaluate() from end to end: outputs, tables, resumption, refusals; with a real model of random weights."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import quiet, restored, settings
from PIL import Image

from diffrestorer.baselines.registry import build_baseline
from diffrestorer.config.degradations import DEGRADATIONS, MIXTURES
from diffrestorer.evaluation.ablations import ABLATIONS
from diffrestorer.evaluation.methods import Method, parse_methods
from diffrestorer.evaluation.report.sentences import summary_sentences
from diffrestorer.evaluation.report.table_text import markdown
from diffrestorer.evaluation.report.tables import Standings, build_tables, find_standings, table_rows
from diffrestorer.evaluation.restoring import runners
from diffrestorer.evaluation.restoring.identity import check_ablation
from diffrestorer.evaluation.restoring.outputs import made_by
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric
from diffrestorer.evaluation.scoring.scores import Score, Summary, nan_counts, summarise
from diffrestorer.inference import tiling
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.components import save_component

NAMES = [*DEGRADATIONS, *MIXTURES]


def test_the_degraded_method_needs_no_model(tmp_path: Path) -> None:
    scores = evaluate(settings(tmp_path, ["degraded"]), quiet())
    assert [score.degradation for score in scores] == NAMES
    item = scores[0]
    gt, lq = (
        np.asarray(Image.open(tmp_path / "suite" / file), np.float64) / 255
        for file in ("gt/astronaut.png", "lq/noise/astronaut.png")
    )
    assert item.values["psnr"] == pytest.approx(-10 * math.log10(((gt - lq) ** 2).mean()), abs=1e-3)
    assert not (tmp_path / "restored").exists()


def test_scores_csv(finished: Path) -> None:
    with (finished / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["suite", "degradation", "image", "method", "psnr", "ssim"]
    methods = ["degraded", "diff_restorer_sd", "diff_restorer"]
    assert [row[:4] for row in rows] == [
        ["demo", name, "astronaut", m] for name in NAMES for m in methods
    ]
    assert all(0 < float(row[4]) < 80 and -1 <= float(row[5]) <= 1 for row in rows)


def test_run_json_says_what_made_the_files(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert {
        "torch",
        "diffusers",
        "pyiqa",
        "diffrestorer",
        "git_commit",
        "device",
        "seed",
        "steps",
    } <= set(run)
    made = run["methods"]
    assert list(made) == ["diff_restorer_sd", "diff_restorer"]
    assert made["diff_restorer"]["weights"] == made["diff_restorer_sd"]["weights"]
    assert (made["diff_restorer"]["decoder"], made["diff_restorer_sd"]["decoder"]) == ("refined", "sd")
    assert made["diff_restorer"]["restored"] == len(NAMES)
    assert made["diff_restorer"]["seconds_per_image"] > 0


@pytest.mark.slow
def test_resuming_restores_only_what_is_missing(finished: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    before = restored(folder)
    stamps = {file: file.stat().st_mtime_ns for file in (folder / "restored").rglob("*.png")}
    lost = folder / "restored" / "diff_restorer" / "haze" / "astronaut.png"
    lost.unlink()
    evaluate(settings(folder, ["all"], model=str(model)), quiet())
    made = json.loads((folder / "run.json").read_text())["methods"]
    assert (made["diff_restorer"]["restored"], made["diff_restorer_sd"]["restored"]) == (1, 0)
    assert [file for file, stamp in stamps.items() if file.stat().st_mtime_ns != stamp] == [lost]
    pixels = [np.asarray(Image.open(file)) for file in (lost, finished / lost.relative_to(folder))]
    assert np.array_equal(*pixels)  # in the batch that it was in before
    assert (folder / "scores.csv").read_bytes() == (finished / "scores.csv").read_bytes()
    evaluate(settings(folder, ["all"], model=str(model), seed=1), quiet())
    assert all(before[name] != data for name, data in restored(folder).items())


@pytest.mark.soak
def test_a_model_folder_and_foreign_outputs(finished: Path, model: Path, tmp_path: Path) -> None:
    outputs = finished / "restored" / "diff_restorer"
    methods = [f"mine={model.parent}", f"mine_sd={model}", f"theirs={outputs}"]
    scores = evaluate(settings(tmp_path, methods), quiet())
    by_method = {
        name: [s.values["psnr"] for s in scores if s.method == name]
        for name in ("mine", "mine_sd", "theirs")
    }
    assert by_method["mine"] == pytest.approx(by_method["theirs"], abs=0.01)
    assert (
        restored(tmp_path)["theirs/haze/astronaut.png"]
        == (outputs / "haze" / "astronaut.png").read_bytes()
    )
    assert (made_by(tmp_path / "restored" / "mine_sd" / "haze" / "astronaut.png") or {})[
        "decoder"
    ] == "sd"


def test_outputs_that_do_not_fit_are_named(finished: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(finished / "restored" / "diff_restorer", outputs)
    Image.new("RGB", (32, 64)).save(outputs / "snow" / "astronaut.png")
    with pytest.raises(ValueError, match=r"of another size.*snow/astronaut\.png \(32x64, not 64x64\)"):
        evaluate(settings(tmp_path / "out", [f"theirs={outputs}"]), quiet())
    (outputs / "jpeg" / "astronaut.png").unlink()
    with pytest.raises(ValueError, match=r"lacks jpeg/astronaut\.png$"):
        evaluate(settings(tmp_path / "out", [f"theirs={outputs}"]), quiet())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["nafnet"], "train baseline method=nafnet"),
        (["naffnet"], "choose from degraded, diff_restorer_sd, diff_restorer, airnet"),
        (["x=/nowhere"], "there is no folder"),
        (["../x=."], "can't be the name"),
        (["degraded", "all"], "names degraded twice"),
    ],
)
def test_wrong_methods_are_refused(tmp_path: Path, method: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(settings(tmp_path, method), quiet())
    assert not any(tmp_path.iterdir())


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a model"):
        evaluate(settings(tmp_path / "out", [f"x={tmp_path / 'empty'}"]), quiet())


def test_the_contact_sheet_has_a_row_a_degradation(finished: Path) -> None:
    with Image.open(finished / "contact_sheet.png") as sheet:
        assert sheet.height > len(NAMES) * 192
        assert sheet.width > 4 * 192


def made_up(
    values: dict[str, dict[str, float]], metrics: list[Metric]
) -> tuple[list[Summary], Standings]:
    """Ten equal images of each degradation."""
    scores = [
        Score("demo", degradation, f"{image}", method, {"psnr": value, "nlpd": -value})
        for degradation, methods in values.items()
        for method, value in methods.items()
        for image in range(10)
    ]
    return summarise(scores, metrics, {}, {}), find_standings(
        scores, {}, metrics, table_rows(list(values))
    )


def test_best_and_sentences_come_from_the_data() -> None:
    metrics = [METRICS["psnr"], METRICS["nlpd"]]
    methods = [Method("degraded", "degraded"), Method("diff_restorer", "model")]
    better, worse = {"degraded": 20.0, "diff_restorer": 25.0}, {"degraded": 20.0, "diff_restorer": 15.0}
    found = made_up({"noise": better, "haze": better, "snow": worse, "blur+noise": better}, metrics)
    tables = build_tables(found[0], metrics, methods, found[1])
    groups = [row for row in tables[0].rows if row.group]
    assert [row.label for row in groups] == ["mean of single degradations", "mean of mixtures"]
    assert groups[0].cells["diff_restorer"].mean == pytest.approx(65 / 3)
    for table in tables:
        best = [row.cells["diff_restorer"].best for row in table.rows if not row.group]
        assert best == [True, True, False, True]
    expected = (
        "refined decoder has a better mean than degraded input in PSNR on 2, in NLPD on 2 of 3 single "
    )
    expected += "degradations; "
    expected += "in PSNR on 1, in NLPD on 1 of 1 mixtures."
    assert summary_sentences(tables, {}) == [expected]
    lines = [line.replace(" ", "") for line in markdown(tables, [], "").splitlines()]
    assert "|noise|20.00|**25.00**|" in lines


def test_nan_is_counted_and_not_averaged_away() -> None:
    methods = [Method("degraded", "degraded"), Method("diff_restorer", "model")]
    values = {
        "noise": {"degraded": 20.0, "diff_restorer": math.nan},
        "haze": {"degraded": 20.0, "diff_restorer": 25.0},
    }
    summaries, standings = made_up(values, [METRICS["psnr"]])
    tables = build_tables(summaries, [METRICS["psnr"]], methods, standings)
    noise, _, group = tables[0].rows
    assert math.isnan(group.cells["diff_restorer"].mean or 0.0)
    assert [noise.cells[method.name].best for method in methods] == [False, False]
    sentences = summary_sentences(tables, nan_counts(summaries))
    assert "PSNR is undefined (NaN) for 10 outputs" in sentences[-1]
    assert "in PSNR on 1 of 2 single degradations" in sentences[0]


def test_a_compared_method_restores_sizes_that_are_no_multiple(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = build_baseline(
        "nafnet", {"width": 4, "encoder_blocks": [1, 1, 1], "decoder_blocks": [1, 1, 1]}
    )
    save_component(trained, tmp_path / "run" / "model", torch.float32)
    folder = f"nafnet={tmp_path / 'run'}"
    evaluate(settings(tmp_path, ["degraded", folder], size=68), quiet())
    lq = torch.from_numpy(
        np.asarray(Image.open(tmp_path / "suite" / "lq" / "snow" / "astronaut.png")) / np.float32(255)
    )
    expected = (
        (trained.eval().restore(lq.permute(2, 0, 1)[None])[0] * 255).round().permute(1, 2, 0).numpy()
    )
    found = np.asarray(Image.open(tmp_path / "restored" / "nafnet" / "snow" / "astronaut.png"))
    assert np.array_equal(found, expected)
    assert found.shape == (68, 68, 3)
    assert json.loads((tmp_path / "run.json").read_text())["methods"]["nafnet"]["restored"] == len(
        NAMES
    )
    evaluate(settings(tmp_path, ["degraded", folder], size=68), quiet())
    assert json.loads((tmp_path / "run.json").read_text())["methods"]["nafnet"]["restored"] == 0, (
        "made already"
    )
    with pytest.raises(ValueError, match="holds nafnet"):
        evaluate(settings(tmp_path, [f"restormer={tmp_path / 'run'}"], size=68), quiet())


def test_every_image_has_a_noise_of_its_own(model: Path) -> None:
    """The same pixels under two names differ, under one name they don't, in whatever batch."""
    method = Method("mine", "model", str(model))
    runner = runners.open_runner([method], runners.Sampling(steps=1), torch.device("cpu"))
    lq = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1, 1)
    images = runner.restore(lq, ["a", "b", "a"], [method])["mine"].images
    torch.testing.assert_close(images[0], images[2], atol=1e-4, rtol=0)
    assert (images[0] - images[1]).abs().mean() > 1e-3


def test_seeds_are_runs_that_the_tables_pool(model: Path, tmp_path: Path) -> None:
    keys = {"suite": "mixed", "seeds": 3, "images": 2, "model": str(model)}
    scores = evaluate(settings(tmp_path, ["degraded", "diff_restorer"], **keys), quiet())
    runs = ["diff_restorer", "diff_restorer@1", "diff_restorer@2"]
    assert {score.method for score in scores} == {"degraded", *runs}
    psnr = {name: [s.values["psnr"] for s in scores if s.method == name] for name in runs}
    assert len({tuple(values) for values in psnr.values()}) == 3, "each has a noise of its own"
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "diff_restorer"]
    assert [(row["n"], row["seed"]) for row in rows] == [("2", "0 | 1 | 2")] * 4
    assert {(row["suite_seed"], row["synthesis"]) for row in rows} == {("0", "ours")}
    assert "of the synthesis ours" in (tmp_path / "table.md").read_text()
    assert float(rows[0]["psnr"]) == pytest.approx(
        np.mean([values[:2] for values in psnr.values()]), abs=1e-5
    )
    with (tmp_path / "standings.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["degradation"] == "mean of mixtures")
        assert row["method"] == "degraded"
        row = next(csv.DictReader(file, list(row)))
    assert (row["method"], row["n"], row["runs"]) == ("diff_restorer", "8", "3")
    spread = np.std([np.mean(values) for values in psnr.values()], ddof=1)
    assert float(row["run_spread"]) == pytest.approx(spread, abs=1e-6)
    assert "3 runs, deviation of their means" in (tmp_path / "index.html").read_text()


def test_what_draws_no_noise_runs_once(model: Path, tmp_path: Path) -> None:
    """A student in one step, outputs made elsewhere, a compared method of regression; and a method with runs given."""
    pipe = DiffRestorerPipeline.from_pretrained(model)
    pipe.scheduler = OneStepScheduler.from_teacher(pipe.scheduler, tau=200)
    pipe.save_pretrained(tmp_path / "student")
    student = str(tmp_path / "student")

    def names(*entries: str) -> list[str]:
        return [method.name for method in parse_methods(entries, "demo", student, "outputs", seeds=3)]

    assert names("degraded", "diff_restorer") == ["degraded", "diff_restorer"]
    assert names(f"teacher={model}") == ["teacher", "teacher@1", "teacher@2"]
    assert names(f"teacher={model}", f"teacher@1={model}") == ["teacher", "teacher@1"]
    assert not Method("da_clip", "outputs").sampled
    assert Method("da_clip", "baseline").sampled
    assert not Method("nafnet", "baseline").sampled
    assert Method("decoded", "model", student, "consistency").sampled, "OpenAI's decoder draws noise"


def test_a_further_run_is_what_its_method_is(model: Path, tmp_path: Path) -> None:
    """The same decoder, the same checks of its folder, the same noise."""
    for name in ("diff_restorer_sd", "theirs_sd", "theirs", *ABLATIONS):
        method, further = parse_methods(
            [f"{name}={model}", f"{name}@b={model}"], "demo", "mini", "outputs"
        )
        assert further == replace(method, name=f"{name}@b")

    pipe = DiffRestorerPipeline.from_pretrained(model)
    for name in ("no_semantic", "no_semantic@b"):
        with pytest.raises(ValueError, match="was not trained with ablation=no_semantic: "):
            check_ablation(Method(name, "model", str(model)), pipe)

    vit = {
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
        "embed_dim": 8,
    }
    tiny = {"image_encoder": vit, "features": 8, "multipliers": [1, 2], "attention_level": 1}
    save_component(build_baseline("da_clip", tiny), tmp_path, torch.float32)
    entries = [f"sampled={tmp_path}"]
    assert [m.name for m in parse_methods(entries, "demo", "mini", "outputs", 2)] == [
        "sampled",
        "sampled@1",
    ]
    for name in ("nafnet", "nafnet@b"):
        with pytest.raises(ValueError, match="holds da_clip"):
            parse_methods([f"{name}={tmp_path}"], "demo", "mini", "outputs")
    with pytest.raises(ValueError, match="can't be the name of a method"):
        parse_methods(["degraded", f"degraded@b={model}"], "demo", "mini", "outputs")


def test_a_run_without_its_method_is_refused(finished: Path, tmp_path: Path) -> None:
    outputs = finished / "restored" / "diff_restorer"
    with pytest.raises(
        ValueError, match="method names theirs@b and no theirs: one run has the plain name"
    ):
        evaluate(settings(tmp_path, [f"theirs@b={outputs}"]), quiet())
    scores = evaluate(settings(tmp_path, [f"theirs={outputs}", f"theirs@b={outputs}"]), quiet())
    assert {score.method for score in scores} == {"theirs", "theirs@b"}


@pytest.mark.soak
def test_large_images_of_one_size_are_restored_one_by_one(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles fill a batch by themselves; a megapixel is a few thousand pixels here."""
    for module in (tiling, runners):
        monkeypatch.setattr(module, "WHOLE_PIXELS", 64 * 64)
    monkeypatch.setattr(tiling, "AUTO_SIDE", 64)
    methods = [Method("large", "model", str(model)), Method("large_sd", "model", str(model), "sd")]
    runner = runners.open_runner(methods, runners.Sampling(steps=1), torch.device("cpu"))
    lq = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    names = ["one", "two"]
    together = runner.restore(lq, names, methods)
    for index, row in enumerate(lq.split(1)):
        alone = runner.restore(row, [names[index]], methods)
        for method in methods:
            assert torch.equal(together[method.name].images[index], alone[method.name].images[0])
    assert together["large"].images.shape == lq.shape
