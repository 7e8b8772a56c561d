"""Standings: runs pooled by image, worst cases and harm named, the best told apart only where the test allows it."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.report.comparison import compare
from diffrestorer.evaluation.report.export import write_comparison
from diffrestorer.evaluation.report.paper import PAPER_TABLES
from diffrestorer.evaluation.report.sentences import summary_sentences
from diffrestorer.evaluation.report.standing_text import hint, standing_numbers, write_standings
from diffrestorer.evaluation.report.table_text import markdown
from diffrestorer.evaluation.report.tables import build_tables, find_standings, table_rows
from diffrestorer.evaluation.scoring import uncertainty
from diffrestorer.evaluation.scoring.metrics import METRICS, Metric
from diffrestorer.evaluation.scoring.scores import NO_REFERENCE, Score, SetScore, summarise
from diffrestorer.evaluation.scoring.set_standings import compare_sets
from diffrestorer.evaluation.scoring.standings import compare_methods, image_scores

PSNR, NLPD = METRICS["psnr"], METRICS["nlpd"]


def scores(values: dict[str, np.ndarray], task: str = "haze", metric: str = "psnr") -> list[Score]:
    return [
        Score("single", task, f"{index}", method, {metric: float(value)})
        for method, column in values.items()
        for index, value in enumerate(column)
    ]


def test_the_best_leads_and_who_is_not_significantly_worse() -> None:
    rng = np.random.default_rng(0)
    best = 25 + rng.standard_normal(20)
    found = compare_methods(
        image_scores(scores({"degraded": best - 5, "close": best - 0.2 + rng.normal(0, 1, 20), "best": best})),
        PSNR, ["haze"],
    )  # fmt: skip
    assert {name: standing.leads for name, standing in found.items()} == {
        "degraded": False, "close": True, "best": True
    }  # fmt: skip
    assert found["best"].to_best is None
    assert found["degraded"].to_input is None
    worse = found["degraded"].to_best
    assert worse is not None
    assert worse.mean == pytest.approx(-5)
    assert (worse.interval.low, worse.interval.high) == pytest.approx((-5, -5))
    assert worse.p < 0.001


@pytest.mark.parametrize("metric", [PSNR, NLPD], ids=["higher is better", "lower is better"])
@pytest.mark.parametrize("tasks", [["haze"], ["haze", "snow"]], ids=["task", "group"])
def test_a_significant_gain_is_no_loss(metric: Metric, tasks: list[str]) -> None:
    """It beats the best mean on 19 of 20 images and loses the mean on one: the test is significant in its favour."""
    better = -1 if metric.lower_is_better else 1
    gains = np.ones(20) + np.linspace(0, 0.1, 20)
    gains[7] = -27
    best = np.full(20, 25.0)
    columns = {"best": best, "usual": best + better * gains, "poor": best - better * (gains + 27.5)}
    rows = [row for task in tasks for row in scores(columns, task, metric.name)]
    found = compare_methods(image_scores(rows), metric, tasks)

    usual = found["usual"].to_best
    assert usual is not None
    assert (usual.mean * better < 0, usual.ranks * better > 0) == (True, True)
    assert usual.p < 0.01
    assert {name: standing.leads for name, standing in found.items()} == {
        "best": True, "usual": True, "poor": False
    }  # fmt: skip
    assert "p < 0.001, ranks opposed" in hint(metric.name, found["usual"])
    assert "opposed" not in hint(metric.name, found["poor"])
    row = standing_numbers(found["usual"])
    assert row["to_best_ranks"] == usual.ranks
    assert row["leads"] is True


def test_what_is_called_worse_is_worse_in_a_test_of_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tables, some means decided by one image: SciPy's one-sided test agrees with all that is not in bold."""
    monkeypatch.setattr(uncertainty, "DRAWS", 50)  # the intervals are not looked at
    rng = np.random.default_rng(0)
    opposed, plain = 0, 0
    for table in range(24):
        metric = (PSNR, NLPD)[table % 2]
        loss = "greater" if metric.lower_is_better else "less"
        columns = {}
        for name in "abc":
            shift = rng.normal(0, 1.5)
            columns[name] = rng.standard_normal(25) + shift
            columns[name][0] = -30 * shift * rng.integers(2)
        found = compare_methods(image_scores(scores(columns, "haze", metric.name)), metric, ["haze"])
        best = next(name for name, standing in found.items() if standing.to_best is None)
        for name, standing in found.items():
            if standing.to_best is not None:
                p = stats.wilcoxon(columns[name] - columns[best], alternative=loss).pvalue
                assert standing.leads or p < 0.025
                assert standing.leads == (standing.to_best.p >= 0.05 or p > 0.5)
                opposed += standing.leads and standing.to_best.p < 0.05
                plain += not standing.leads
    assert opposed > 3, "some that a test without its direction would call worse"
    assert plain > 5


