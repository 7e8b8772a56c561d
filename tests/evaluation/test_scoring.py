"""Scoring: pyiqa's values, nothing scored twice, and every file that can't be scored named."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pyiqa
import pytest
import torch
from accelerate import PartialState
from evaluation_runs import quiet, settings
from PIL import Image
from pyiqa.utils import download_util

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.paper_suites import build_suite
from diffrestorer.evaluation.restoring.outputs import read_pixels
from diffrestorer.evaluation.run import evaluate
from diffrestorer.evaluation.scoring.fid import FidScorer, fid_warning
from diffrestorer.evaluation.scoring.image_scorer import Scorer
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric
from diffrestorer.evaluation.scoring.pyiqa_networks import WeightsError, create, metric_version
from diffrestorer.evaluation.scoring.score_store import ScoreStore
from diffrestorer.evaluation.scoring.suite_scoring import Scoring, batches_of_one_size
from diffrestorer.evaluation.suites import Item, Suite

CPU = torch.device("cpu")


@pytest.fixture
def pairs(tmp_path: Path) -> Suite:
    """Four noisy photos, two sizes: 96 and 128 pixels a side."""
    rng = np.random.default_rng(0)
    items = []
    for index, side in enumerate((96, 96, 128, 96)):
        gt = np.kron(rng.integers(0, 256, (side // 8, side // 8, 3)), np.ones((8, 8, 1))).astype(
            np.uint8
        )
        lq = (gt + rng.normal(0, 20, gt.shape)).clip(0, 255).astype(np.uint8)
        for name, pixels in (("gt", gt), ("lq", lq)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
        files = (tmp_path / name / f"{index}.png" for name in ("lq", "gt"))
        items.append(Item("single", "noise", str(index), *files))
    return Suite("single", tuple(items))


def scoring(
    suite: Suite, folder: Path, scorer: Scorer, methods: list[Method], process: int = 0
) -> Scoring:
    versions = {metric.name: f"v {metric.name}" for metric in scorer.metrics}
    store = ScoreStore(folder / "scores", process)
    return Scoring(suite, methods, folder, scorer, [], versions, store, 2, PartialState(cpu=True))


def score(what: Scoring) -> list[dict[str, float]]:
    from rich.progress import Progress

    with Progress(console=quiet()) as progress:
        scores = what.score_images(progress)
    what.store.close()
    return [row.values for row in scores]


DEGRADED = Method("degraded", "degraded")


def test_values_are_those_of_pyiqa_on_the_same_files(
    pairs: Suite, metric_weights: Path, tmp_path: Path
) -> None:
    """Weights are random, loaded on pyiqa's own path; two methods, so that references are remembered."""
    metrics = [METRICS[name] for name in ("psnr", "ssim", "lpips", "dists")]
    scorer = Scorer(metrics, CPU, metric_weights)
    assert not scorer.unavailable
    again = Method("again", "outputs")
    for item in pairs.items:
        path = again.output(item, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - read_pixels(item.lq)).save(path)
    found = score(scoring(pairs, tmp_path, scorer, [DEGRADED, again]))
    before = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR
    torch.hub.set_dir(str(metric_weights))
    download_util.DEFAULT_CACHE_DIR = str(metric_weights / "pyiqa")
    try:
        direct = {metric.name: pyiqa.create_metric(metric.pyiqa_id, device="cpu") for metric in metrics}
    finally:
        torch.hub.set_dir(before[0])
        download_util.DEFAULT_CACHE_DIR = before[1]
    for index, item in enumerate(pairs.items):
        for offset, method in enumerate((DEGRADED, again)):
            for name, function in direct.items():
                paths = method.output(item, tmp_path), item.gt if item.gt else item.lq
                expected = float(function(*map(str, paths)))
                assert found[2 * index + offset][name] == pytest.approx(expected, abs=1e-6), (
                    name,
                    index,
                )


def folders(pairs: Suite) -> list[Path]:
    return [pairs.items[0].lq.parent, pairs.items[0].lq.parent.parent / "gt"]


