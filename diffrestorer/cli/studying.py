"""`diffrestorer study`: blind pairs for people, and the ranking from their answers."""

from pathlib import Path

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_USAGE, Run, StopError


def main(run: Run) -> int:
    """Make a study or score one, and return the exit status."""
    try:
        return _make(run) if run.arguments.action == "make" else _score(run)
    except ImportError as error:
        needed = f"a study needs {error.name}, which is not installed: pip install 'diffrestorer[eval]'"
        raise StopError(needed, EXIT_USAGE) from error
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        # Files on their way into the study have names that tell nobody anything.
        study = run.arguments.study
        place = study if error.filename is None else Path(error.filename)
        what = f"{study} can't be written" if place.is_relative_to(study) else f"{place} can't be used"
        raise StopError(f"{what}: {error.strerror or error}", EXIT_FAILURES) from error


def _make(run: Run) -> int:
    from diffrestorer.evaluation.study.kit import make_study

    arguments = run.arguments
    count = make_study(arguments.runs, arguments.study, arguments.pairs, arguments.seed)
    page, answers = arguments.study / "page", arguments.study / "answers"
    run.write(f"{count} pairs: give people {page}, and put the files that they save into")
    run.write(f"{answers}; then: diffrestorer study score {arguments.study}")
    return 0


def _score(run: Run) -> int:
    from diffrestorer.evaluation.study.answers import score_study

    score_study(run.arguments.study)
    run.write((run.arguments.study / "study.md").read_text(encoding="utf-8").rstrip())
    return 0