def test_few_images_convict_nobody() -> None:
    """Five pairs have 32 signs: the smallest p-value is 0.0625."""
    values = {"degraded": np.full(5, 10.0), "best": np.arange(5) + 30.0}
    found = compare_methods(image_scores(scores(values)), PSNR, ["haze"])
    assert found["degraded"].to_best is not None
    assert found["degraded"].to_best.p == pytest.approx(0.0625)
    assert found["degraded"].leads
    assert not compare_methods(image_scores(scores({"alone": np.arange(5.0)})), PSNR, ["haze"])[
        "alone"
    ].leads


def test_runs_are_pooled_by_image() -> None:
    columns = {"degraded": [20.0, 21, 22], "mine": [24.0, 25, 26], "mine@1": [26.0, 27, 30]}
    values = {name: np.array(column) for name, column in columns.items()}
    found = compare_methods(image_scores(scores(values)), PSNR, ["haze"])
    assert set(found) == {"degraded", "mine"}
    mine = found["mine"]
    assert (mine.n, mine.runs) == (3, 2)
    assert mine.mean == pytest.approx((25 + 26 + 28) / 3)
    assert mine.median == 26
    assert mine.run_spread == pytest.approx(np.std([25, 83 / 3], ddof=1))
    assert math.isnan(found["degraded"].run_spread)


def test_worst_image_and_share_harmed() -> None:
    values = {"degraded": np.full(4, 20.0), "mine": np.array([25.0, 19.4, 19.6, 12.0])}
    mine = compare_methods(image_scores(scores(values)), PSNR, ["haze"])["mine"]
    assert (mine.worst, mine.worst_image, mine.harmed) == (12.0, "haze/3", 0.5)


def test_tasks_count_once_and_photos_that_recur_are_drawn_together() -> None:
    """The same photos under two tasks are no independent images: the interval is that of the photos' means."""
    rng = np.random.default_rng(0)
    base, gain = np.full(12, 20.0), rng.standard_normal(12)
    one = scores({"degraded": base, "mine": base + gain}, "haze")
    same = scores({"degraded": base, "mine": base + gain}, "snow")
    alone = compare_methods(image_scores(one), PSNR, ["haze"])["mine"].to_input
    twice = compare_methods(image_scores([*one, *same]), PSNR, ["haze", "snow"])["mine"].to_input
    assert alone == twice
    few = scores({"degraded": base[:2], "mine": base[:2] + 4}, "snow")
    found = compare_methods(image_scores([*one, *few]), PSNR, ["haze", "snow"])["mine"]
    assert found.to_input is not None
    assert found.to_input.mean == pytest.approx((gain.mean() + 4) / 2)


@pytest.mark.parametrize(
    ("names", "photos", "together"),
    [("same", "other", False), ("other", "same", True), ("same", "unknown", True), ("other", "unknown", False),
     ("same", "of one task", False), ("other", "same, each twice", True)],
)  # fmt: skip
def test_photos_are_known_by_what_they_show(names: str, photos: str, together: bool) -> None:
    """Not by their names, unless scores of an older version tell nothing else."""
    gain = np.random.default_rng(0).standard_normal(12)
    rows = []
    for task in ("haze", "snow"):
        for score in scores({"degraded": np.full(12, 20.0), "mine": 20 + gain}, task):
            number = int(score.image) // 2 if "twice" in photos else int(score.image)
            image = score.image if names == "same" else f"{task}-{score.image}"
            photo = f"{task}/{number}" if photos == "other" else f"{number}"
            if photos == "unknown" or (photos, task) == ("of one task", "snow"):
                photo = "" if photos == "unknown" else f"snow/{image}"
            rows.append(replace(score, image=image, photo=photo))
    alone, both = (
        compare_methods(image_scores(rows), PSNR, tasks)["mine"].to_input
        for tasks in (["haze"], ["haze", "snow"])
    )
    assert alone is not None
    assert both is not None
    assert both.mean == pytest.approx(gain.mean())
    assert (alone == both) is together
    assert (both.p < alone.p) is not together


