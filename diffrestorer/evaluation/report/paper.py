"""The paper's tables, transcribed by hand from its scan; an empty cell was illegible, and `note` says so."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from diffrestorer.evaluation.ablations import ABLATIONS
from diffrestorer.evaluation.methods import BASELINES

FOLDER = Path(__file__).with_name("paper_tables")

DECIMALS: dict[str, int] = {"fid": 2, "lpips": 4, "dists": 4, "niqe": 2, "musiq": 2, "clipiqa": 4}
"""Metric -> number of decimals in print."""

OURS: dict[str, str] = {"diff_restorer_sd": "Ours_S", "diff_restorer": "Ours"}


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: 1 to 5.
        title: its caption in short.
        file: its transcription in `paper_tables/`.
        metrics: its columns.
        methods: our name -> its name in the table, in the order of its rows.
    """

    number: int
    title: str
    file: str
    metrics: tuple[str, ...]
    methods: dict[str, str]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The transcription, every cell a text."""
        return pd.read_csv(FOLDER / self.file, dtype=str, keep_default_na=False, encoding="utf-8")

    def values(
        self,
        method: str,
        task: str | None = None,
    ) -> dict[str, float]:
        """Return metric -> the paper's number for those that are legible; of one task in Table I."""
        row = self._row(method, task)
        return {name: float(row[name]) for name in self.metrics if row.get(name)}

    def note(self, method: str, task: str | None = None) -> str:
        """Return what is doubtful about a row."""
        return self._row(method, task).get("note", "")

    def _row(
        self,
        method: str,
        task: str | None,
    ) -> dict[str, str]:
        found = self.rows[self.rows["method"] == self.methods.get(method, "")]
        if task is not None:
            found = found[found["degradation"] == task.replace("_", "-")]
        return {} if found.empty else dict(found.iloc[0])


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
