"""Failures of files, of other processes and of data, each turned into one sentence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import distributed

from diffrestorer.data.own_synthesis import MEND_FUNCTION
from diffrestorer.data.remote import Location
from diffrestorer.data.storage import NO_SPACE

LOST_CONNECTION = (
    "gloo",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL",
    "Broken pipe",
)
"""Texts of the errors that a process gets when another one of its run is gone."""


@contextmanager
def explain_files(output_dir: Path) -> Iterator[None]:
    """Turn a failure to read or write a file into a sentence that names it.

    Raises:
        ValueError: in place of the failure.
    """
    try:
        yield
    except OSError as error:
        # A full disk comes without a file's name.
        if error.errno in NO_SPACE:
            raise ValueError(
                f"{output_dir} could not be written ({error.strerror}); what was saved before is intact: make room and "
                "give the same command again"
            ) from None
        if error.filename is None or error.strerror is None:
            raise
        raise ValueError(
            f"{error.filename} could not be read or written ({error.strerror}): mend that, and the same command goes on"
        ) from None


@contextmanager
def explain_lost_processes(num_processes: int) -> Iterator[None]:
    """Turn the failure of a collective into a sentence.

    Raises:
        ValueError: in place of the failure.
    """
    try:
        yield
    except (RuntimeError, distributed.DistError) as error:
        # Gloo raises plain RuntimeErrors.
        text = str(error)
        lost = isinstance(error, distributed.DistError) or any(part in text for part in LOST_CONNECTION)
        if num_processes == 1 or not lost:
            raise
        raise ValueError(
            "another process of this run has ended, for a reason that it or the launcher names: the same command goes "
            "on from the last checkpoint"
        ) from None


def explain_data(error: Exception, sources: Sequence[Location], has_workers: bool) -> ValueError | None:
    """Return what was wrong with the data, as a sentence; None: the error is none of the data's.

    Args:
        error: what the loader raised. A worker's error comes as text with the worker's traceback, of which the last
            line is `Class: message`.
        sources: the files of the batch that could not be made.
        has_workers: whether data workers read them.
    """
    text = str(error).strip()
    from_worker = "Original Traceback" in text

    # Of a worker that is gone the loader finds the process dead, or the connection to it broken.
    broken = has_workers and not from_worker and isinstance(error, OSError | EOFError)
    if broken or "DataLoader worker (pid" in text:
        names = ", ".join(sorted({path.name for path in sources}))
        return ValueError(
            f"a data worker ended unexpectedly (killed, perhaps, since memory was short) while it read {names}: fewer "
            "train.num_workers need less memory"
        )
    if not isinstance(error, ValueError | OSError):
        return None

    # Of a worker's traceback the last line, without the class before it.
    sentence = text.splitlines()[-1] if text else type(error).__name__
    if from_worker:
        sentence = sentence.partition(": ")[2] or sentence
    if MEND_FUNCTION in sentence:
        return ValueError(sentence)
    if "no such file" in sentence:
        return ValueError(
            f"{sentence}: bring it back, or give train.allow_changed_data=true to go on without it"
        )
    return ValueError(f"{sentence}: mend that file, or give data.skip_unreadable=true")