def test_sets_claim_nothing_below_the_advised_number() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 100)
    for n, leads in ((2047, []), (2048, ["close", "best"])):
        values = {"degraded": 60.0, "close": 30.2, "best": 30.0}
        found = {
            name: [SetScore(n, value, value + 8 + shared + rng.normal(0, 0.5, 100))]
            for name, value in values.items()
        }
        standings = compare_sets(found, METRICS["fid"], 2048)
        assert [name for name, standing in standings.items() if standing.leads] == leads
        difference = standings["degraded"].to_best
        assert difference is not None
        assert difference.mean == 30
        assert 27 < difference.interval.low < 30 < difference.interval.high < 33, (
            "paired, and without the draws' bias"
        )


RUNS = {
    "three and one": {"degraded": [60], "a": [10, 20, 30], "b": [15]},
    "the first run is the worst": {"degraded": [60], "a": [30, 20, 10], "b": [15]},
    "three and two": {"degraded": [60], "a": [10, 20, 30], "b": [10, 40]},
}


@pytest.mark.parametrize("fids", RUNS.values(), ids=RUNS.keys())
def test_sets_of_several_runs_have_one_value_everywhere(
    fids: dict[str, list[float]], tmp_path: Path
) -> None:
    """Table, summary, standings and the paper's table give the mean over the runs, and bold goes by it."""
    metric, n, tasks = METRICS["fid"], 3000, ["haze", "snow"]
    rng = np.random.default_rng(0)
    images, sets = [], {}
    for place, task in enumerate(tasks):
        shared = rng.normal(0, 0.5, 100)
        for name, values in fids.items():
            for run, value in enumerate(values):
                method = f"{name}@{run}" if run else name
                images.append(Score("single", task, "0", method, {}))
                own = shared + rng.normal(0, 0.1, 100)
                sets[task, method, "fid"] = SetScore(n, float(value + place), value + place + 8 + own)
    summaries = summarise(images, [metric], sets, {})
    standings = find_standings(images, sets, [metric], table_rows(tasks))
    methods = [Method(name, "model") for name in fids]
    runs = [Method(name, "model") for name in dict.fromkeys(score.method for score in images)]
    tables = build_tables(summaries, [metric], methods, standings)
    write_standings(tmp_path, tables, standings)

    numbers = pd.read_csv(tmp_path / "standings.csv").set_index(["degradation", "method"])
    for row in tables[0].rows:
        expected = {name: np.mean(values) for name, values in fids.items()}
        best = min(expected, key=lambda name: expected[name])
        place = {"haze": 0, "snow": 1}.get(row.label, 0.5)
        assert [name for name, cell in row.cells.items() if cell.best] == [best]
        for name, values in fids.items():
            known = numbers.loc[row.label, name]
            assert row.cells[name].mean == pytest.approx(expected[name] + place)
            assert known["mean"] == pytest.approx(expected[name] + place)
            assert known["runs"] == len(values)
            spread = np.std(values, ddof=1) if len(values) > 1 else math.nan
            assert known["run_spread"] == pytest.approx(spread, nan_ok=True)
        gap = numbers.loc[row.label, "degraded"]
        assert gap["to_best"] == pytest.approx(60 - expected[best])
        assert gap["to_best_low"] < gap["to_best"] < gap["to_best_high"]
        assert gap["to_best_high"] - gap["to_best_low"] < 0.6, "the draws are paired"

    assert {name for _, name in numbers.index} == set(fids)
    values = {(found.degradation, found.method): found.values["fid"] for found in summaries}
    paper = compare(PAPER_TABLES[0], summaries, runs, tasks, [], standings)
    assert not any("@" in line.method for line in paper.lines)
    for task in tasks:
        lines = {line.method: line.cells["fid"] for line in paper.blocks[task]}
        for name in fids:
            assert lines[name].ours == values[task, name] == lines[name].standing.mean


def test_a_set_that_one_run_lacks_has_no_value() -> None:
    """The reason takes its place in the tables, and the method takes no part in the comparison."""
    metric = METRICS["fid"]
    images = [Score("single", "haze", "0", method, {}) for method in ("degraded", "a", "a@1")]
    known = SetScore(3000, 5.0, np.full(100, 5.0))
    sets = {
        ("haze", "degraded", "fid"): known,
        ("haze", "a", "fid"): known,
        ("haze", "a@1", "fid"): "too few",
    }
    summary = summarise(images, [metric], sets, {})[1]
    assert (summary.values, summary.reasons) == ({}, {"fid": "too few"})
    assert set(find_standings(images, sets, [metric], {"haze": ["haze"]})["haze", "fid"]) == {
        "degraded"
    }


