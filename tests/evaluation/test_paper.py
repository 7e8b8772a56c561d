"""The paper's tables: transcribed whole, ranked from their numbers, compared with ours."""

import csv
import io
import math
import re

import pytest

from diffrestorer.evaluation.methods import BASELINES, Method
from diffrestorer.evaluation.report.comparison import Cell, compare, ranks
from diffrestorer.evaluation.report.export import as_csv, as_latex, as_markdown
from diffrestorer.evaluation.report.paper import FOLDER, PAPER_TABLES
from diffrestorer.evaluation.report.tables import find_standings
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import NO_REFERENCE, Score, Summary, csv_text
from diffrestorer.evaluation.suites import AVERAGED, SUITES

TABLE_I = PAPER_TABLES[0]
OURS = [Method("diff_restorer_sd", "model", "mini", "sd"), Method("diff_restorer", "model", "mini")]
METHODS = [Method("degraded", "degraded"), *OURS]


@pytest.mark.parametrize("table", PAPER_TABLES, ids=lambda table: table.file)
def test_transcriptions_round_trip(table: object) -> None:
    rows = table.rows  # type: ignore[attr-defined]
    assert csv_text(rows) == (FOLDER / table.file).read_text()  # type: ignore[attr-defined]
    assert set(rows["method"]) == set(table.methods.values())  # type: ignore[attr-defined]


def test_table_one_is_whole_and_doubts_are_kept() -> None:
    assert len(TABLE_I.rows) == 112 == 14 * 8
    cells = 0
    for task in SUITES["all"]:
        for method in (*BASELINES, "diff_restorer_sd", "diff_restorer"):
            values, note = TABLE_I.values(method, task), TABLE_I.note(method, task)
            assert len(values) == 6 or note, (task, method)
            cells += len(values)
    assert cells == int((TABLE_I.rows[list(TABLE_I.metrics)] != "").sum().sum())
    assert TABLE_I.values("da_clip", "low_light")["fid"] == 34.63


def test_ranks() -> None:
    assert ranks([3.0, 1.0, None, 2.0], True, 2) == [0, 1, 0, 2]
    assert ranks([3.0, 1.0, None, 2.0], False, 2) == [1, 0, 0, 2]
    assert ranks([1.001, 1.002, 2.0], True, 2) == [1, 1, 2], "equal as printed"
    assert ranks([1.0, math.nan, 2.0], True, 2) == [0, 0, 0], "a NaN might be the best"
    assert ranks([1.0, None], True, 2) == [0, 0], "nobody wins alone"


def test_the_papers_marks_follow_from_its_numbers() -> None:
    """Haze, FID: DA-CLIP 4.17, then PromptIR 8.64. No clean image of RTTS: no ranks in FID, LPIPS, DISTS."""
    comparison = compare(TABLE_I, [], [], SUITES["all"], [], {})
    marks = {
        (task, line.method, metric): cell.paper_rank
        for task, block in comparison.blocks.items()
        for line in block
        for metric, cell in line.cells.items()
        if cell.paper_rank
    }
    assert [
        key[1] for key, rank in marks.items() if key[0] == "haze" and key[2] == "fid" and rank == 1
    ] == ["da_clip"]
    assert marks["haze", "promptir", "fid"] == 2
    assert not any(key[0] == "real_haze" and key[2] in ("fid", "lpips", "dists") for key in marks)
    for task, block in comparison.blocks.items():
        for metric in TABLE_I.metrics:
            values = [
                line.cells[metric].paper for line in block if line.cells[metric].paper is not None
            ]
            best = [line.cells[metric].paper for line in block if line.cells[metric].paper_rank == 1]
            if values:
                assert set(best) == {max(values) if metric in ("musiq", "clipiqa") else min(values)}, (
                    task,
                    metric,
                )  # type: ignore[type-var]


def summary(task: str, method: str, **values: float) -> Summary:
    return Summary("mixed", task, method, 5, values, made_with={"weights": "abc", "git_commit": "def"})


