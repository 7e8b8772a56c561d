"""The Bradley-Terry model of paired judgements, with intervals.

The probability that a beats b is 1 / (1 + exp(s_b - s_a)). Strengths are fitted by maximum likelihood under a wide
normal prior, which keeps the strength of a method that always wins finite; their mean is 0. A tie is half a win each.
Source: Bradley and Terry, "Rank analysis of incomplete block designs", Biometrika 1952.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from diffrestorer.data.counter import counter_rng

PRIOR = 5.0
"""Standard deviation of the strengths' prior: a win in 148 of 149 is one deviation."""

DRAWS = 500
"""Bootstrap draws behind the intervals."""

PEOPLE = 10
"""From this number on people are drawn for the intervals, below it single answers."""


@dataclass(frozen=True)
class Answer:
    """A judgement: the score of the first of two methods, 1 for a win, 0.5 for a tie, 0 for a loss."""

    person: str
    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Strength:
    """A method's strength in natural logits, with its 95 % interval, and its wins (a tie is a half) of n judgements."""

    method: str
    strength: float
    low: float
    high: float
    wins: float
    n: int


def fit_strengths(wins: np.ndarray) -> np.ndarray:
    """Fit the strengths (m,) to wins (m, m): how often the row's method beat the column's."""

    def loss(strengths: np.ndarray) -> tuple[float, np.ndarray]:
        gaps = strengths[:, None] - strengths[None, :]
        likelihood = (wins * np.logaddexp(0, -gaps)).sum()
        value = likelihood + (strengths**2).sum() / (2 * PRIOR**2)
        surprise = wins * expit(-gaps)
        gradient = surprise.sum(axis=0) - surprise.sum(axis=1) + strengths / PRIOR**2
        return float(value), gradient

    strengths = minimize(loss, np.zeros(len(wins)), jac=True, method="L-BFGS-B").x
    return strengths - strengths.mean()


def rank_methods(
    answers: Sequence[Answer],
    seed: int = 0,
) -> list[Strength]:
    """Rank methods from judgements, the strongest first.

    Args:
        answers: of all people.
        seed: of the bootstrap's draws: of people where there are at least `PEOPLE`, else of single answers.

    Raises:
        ValueError: there is no answer.
    """
    if not answers:
        raise ValueError("there is no answer to score")
    methods = list(dict.fromkeys(name for answer in answers for name in (answer.first, answer.second)))
    wins = _wins(answers, methods)
    strengths = fit_strengths(wins.sum(axis=0))

    # The judgements of a person belong together, where there are enough people to draw.
    people = list(dict.fromkeys(answer.person for answer in answers))
    units = wins
    if len(people) >= PEOPLE:
        places = np.array([people.index(answer.person) for answer in answers])
        sums = [wins[places == place].sum(axis=0) for place in range(len(people))]
        units = np.stack(sums)
    drawn = []
    for draw in range(DRAWS):
        chosen = counter_rng(seed, "study/bootstrap", draw).integers(len(units), size=len(units))
        drawn.append(fit_strengths(units[chosen].sum(axis=0)))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)

    # The strongest first.
    total = wins.sum(axis=0)
    ranked = []
    for index in np.argsort(-strengths, kind="stable"):
        won, lost = float(total[index].sum()), float(total[:, index].sum())
        strength = Strength(
            method=methods[index],
            strength=float(strengths[index]),
            low=float(low[index]),
            high=float(high[index]),
            wins=won,
            n=round(won + lost),
        )
        ranked.append(strength)
    return ranked


def _wins(
    answers: Sequence[Answer],
    methods: Sequence[str],
) -> np.ndarray:
    """Return the wins of each answer, (answers, methods, methods)."""
    wins = np.zeros((len(answers), len(methods), len(methods)))
    for index, answer in enumerate(answers):
        first, second = methods.index(answer.first), methods.index(answer.second)
        wins[index, first, second] = answer.score
        wins[index, second, first] = 1 - answer.score
    return wins
