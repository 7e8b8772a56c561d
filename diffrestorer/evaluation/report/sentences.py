"""Sentences drawn from the tables of means."""

from collections.abc import Mapping, Sequence

from diffrestorer.evaluation.report.tables import Table, group_rows, metric_title


def summary_sentences(
    tables: Sequence[Table],
    nans: Mapping[str, int],
) -> list[str]:
    """Compare each method with the degraded input, and the two decoders; count undefined scores if there are any."""
    if not tables:
        return []
    methods = {method.name: method for method in tables[0].methods}

    # Everything against the input, then the refined decoder against the plain one.
    pairs = []
    if "degraded" in methods:
        pairs = [(name, "degraded") for name in methods if name != "degraded"]
    if {"diff_restorer", "diff_restorer_sd"} <= set(methods):
        pairs.append(("diff_restorer", "diff_restorer_sd"))

    sentences = []
    groups = group_rows([row.label for row in tables[0].rows])
    for name, other in pairs:
        counts = [_wins(tables, group, members, name, other) for group, members in groups.items()]
        told = "; ".join(count for count in counts if count)
        if told:
            sentences.append(
                f"{methods[name].title} has a better mean than {methods[other].title} {told}."
            )
    for metric, count in nans.items():
        sentences.append(
            f"{metric_title(metric)} is undefined (NaN) for {count} outputs; means over them are NaN too."
        )
    return sentences


def _wins(
    tables: Sequence[Table],
    group: str,
    members: Sequence[str],
    name: str,
    other: str,
) -> str:
    """Return `in PSNR on 7, in SSIM on 6 of 8 single degradations`; empty where no row of the group has a value."""
    counts = []
    for table in tables:
        rows = [row for row in table.rows if row.label in members]
        wins, known = 0, 0
        for row in rows:
            one, two = row.cells[name].mean, row.cells[other].mean
            if one is not None and two is not None:
                known += 1
                wins += one != two and table.metric.best([one, two]) == one
        if known:
            some = f" (of {known} that have it)" if known < len(members) else ""
            counts.append(f"in {metric_title(table.metric.name)} on {wins}{some}")
    return f"{', '.join(counts)} of {len(members)} {group}" if counts else ""
