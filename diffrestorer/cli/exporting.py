"""`diffrestorer export`: a one-step student as an ONNX file."""

from diffrestorer.cli.job import EXIT_FAILURES, EXIT_USAGE, Run, StopError


def main(run: Run) -> int:
    """Export the model, print the file's path, and return the exit status."""
    arguments = run.arguments
    try:
        import onnxscript  # noqa: F401 # torch.onnx needs it, and would say so in a traceback
    except ModuleNotFoundError as error:
        needed = f"export needs {error.name}, which is not installed: pip install 'diffrestorer[onnx]'"
        raise StopError(needed, EXIT_USAGE) from error

    # A teacher is refused before the minute that tracing takes.
    pipeline = run.load()
    from diffrestorer.inference.onnx_export import check_student, export_student

    try:
        check_student(pipeline.scheduler)
    except ValueError as error:
        raise StopError(f"{arguments.model}: {error}", EXIT_USAGE) from error

    try:
        path = export_student(pipeline, arguments.folder)
    except ValueError as error:
        raise StopError(str(error), EXIT_USAGE) from error
    except OSError as error:
        sentence = f"{arguments.folder} can't be written: {error.strerror or error}"
        raise StopError(sentence, EXIT_FAILURES) from error
    run.write(str(path))
    return 0
