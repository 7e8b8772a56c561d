"""Reading people's answers to a study, and the table of its result."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diffrestorer.data.storage import open_regular, write_text
from diffrestorer.evaluation.report.table_text import markdown_table
from diffrestorer.evaluation.scoring.scores import write_csv
from diffrestorer.evaluation.study.bradley_terry import Answer, Strength, rank_methods
from diffrestorer.evaluation.study.kit import ANSWERS, KEY

SCORES = {"left": 1.0, "same": 0.5, "right": 0.0}


@dataclass(frozen=True)
class Key:
    """The key of a study.

    Attributes:
        study: digest of its pictures, which the page puts into its answers; None in keys of older versions.
        seed: of the choice of its pairs.
        pairs: methods to the left and to the right, by number.
    """

    study: str | None
    seed: int
    pairs: list[tuple[str, str]]


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
    key = _read_key(folder / KEY)
    files = _answer_files(folder / ANSWERS)
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


def _answer_files(folder: Path) -> list[Path]:
    """Return the files of people's answers, by name; some systems write the suffix in capitals."""
    try:
        return sorted(file for file in folder.iterdir() if file.name.lower().endswith(".json"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{folder} can't be read: {error.strerror}") from None


def _read_text(file: Path) -> str:
    """Read a UTF-8 file, which may begin with a byte order mark.

    Raises:
        ValueError: it can't be read, is no regular file, or no text; the message names it.
    """
    try:
        with open_regular(file) as opened:
            return opened.read().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} can't be read: it is no text in UTF-8") from None


def _read_key(file: Path) -> Key:
    text = _read_text(file)
    try:
        key = json.loads(text)
        pairs = [(str(pair["left"]), str(pair["right"])) for pair in key["pairs"]]
        found = Key(key.get("study"), key["seed"], pairs)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}): make the study again") from None
    if found.study is None:
        raise ValueError(
            f"{file} is of an older version, whose pages did not tell studies apart: if you are sure that all answers "
            'are to this study, put "study": "" into it'
        )
    return found


def _read(
    file: Path,
    key: Key,
) -> tuple[str, list[Answer]]:
    """Read one person's file."""
    text = _read_text(file)
    try:
        saved = json.loads(text)

        # Pages of older versions gave their seed alone, which many studies share.
        same_seed = key.study != "" or saved["seed"] == key.seed
        if saved.get("study", "") != key.study or not same_seed:
            raise ValueError("another study's answers")
        if not isinstance(saved["person"], int | str) or saved["person"] == "":
            raise ValueError("it names no person")
        person = str(saved["person"])
        chosen = _choices(saved["answers"], len(key.pairs))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is no file of answers to this study ({error})") from None

    found = []
    for number, score in chosen.items():
        left, right = key.pairs[number]
        found.append(Answer(person, left, right, score))
    return person, found


def _choices(
    answers: list[dict[str, Any]],
    count: int,
) -> dict[int, float]:
    """Return number of the pair -> score of its left side.

    Raises:
        ValueError: a number is not one of 0 to `count` - 1, or stands twice.
        KeyError: an answer has no number, or another choice than those of `SCORES`.
    """
    chosen: dict[int, float] = {}
    for answer in answers:
        number = answer["pair"]
        if type(number) is not int or not 0 <= number < count:
            raise ValueError(f"there is no pair {number!r}")
        if number in chosen:
            raise ValueError(f"pair {number} is answered twice")
        chosen[number] = SCORES[answer["choice"]]
    return chosen
