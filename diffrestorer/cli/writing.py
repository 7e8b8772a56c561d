"""The other end of `diffrestorer restore`: results onto the disk beside the networks, reported when they are there."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from diffrestorer.cli.job import Job, Run
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.data.storage import NO_SPACE
from diffrestorer.inference.photos import Restored, reason


class Writer:
    """Writes restored photos in a thread of its own and reports each one; what was begun ends, whatever happens.

    Attributes:
        run: that it reports to.
        full: whether the disk is: nothing more can be written.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.full = False
        self._thread = ThreadPoolExecutor(1)
        self._writing: deque[tuple[Job, Restored, Future[bool]]] = deque()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._settle(0)
        self._thread.shutdown()

    def add(self, job: Job, restored: Restored) -> None:
        """Starts writing a photo, after waiting for earlier ones if too many are under way."""
        self._settle(2 * self.run.arguments.batch_size)
        self._writing.append((job, restored, self._thread.submit(self._write, job, restored.photo)))

    def _write(self, job: Job, photo: Photo) -> bool:
        assert job.output is not None
        job.output.parent.mkdir(parents=True, exist_ok=True)
        return write_photo(job.output, photo, self.run.arguments.format, self.run.arguments.overwrite)

    def _settle(self, at_most: int) -> None:
        """Reports what has been written, waiting until at most so many photos are under way."""
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
