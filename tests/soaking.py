"""Cases of which `make test` takes some and `make soak` the rest."""

from collections.abc import Iterable
from typing import Any

import pytest


def some_now(cases: Iterable[Any], count: int) -> list[Any]:
    """Returns the cases with about `count` of them, evenly spread, for `make test` and the others for `make soak`.

    A tuple is the arguments of its case.
    """
    listed = list(cases)
    kept = {round(i * (len(listed) - 1) / max(1, count - 1)) for i in range(count)}
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if i in kept else pytest.mark.soak
        )
        for i, case in enumerate(listed)
    ]
