"""The paper's tables, transcribed by hand from its scan; an empty cell was illegible, and `note` says so."""

import csv
from dataclasses import dataclass
from pathlib import Path

from diffrestorer.evaluation.ablations import ABLATIONS
from diffrestorer.evaluation.methods import BASELINES
from diffrestorer.evaluation.scoring.scores import csv_text

FOLDER = Path(__file__).with_name("paper_tables")

DECIMALS: dict[str, int] = {"fid": 2, "lpips": 4, "dists": 4, "niqe": 2, "musiq": 2, "clipiqa": 4}
"""Metric -> the decimals it is printed with."""

OURS: dict[str, str] = {"diff_restorer_sd": "Ours_S", "diff_restorer": "Ours"}


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: 1 to 5.
        title: what it shows.
        file: its transcription in `paper_tables/`.
        metrics: its columns.
        methods: our name -> its name in the table, in the order of its rows.
    """

    number: int
    title: str
    file: str
    metrics: tuple[str, ...]
    methods: dict[str, str]

    @property
    def rows(self) -> list[dict[str, str]]:
        """The transcription, cell by cell."""
        with (FOLDER / self.file).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def values(self, method: str, task: str | None = None) -> dict[str, float]:
        """Metric -> the paper's number, those that are legible; of one task in Table I."""
        row = self._row(method, task)
        return {name: float(row[name]) for name in self.metrics if row and row[name]}

    def note(self, method: str, task: str | None = None) -> str:
        """What is doubtful about a row."""
        return self._row(method, task).get("note", "")

    def _row(self, method: str, task: str | None) -> dict[str, str]:
        title = self.methods.get(method)
        printed = None if task is None else task.replace("_", "-")
        found = (row for row in self.rows if row["method"] == title and row.get("degradation") == printed)
        return next(found, {})


def write_table(rows: list[dict[str, str]]) -> str:
    """Rows of a transcription as the CSV text that they were read from."""
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def _ablated(*names: str) -> dict[str, str]:
    return {name: ABLATIONS[name].title for name in names}


_FOUR = ("fid", "lpips", "dists", "niqe")

PAPER_TABLES: tuple[PaperTable, ...] = (
    PaperTable(
        1, "Comparison on single, real and mixed degradations", "table1.csv", tuple(DECIMALS), {**BASELINES, **OURS},
    ),
    PaperTable(
        2, "Visual prompts", "table2_visual_prompts.csv", _FOUR,
        {**_ablated("no_semantic", "no_degradation"), **OURS},
    ),
    PaperTable(
        3, "Control module", "table3_control_module.csv", _FOUR,
        {**_ablated("no_dmb_cd", "no_dmb", "no_cd"), **OURS},
    ),
    PaperTable(
        4, "Losses", "table4_losses.csv", _FOUR,
        {**_ablated("no_aux_loss", "no_deg_loss"), "no_cd": "w/o L_rec", **OURS},
    ),
    PaperTable(
        5, "VAE decoders", "table5_decoders.csv", _FOUR,
        {
            "diff_restorer_sd": "SD decoder",
            **_ablated("consistency_decoder", "no_drb"),
            "diff_restorer": "Ours decoder",
        },
    ),
)  # fmt: skip
"""Tables I to V. `no_cd` is also the row without L_rec: without its loss the control decoder has no effect."""
