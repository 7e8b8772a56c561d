"""The results as a table for the terminal, and as the section of docs/performance.md."""

from typing import Any


def short_table(results: dict[str, Any]) -> str:
    """Return one line a finding, rows that were not run included."""
    environment = results["environment"]
    lines = [f"{environment['card']}, driver {environment['driver']}, commit {environment['commit']}"]
    for name, row in results["rows"].items():
        note = f": {row['note']}" if row.get("note") else ""
        seconds = f", {row['seconds']} s" if "seconds" in row else ""
        lines.append(f"== {name} ({row['status']}{seconds}){note[:300]}")
        lines += [
            f"   {what}: {measured}{f'   [{goal}]' if goal else ''}"
            for what, measured, goal in row["lines"]
        ]
        lines += [
            f"   {'ok ' if holds else 'BAD'} {what}: {value:.3g} ({bound})"
            for what, value, bound, holds in row.get("proofs", [])
        ]
    return "\n".join(lines)


def page_section(results: dict[str, Any]) -> str:
    """Return the section in Markdown: the machine, what was proved, what was measured, what was not run."""
    found, rows = results["environment"], results["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"{found['card']}, driver {found['driver']}, CUDA {found['cuda']}, {found['cores']} CPU cores, "
        f"Python {found['python']}; {versions}; commit {found['commit']}. {found['widths']} widths, random weights. "
        "Median (least - greatest) of the rounds, both sides in turn. `python benchmarks/gpu.py` writes this section.",
    ]
    lines += ["", "| row | measured | | goal |", "|---|---|---|---|"]
    for name, row in rows.items():
        lines += [f"| {name} | {what} | {measured} | {goal} |" for what, measured, goal in row["lines"]]
    proofs = [(name, proof) for name, row in rows.items() for proof in row.get("proofs", [])]
    if proofs:
        lines += ["", "| row | proved | found | bound |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {what} | {value:.3g}{'' if holds else ', **out of bounds**'} | {bound} |"
            for name, (what, value, bound, holds) in proofs
        ]
    others = [
        f"{name}: {row['status']}{_note(row)}" for name, row in rows.items() if row["status"] != "done"
    ]
    if others:
        lines += ["", "Not finished:", "", *(f"- {other}" for other in others)]
    return "\n".join(lines)


def _note(row: dict[str, Any]) -> str:
    note = str(row.get("note", "")).replace("\n", " ")[:200]
    return f" ({note})" if note else ""