def test_fid_stands_on_pyiqas_features_and_formula(pairs: Suite, metric_weights: Path) -> None:
    """The square root of a 2048 x 2048 matrix takes pyiqa a minute; 64 of the features show the same."""
    from pyiqa.archs.fid_arch import frechet_distance, get_folder_features

    fid = FidScorer(CPU, metric_weights)
    network = create(METRICS["fid"], CPU, metric_weights).net.model
    features = []
    for folder in folders(pairs):
        ours = fid.features(read_pixels(file) for file in sorted(folder.iterdir()))
        direct = get_folder_features(str(folder), network, num_workers=0, device=CPU, verbose=False)
        assert ours.shape == (4, 2048)
        np.testing.assert_allclose(ours, direct, rtol=1e-5, atol=1e-5)
        features.append(ours[:, :64])
    expected = frechet_distance(
        *(f(x) for x in features for f in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
    )
    assert fid.distance(*features) == pytest.approx(expected, rel=1e-4)
    assert fid.distance(*features) > 1e-3


def test_fid_is_the_formulas_distance_and_so_are_its_draws(metric_weights: Path) -> None:
    """Through singular values as through the root; of more images than features, and of fewer."""
    from pyiqa.archs.fid_arch import frechet_distance

    rng = np.random.default_rng(0)
    fid = FidScorer(CPU, metric_weights)
    for images, width in ((60, 16), (12, 16)):
        one, two = (
            rng.standard_normal((images, width)),
            1.5 * rng.standard_normal((images, width)) + 0.3,
        )
        moments = (f(x) for x in (one, two) for f in (lambda x: x.mean(0), lambda x: np.cov(x.T)))
        assert fid.distance(one, two) == pytest.approx(frechet_distance(*moments), rel=1e-4)
        assert fid.distance(one, one) == pytest.approx(0, abs=1e-9)
    drawn = fid.draws(one, two)
    assert drawn.shape == (100,)
    assert np.array_equal(drawn, fid.draws(one, two))
    assert drawn.std() > 0
    assert abs(fid.draws(one, one)).max() < 1e-6


@pytest.mark.soak
def test_fid_is_that_of_pyiqa_on_the_same_files(pairs: Suite, metric_weights: Path) -> None:
    fid = FidScorer(CPU, metric_weights)
    direct = create(METRICS["fid"], CPU, metric_weights)
    expected = float(direct(*map(str, folders(pairs)), num_workers=0, verbose=False))
    lq, gt = (
        fid.features(read_pixels(file) for file in sorted(folder.iterdir()))
        for folder in folders(pairs)
    )
    assert fid.distance(lq, gt) == pytest.approx(expected, rel=1e-4), (
        "pyiqa's root is that of a singular matrix"
    )
    assert expected > 1


def test_fid_says_how_many_images_and_refuses_few() -> None:
    assert "N = 9" in fid_warning(9, 10)
    assert fid_warning(9, 10).startswith("refused")
    assert "N = 15 images, fewer than 2048" in fid_warning(15, 10)
    assert fid_warning(2048, 10) == ""


class Counting:
    """Counts what reaches a scorer."""

    def __init__(self, scorer: Scorer) -> None:
        self.images = 0
        self.inner = scorer
        self.metrics = scorer.metrics

    def __call__(
        self, restored: torch.Tensor, gt: torch.Tensor | None, metrics: list[Metric]
    ) -> dict[str, list[float]]:
        self.images += len(restored)
        return self.inner(restored, gt, metrics)


def test_nothing_is_scored_twice_and_a_cut_line_is_forgiven(pairs: Suite, tmp_path: Path) -> None:
    scorer = Scorer([METRICS["psnr"]])
    first = scoring(pairs, tmp_path, scorer, [DEGRADED])
    values = score(first)
    kept = tmp_path / "scores" / "0.jsonl"
    kept.write_bytes(kept.read_bytes()[:-25])
    for images in (2, 0):  # the batch of the cut line, then nothing
        counting = Counting(scorer)
        again = scoring(pairs, tmp_path, scorer, [DEGRADED])
        again.scorer = counting  # type: ignore[assignment]
        assert score(again) == values
        assert counting.images in (images, images // 2)
    other = scoring(pairs, tmp_path, scorer, [DEGRADED], process=1)
    assert len(other.store.known) == 4, "every process reads what all have written"
    other.store.close()


def test_batches_have_one_size(pairs: Suite) -> None:
    batches = [[item.image for item in batch] for batch in batches_of_one_size(pairs.items, 2)]
    assert batches == [["0", "1"], ["3"], ["2"]]


def test_another_size_is_refused_and_named(pairs: Suite, tmp_path: Path) -> None:
    Image.new("RGB", (96, 80)).save(pairs.items[1].lq)
    with pytest.raises(ValueError, match=r"noise/1\.png is 96x80 and its reference 96x96"):
        score(scoring(pairs, tmp_path, Scorer([METRICS["psnr"]]), [DEGRADED]))


def test_a_missing_reference_is_named(pairs: Suite, tmp_path: Path) -> None:
    gt = pairs.items[2].gt
    assert gt is not None
    gt.unlink()
    with pytest.raises(ValueError, match=r"gt/2\.png"):
        score(scoring(pairs, tmp_path, Scorer([METRICS["psnr"]]), [DEGRADED]))


def test_a_missing_output_is_named(pairs: Suite, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"restored/theirs/noise/0\.png is missing; restore first"):
        score(scoring(pairs, tmp_path, Scorer([METRICS["psnr"]]), [Method("theirs", "outputs")]))


def test_an_image_that_no_metric_accepts_is_named(pairs: Suite, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metric accepts noise/0\.png \(96x96\)"):
        score(scoring(pairs, tmp_path, Scorer([METRICS["ms_ssim"]]), [DEGRADED]))


def test_doubled_names_are_refused(pairs: Suite) -> None:
    with pytest.raises(ValueError, match="noise/0 twice"):
        Suite("single", (*pairs.items, pairs.items[0]))


def test_nan_scores_are_counted(tmp_path: Path, metric_weights: Path) -> None:
    """NIQE breaks down on a flat image; its neighbours in the batch keep their values."""
    suite = settings(tmp_path, ["degraded"], size=96)
    for item in build_suite(suite).items:
        (tmp_path / "flat" / item.degradation).mkdir(parents=True)
        pixels = read_pixels(item.lq) if item.degradation != "haze" else np.zeros((96, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "flat" / item.file)
    keys = {"size": 96, "metrics": ["psnr", "niqe"], "metric_weights": str(metric_weights)}
    scores = evaluate(settings(tmp_path, ["degraded", f"flat={tmp_path / 'flat'}"], **keys), quiet())
    undefined = [
        (score.method, score.degradation) for score in scores if math.isnan(score.values["niqe"])
    ]
    assert undefined == [("flat", "haze")]
    assert json.loads((tmp_path / "run.json").read_text())["undefined_scores"] == {"niqe": 1}
    assert "NIQE is undefined (NaN) for 1 outputs" in (tmp_path / "table.md").read_text()
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["niqe"] == "nan" for row in rows] == [row["undefined"] == "niqe: 1" for row in rows]
    assert sum(row["niqe"] == "nan" for row in rows) == 1


def test_unavailable_metrics_say_how_to_supply_them(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    scorer = Scorer([METRICS["psnr"], METRICS["lpips"]], CPU, tmp_path / "hub")
    assert [metric.name for metric in scorer.metrics] == ["psnr"]
    assert (
        "alexnet-owt-7be5be79.pth and pyiqa/LPIPS_v0.1_alex-df73285e.pth" in scorer.unavailable["lpips"]
    )
    for name in METRICS["lpips"].files:
        (tmp_path / "hub" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="metric_weights=FOLDER"):
        create(METRICS["lpips"], CPU, tmp_path / "hub")
    assert metric_version(METRICS["lpips"], tmp_path / "hub").startswith(
        f"pyiqa {pyiqa.__version__} lpips "
    )


def test_a_column_that_is_unavailable_says_so(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        ["degraded"],
        metrics=["psnr", "lpips", "fid"],
        suite="mixed",
        metric_weights="/nowhere",
    )
    evaluate(config, quiet())
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert {row["lpips"] for row in csv.DictReader(file)} == {"unavailable"}
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["fid"] for row in rows} == {"unavailable"}
    assert all("fid: metric_weights=/nowhere lacks" in row["unavailable"] for row in rows)
    page = (tmp_path / "table1.md").read_text()
    assert "LPIPS is unavailable: metric_weights=/nowhere lacks" in page
    assert "1 open photos of scikit-image" in page
    assert "not the paper's images" in page


def test_every_row_says_what_it_depends_on(finished: Path) -> None:
    with (finished / "summary.csv").open(newline="") as file:
        rows = {(row["degradation"], row["method"]): row for row in csv.DictReader(file)}
    row = rows["haze", "diff_restorer"]
    assert row["n"] == "1"
    assert row["metrics"].startswith(f"psnr=pyiqa {pyiqa.__version__} psnr; ssim=")
    assert len(row["weights"]) == 64
    assert row["git_commit"]
    expected = {
        "decoder": "refined",
        "sampler": "UniPCMultistepScheduler",
        "steps": "1",
        "seed": "0",
        "device": "cpu",
    }
    assert {**row, **expected, "dtype": "float32"} == row


def test_suites_are_rebuilt_from_the_same_files(tmp_path: Path) -> None:
    single, everything = (
        build_suite(settings(tmp_path, [], suite=name, size=64, images=1)) for name in ("single", "all")
    )
    assert [item.suite for item in everything.items] == ["single"] * 8 + ["mixed"] * 4
    assert set(single.items) <= set(everything.items)
    assert set(everything.missing) == {"real_snow", "real_haze"}
