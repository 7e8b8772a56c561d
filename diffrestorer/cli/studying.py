"""`diffrestorer study`: blind pairs for people, and the ranking from their answers."""

from diffrestorer.cli.job import EXIT_USAGE, Run, StopError


def main(run: Run) -> int:
    """Make a study or score one, and return the exit status."""
    try:
        return _make(run) if run.arguments.action == "make" else _score(run)
    except ImportError as error:
        needed = f"a study needs {error.name}, which is not installed: pip install 'diffrestorer[eval]'"
        raise StopError(needed, EXIT_USAGE) from error
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error


def _make(run: Run) -> int:
    from diffrestorer.evaluation.study.kit import make_study

    arguments = run.arguments
    count = make_study(arguments.runs, arguments.study, arguments.pairs, arguments.seed)
    print(
        f"{count} pairs: give people {arguments.study / 'page'}, and put the files that they save into"
    )
    print(f"{arguments.study / 'answers'}; then: diffrestorer study score {arguments.study}")
    return 0


def _score(run: Run) -> int:
    from diffrestorer.evaluation.study.answers import score_study

    score_study(run.arguments.study)
    print((run.arguments.study / "study.md").read_text(encoding="utf-8"), end="")
    return 0