@pytest.mark.parametrize("names", [["fid"], ["psnr", "fid"]], ids=["alone", "beside another"])
@pytest.mark.parametrize("reason", ["refused: FID on N = 5 images says nothing", NO_REFERENCE])
def test_sets_that_no_method_has_a_value_of_make_no_crash(
    reason: str, names: list[str], tmp_path: Path
) -> None:
    """Few images, or no clean ones, on every task or on one: tables have a dash, and sentences count the others."""
    metrics = [METRICS[name] for name in names]
    methods = [Method("degraded", "degraded"), Method("diff_restorer", "model")]
    for lacking in (["haze", "snow"], ["snow"]):
        images, sets = [], {}
        for task in ("haze", "snow"):
            for method, value in (("degraded", 20.0), ("diff_restorer", 25.0)):
                images += [
                    Score("single", task, f"{image}", method, {"psnr": value}) for image in range(5)
                ]
                known = SetScore(5, 60 - value, np.full(100, 60 - value))
                sets[task, method, "fid"] = reason if task in lacking else known
        summaries = summarise(images, metrics, sets, {})
        standings = find_standings(images, sets, metrics, table_rows(["haze", "snow"]))
        assert standings["snow", "fid"] == standings["mean of single degradations", "fid"] == {}
        tables = build_tables(summaries, metrics, methods, standings)
        write_standings(tmp_path, tables, standings)
        write_comparison(
            compare(PAPER_TABLES[0], summaries, methods, ["haze"], [], standings), tmp_path
        )
        sentences = summary_sentences(tables, {})
        page = markdown(tables, sentences, "")
        assert "| snow | – | – |" in re.sub(" +", " ", page)
        counts = {("psnr",): ["in PSNR on 2"], ("fid",): [], ("psnr", "fid"): ["in PSNR on 2"]}[
            tuple(names)
        ]
        if lacking == ["snow"]:
            counts = [*counts, "in FID on 1 (of 1 that have it)"]
        told = ", ".join(counts)
        expected = (
            f"refined decoder has a better mean than degraded input {told} of 2 single degradations."
        )
        assert sentences == ([expected] if counts else [])


def test_a_metric_that_some_images_are_too_small_for_has_no_standing() -> None:
    """Tables have a dash there and say why; NaN is kept for scores that were computed and are undefined."""
    metrics = [PSNR, METRICS["ms_ssim"]]
    images = []
    for task in ("haze", "snow"):
        for method in ("degraded", "diff_restorer"):
            for image in range(3):
                values = {"psnr": 20.0 + image, "ms_ssim": 0.5}
                if task == "snow" and image == 1:
                    del values["ms_ssim"]
                images.append(Score("pairs", task, f"{image}", method, values))
    rows = table_rows(["haze", "snow"])
    standings = find_standings(images, {}, metrics, rows)
    assert {label for label, name in standings if name == "psnr"} == set(rows)
    assert {label for label, name in standings if name == "ms_ssim"} == {"haze"}
    methods = [Method("degraded", "degraded"), Method("diff_restorer", "model")]
    summaries = summarise(images, metrics, {}, {})
    table = build_tables(summaries, metrics[1:], methods, standings)[0]
    assert [row.cells["degraded"].text for row in table.rows] == ["0.500", "–", "–"]
    assert [row.cells["degraded"].standing is None for row in table.rows] == [False, True, True]


def test_the_best_of_nothing_is_nothing() -> None:
    assert math.isnan(PSNR.best([]))
    assert math.isnan(NLPD.best([]))
    assert compare_sets({}, METRICS["fid"], 2048) == {}


def test_an_undefined_score_leaves_nobody_in_the_lead() -> None:
    values = {"degraded": np.array([20.0, 21]), "mine": np.array([math.nan, 25])}
    found = compare_methods(image_scores(scores(values)), PSNR, ["haze"])
    assert math.isnan(found["mine"].mean)
    assert found["mine"].worst_image == "haze/0"
    assert not any(standing.leads for standing in found.values())
    assert compare_methods(image_scores(scores(values)), NLPD, ["haze"]) == {}