def test_ours_stands_beside_the_paper() -> None:
    summaries = [
        summary("snow+noise", "degraded", lpips=0.5, niqe=9.0),
        summary("snow+noise", "diff_restorer", lpips=0.1535, niqe=math.nan),
    ]
    values = {"degraded": 0.5, "diff_restorer": 0.1535}
    scores = [
        Score("mixed", "snow+noise", f"{i}", name, {"lpips": v})
        for name, v in values.items()
        for i in range(8)
    ]
    standings = find_standings(scores, {}, [METRICS["lpips"]], {"snow+noise": ["snow+noise"]})
    comparison = compare(TABLE_I, summaries, METHODS, SUITES["mixed"], ["open photos"], standings)
    assert list(comparison.blocks) == list(SUITES["mixed"])
    lines = {line.method: line for line in comparison.blocks["snow+noise"]}
    cell = lines["diff_restorer"].cells["lpips"]
    assert (cell.paper, cell.ours_rank, lines["degraded"].cells["lpips"].ours_rank) == (0.1435, 1, 2)
    assert cell.difference == pytest.approx(0.01)
    page = as_markdown(comparison)
    assert "- open photos" in page
    assert "**0.1535** / **0.1435** / +0.0100" in page
    assert "NaN / *2.88* / +nan" in page
    assert "unavailable / *39.18* / –" in page, "Ours_S was asked for and has no score"
    table = {
        (row["degradation"], row["method"]): row
        for row in csv.DictReader(io.StringIO(as_csv(comparison)))
    }
    row = table["snow+noise", "diff_restorer"]
    assert (row["n"], row["lpips"], row["lpips_paper"], row["lpips_rank"]) == (
        "5",
        "0.153500",
        "0.143500",
        "1",
    )
    assert (row["weights"], row["git_commit"]) == ("abc", "def")
    assert (row["lpips_leads"], row["lpips_to_best"], row["fid_leads"]) == ("1", "", "")
    assert float(row["lpips_to_input_high"]) == pytest.approx(-0.3465)
    other = table["snow+noise", "degraded"]
    assert other["lpips_leads"] == "0"
    assert float(other["lpips_to_best_p"]) == pytest.approx(2 / 2**8, abs=1e-6)
    assert table["snow+noise", "airnet"]["fid_paper"] == ""
    assert "illegible" in table["snow+noise", "airnet"]["note"]


def test_latex_is_balanced() -> None:
    text = as_latex(
        compare(
            TABLE_I,
            [summary("snow+noise", "degraded", lpips=0.5)],
            METHODS,
            SUITES["mixed"],
            ["50%_"],
            {},
        )
    )
    assert text.count("{") == text.count("}")
    rows = [line for line in text.splitlines() if line.startswith(("AirNet", "degraded", "Ours"))]
    assert len(rows) == 4 * 4
    assert {row.count("&") for row in rows} == {1 + 18}
    assert "Ours\\_S" in text
    assert not re.search(r"^[^%\\]*[^\\]_", text.split("toprule")[1], re.MULTILINE)


def test_averages_are_over_the_papers_five_tasks() -> None:
    values = dict(zip(AVERAGED, (1.0, 2.0, 3.0, 4.0, 6.0), strict=True))
    summaries = [
        summary(task, "diff_restorer", fid=value, niqe=value) for task, value in values.items()
    ]
    summaries[0] = summary("low_light", "diff_restorer", fid=1.0)
    summaries.append(summary("noise", "diff_restorer", fid=99.0))
    comparison = compare(PAPER_TABLES[1], summaries, METHODS, (), [], {})
    assert [line.method for line in comparison.lines] == [
        "no_semantic",
        "no_degradation",
        *(m.name for m in OURS),
    ]
    cells = {line.method: line for line in comparison.lines}["diff_restorer"].cells
    assert cells["fid"].ours == pytest.approx(16 / 5)
    assert cells["fid"].difference == pytest.approx(16 / 5 - 34.23)
    assert cells["niqe"].ours is None
    assert (
        "average, diff_restorer: no NIQE, no mean, for it lacks low_light (not measured)"
        in comparison.notes
    )


def test_an_average_over_fewer_tasks_is_not_compared() -> None:
    summaries = [summary(task, "diff_restorer", fid=2.0) for task in AVERAGED if task != "real_snow"]
    comparison = compare(PAPER_TABLES[1], summaries, METHODS, (), [], {})
    cell = comparison.lines[-1].cells["fid"]
    assert (cell.ours, cell.paper, cell.difference) == (2.0, 34.23, None)
    assert "the paper's are over real_snow too" in comparison.notes[0]


def test_no_clean_image_is_a_dash() -> None:
    real = Summary(
        "real", "real_haze", "diff_restorer", 5, {"niqe": 4.0}, reasons={"fid": NO_REFERENCE}
    )
    line = compare(TABLE_I, [real], METHODS, ("real_haze",), [], {}).lines[-2]
    assert line.method == "diff_restorer"
    assert line.cells["fid"] == Cell(None, None, mark="–")
    assert line.cells["niqe"].difference == pytest.approx(4.0 - 4.27)
