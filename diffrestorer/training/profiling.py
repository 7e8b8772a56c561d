"""One step under torch's profiler: where its time goes (`train.profile=STEP`)."""

import logging
from pathlib import Path

from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from diffrestorer.data.storage import write_text

TABLE_ROWS = 40
"""Operations of the table, the slowest first."""


class StepProfile:
    """Records one step of the main process, with its micro batches and the optimisers' part.

    Writes `profile/step_N.json`, which https://ui.perfetto.dev and chrome://tracing show, and `profile/step_N.txt`.

    Args:
        step: from 0; None: none. The first steps also take memory and compile: choose a later one.
        output_dir: of the run.
        accelerator: of the run.
        log: of the run.
    """

    def __init__(
        self, step: int | None, output_dir: Path, accelerator: Accelerator, log: logging.Logger
    ) -> None:
        self.step = step if accelerator.is_main_process else None
        self.folder = output_dir / "profile"
        self.log = log
        self.on_gpu = accelerator.device.type == "cuda"
        self._running: profile | None = None

    def before(self, step: int) -> None:
        """Start to record if a micro batch is the first of the step."""
        if step != self.step or self._running is not None:
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        self._running = profile(activities=activities, record_shapes=True)
        self._running.start()

    def after(self, step: int) -> None:
        """Write trace and table after the step."""
        if step != self.step or self._running is None:
            return
        self._running.stop()
        self.folder.mkdir(exist_ok=True)
        trace = self.folder / f"step_{step}.json"
        partial = self.folder / f".step_{step}.json"
        self._running.export_chrome_trace(str(partial))
        partial.replace(trace)

        order = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        averages = self._running.key_averages()
        table = averages.table(sort_by=order, row_limit=TABLE_ROWS)
        write_text(trace.with_suffix(".txt"), table)
        self.log.info("profile of step %d: %s, and a table beside it", step, trace)
        self.step = self._running = None
