"""The writing end of `diffrestorer restore`: results go to the disk while the networks work on the next ones."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from diffrestorer.cli.job import Job, Run
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.data.storage import NO_SPACE
from diffrestorer.inference.photos import Restored, reason


class Writer:
    """A thread that writes restored photos and reports each one; a write that has begun ends, whatever happens.

    Attributes:
        run: the command that it reports to.
        full: whether the disk is full: nothing more can be written.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.full = False
        self._thread = ThreadPoolExecutor(1)
        self._writing: deque[tuple[Job, Restored, Future[bool]]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._settle(0)
        self._thread.shutdown()

    def add(self, job: Job, restored: Restored) -> None:
        """Start writing a photo, after waiting for earlier ones if too many are under way."""
        self._settle(2 * self.run.arguments.batch_size)
        self._writing.append((job, restored, self._thread.submit(self._write, job, restored.photo)))

    def _write(self, job: Job, photo: Photo) -> bool:
        """Write a photo, in the thread; return whether its name was free or may be replaced."""
        assert job.output is not None
        job.output.parent.mkdir(parents=True, exist_ok=True)
        format = job.output.suffix.removeprefix(".")
        return write_photo(job.output, photo, format, self.run.arguments.overwrite)

    def _settle(self, at_most: int) -> None:
        """Report what has been written, waiting until at most `at_most` photos are under way."""
        while self._writing and (len(self._writing) > at_most or self._writing[0][2].done()):
            job, restored, future = self._writing[0]
            error = future.exception()
            self._writing.popleft()
            if error is None and future.result():
                self.run.report(job, "restored", degradations=restored.degradations)
            elif error is None:
                self.run.report(job, "skipped", reason="already there")
            elif isinstance(error, Exception):  # the disk, or an encoder
                self.run.report(job, "failed", reason=reason(error))
                self.full |= getattr(error.__cause__ or error, "errno", None) in NO_SPACE
