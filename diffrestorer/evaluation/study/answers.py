"""Reading people's answers to a study, and the table of its result."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from diffrestorer.data.storage import write_text
from diffrestorer.evaluation.report.table_text import markdown_table
from diffrestorer.evaluation.scoring.scores import write_csv
from diffrestorer.evaluation.study.bradley_terry import Answer, Strength, rank_methods
from diffrestorer.evaluation.study.kit import ANSWERS, KEY

SCORES = {"left": 1.0, "same": 0.5, "right": 0.0}


def score_study(folder: Path) -> list[Strength]:
    """Rank the methods of a study from the files in FOLDER/answers/; write FOLDER/study.csv and study.md.

    Raises:
        ValueError: there is no study or no answer, or a file does not belong to this study; the message names it.
    """
    answers = read_answers(folder)
    ranked = rank_methods(answers)

    # A table for people, and the numbers.
    rows = []
    for strength in ranked:
        interval = f"{strength.strength:+.2f} [{strength.low:+.2f}, {strength.high:+.2f}]"
        wins = f"{strength.wins:g} of {strength.n}"
        rows.append({"method": strength.method, "strength [95 %]": interval, "wins": wins})
    people = len({answer.person for answer in answers})
    text = (
        f"{len(answers)} answers of {people} people. Bradley-Terry strengths in natural logits, mean 0: a difference "
        "of 1 is preferred in 73 % of pairs. Ties are half a win for each."
    )
    write_text(folder / "study.md", f"{text}\n\n{markdown_table(pd.DataFrame(rows), texts=1)}\n")
    write_csv(folder / "study.csv", pd.DataFrame([vars(strength) for strength in ranked]))
    return ranked


def read_answers(folder: Path) -> list[Answer]:
    """Read the answers of all people.

    Raises:
        ValueError: there is no study or no answer, or a file does not belong to this study; the message names it.
    """
    if not (folder / KEY).is_file():
        raise ValueError(
            f"{folder} holds no study ({KEY}): make it with diffrestorer study make RUNS -o {folder}"
        )
    key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    files = sorted((folder / ANSWERS).glob("*.json"))
    if not files:
        raise ValueError(f"{folder / ANSWERS} holds no answers: put there the files that people saved")

    # One file per person: the same answers must not count twice.
    answers: list[Answer] = []
    people: dict[str, Path] = {}
    for file in files:
        person, found = _read(file, key)
        if person in people:
            raise ValueError(
                f"{file} and {people[person]} are answers of the same person: keep one of them"
            )
        people[person] = file
        answers += found
    return answers


def _read(
    file: Path,
    key: dict[str, Any],
) -> tuple[str, list[Answer]]:
    """Read one person's file."""
    pairs = key["pairs"]
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["seed"] != key["seed"]:
            raise ValueError("another study's seed")
        person = str(saved["person"])
        found = []
        for answer in saved["answers"]:
            pair = pairs[answer["pair"]]
            found.append(Answer(person, pair["left"], pair["right"], SCORES[answer["choice"]]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{file} is no file of answers to this study ({error})") from None
    return person, found
