"""Rows of training: both stages against plain loops, by micro batch, compiled; utilisation; waiting for data."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from plain_training import batch_of, plain_decoder, plain_stage1
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from training import Contest, our_step

from diffrestorer.data.pairs import Pair, StepBatches, collate_pairs, pair_loader
from diffrestorer.training.progress import TimedBatches
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.task import Task
from gpu_rows.report import Rejected, Report, gib, spread
from gpu_rows.restoring import matrix_rate
from gpu_rows.session import Session

Build = Callable[..., Any]


class EncodedPairs(Dataset[Pair]):
    """The pairs of four steps with what the frozen encoders return for them: a cache that lies in memory."""

    def __init__(self, session: Session, task: Task, count: int) -> None:
        self.known: dict[tuple[int, int], Pair] = {}
        for step in range(4):
            with session.autocast():
                found = task.encode(batch_of(session.pairs, step, count).to(session.device))
            encodings = {name: value.float().cpu() for name, value in found.items()}
            for position in range(count):
                own = {name: value[position] for name, value in encodings.items()}
                self.known[step, position] = replace(session.pairs[step, position], encodings=own)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        return self.known[key]


def stage1(session: Session, report: Report) -> None:
    """Stage 1 beside the plain loop, then by micro batch with and without recomputation."""
    session.release()
    goals = {"same work": "G4: >= 1.3x", "cached": "G4: >= 2x", "memory": "G5: <= 0.75x"}
    _first_that_fits(
        session, report, session.sizes.contest_batches, session.stage1, plain_stage1, goals
    )
    flops = _count_flops(session, session.stage1)
    report.data["flops_per_sample"] = flops
    report.line(
        "arithmetic of a sample, forward and backward, encodings cached", f"{flops / 1e12:.2f} TFLOP"
    )
    _sweep(session, report, session.stage1, flops)


def decoder(session: Session, report: Report) -> None:
    """The decoder stage beside the plain loop, then by micro batch with and without recomputation."""
    session.release()
    goals = {"cached": "G6: >= 1.8x"}
    _first_that_fits(
        session, report, session.sizes.decoder_contest_batches, session.decoder, plain_decoder, goals
    )
    flops = _count_flops(session, session.decoder)
    report.data["flops_per_sample"] = flops
    report.line(
        "arithmetic of a sample, forward and backward, encodings cached", f"{flops / 1e12:.2f} TFLOP"
    )
    _sweep(session, report, session.decoder, flops)


def stage1_compiled(session: Session, report: Report) -> None:
    """Stage 1 with its blocks compiled one by one."""
    _compiled(session, report, session.stage1, session.sizes.contest_batches)


def decoder_compiled(session: Session, report: Report) -> None:
    """The decoder stage with its blocks compiled one by one."""
    _compiled(session, report, session.decoder, session.sizes.decoder_contest_batches)


def _first_that_fits(
    session: Session,
    report: Report,
    counts: Sequence[int],
    build: Build,
    plain_step: Callable[..., Any],
    goals: dict[str, str],
) -> None:
    """The contest at the largest micro batch at which both sides fit the card together."""
    for count in counts:
        if session.fits(lambda count=count: _contest(session, report, count, build, plain_step, goals)):
            return
        report.line(f"both sides at micro batch {count}", "out of memory")


def _contest(
    session: Session,
    report: Report,
    count: int,
    build: Build,
    plain_step: Callable[..., Any],
    goals: dict[str, str],
) -> None:
    """Ours beside the plain loop, which encodes at every step: the same work, and with cached encodings."""
    rest = (count, session.device, session.autocast)
    base, peaks = session.allocated(), {}
    plain_task = build()
    if session.on_gpu:  # the example's best flags keep what is frozen in bf16
        for module in (
            plain_task.restorer.vae,
            plain_task.restorer.image_encoder,
            plain_task.restorer.unet,
        ):
            module.to(torch.bfloat16)
    plain = plain_step(plain_task, session.pairs, *rest)
    plain(0)
    peaks["plain"] = session.peak(lambda: plain(1), base)
    plain_only = session.allocated()

    task = build(session.hardware())
    sources = {"same work": session.pairs, "cached": EncodedPairs(session, task, count)}
    for name, source in sources.items():
        ours = our_step(task, source, *rest)
        ours(0)
        peaks[name] = session.peak(lambda ours=ours: ours(1), plain_only)
        found = Contest(
            f"{name}, micro batch {count}", plain, ours, session.sizes.rounds, session.device
        ).run()
        if name != "same work":  # its weights have moved on since the plain loop's
            found = {key: value for key, value in found.items() if not key.startswith("parity")}
        report.data[name] = {**found, "micro_batch": count}
        clock = 0 if session.on_gpu else 1
        rates = [count / times[clock] for times in found["ours_seconds_wall_cpu"]]
        report.line(
            f"{name}, micro batch {count}",
            f"{spread(rates)} samples/s, {spread(found['ratios'])}x of the plain loop",
            goals.get(name, ""),
        )
        del ours
    report.data["peaks"] = peaks
    share = (
        f"{gib(peaks['cached'])}, plain {gib(peaks['plain'])}: {peaks['cached'] / peaks['plain']:.2f}x"
    )
    report.line(f"peak memory, micro batch {count}", share, goals.get("memory", ""))


def _count_flops(session: Session, build: Build) -> int:
    """Operations of a sample's forward and backward pass, with cached encodings, as PyTorch counts them."""

    def count() -> int:
        task = build(session.hardware())
        batch = collate_pairs([EncodedPairs(session, task, 1)[0, 0]])
        with FlopCounterMode(display=False) as counter:
            with session.autocast():
                losses = task(batch.to(session.device))
            losses.total.backward()
        return counter.get_total_flops()

    return session.keep(f"flops of {build.__name__}", count)


def _sweep(session: Session, report: Report, build: Build, flops: int) -> None:
    """Samples a second and peak memory by micro batch, cached, until memory does not suffice."""
    for checkpointing in ("none", "blocks"):
        session.collect()
        base = session.allocated()
        task = build(session.hardware(checkpointing))
        pairs = EncodedPairs(session, task, max(session.sizes.micro_batches))
        for count in session.sizes.micro_batches:
            if checkpointing == "blocks" and count < min(4, max(session.sizes.micro_batches)):
                continue  # recomputing is for what does not fit without
            name = f"micro batch {count}, checkpointing {checkpointing}"
            measure = partial(_measure, session, report, name, task, pairs, count, flops, base)
            if not session.fits(measure):
                report.line(name, "out of memory")
                report.data[name] = "out of memory"
                task.zero_grad(set_to_none=True)
        del task, pairs


def _measure(
    session: Session,
    report: Report,
    name: str,
    task: Task,
    pairs: Any,
    count: int,
    flops: int,
    base: int,
) -> None:
    """One micro batch: three steps after one that warms up, and one for the peak."""
    step = our_step(task, pairs, count, session.device, session.autocast)
    taken = session.interleave({name: step}, min(3, session.sizes.rounds))[name]
    peak = session.peak(lambda: step(4), base)
    rates = [count / seconds for seconds in taken]
    utilisation = flops * statistics.median(rates) / matrix_rate(session)
    report.data[name] = {"seconds": taken, "peak": peak, "utilisation": utilisation}
    largest = count == max(session.sizes.micro_batches)
    goal = "G13: >= 35 %" if largest and isinstance(task, Stage1Task) else ""
    report.line(
        name,
        f"{spread(rates)} samples/s, {gib(peak)}, {100 * utilisation:.0f} % of the matrix rate",
        goal,
    )


def _compiled(session: Session, report: Report, build: Build, counts: Sequence[int]) -> None:
    """The first step's seconds, then samples a second beside the same task uncompiled."""
    if not session.on_gpu:
        raise Rejected("blocks are compiled for training on GPUs only")
    session.release()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for count in counts:
        if session.fits(lambda count=count: _compiled_at(session, report, build, count)):
            break
        report.line(f"compiled, micro batch {count}", "out of memory")
    graphs, limited = counters["stats"].get("unique_graphs", 0), counters["unimplemented"]
    report.data.update(graphs=graphs, breaks={str(key): value for key, value in limited.items()})
    report.line("graphs compiled", str(graphs))


def _compiled_at(session: Session, report: Report, build: Build, count: int) -> None:
    flops = report.data["flops_per_sample"] = _count_flops(session, build)
    session.collect()
    base = session.allocated()
    task = build(session.hardware(compiled=True))
    pairs = EncodedPairs(session, task, count)
    step = our_step(task, pairs, count, session.device, session.autocast)
    first = session.seconds(lambda: step(0))
    report.data["first_step_seconds"] = first
    report.line("first step, compiling", f"{first:.1f} s")
    name = f"compiled, micro batch {count}"
    del step
    _measure(session, report, name, task, pairs, count, flops, base)


def data_wait(session: Session, report: Report) -> None:
    """How long steps of stage 1 wait for the loader of the training loop, from the prepared store."""
    session.release()
    for count in session.sizes.contest_batches:
        if session.fits(lambda count=count: _wait(session, report, count)):
            return
        report.line(f"micro batch {count}", "out of memory")


def _wait(session: Session, report: Report, count: int) -> None:
    task = session.stage1(session.hardware())
    (optimizer,) = task.optimizers()
    batches = StepBatches(0, session.sizes.wait_steps, count, 0, 1)
    loader = TimedBatches(
        pair_loader(session.pairs, batches, session.sizes.workers, pin_memory=session.on_gpu)
    )
    marks = []
    for batch in loader:
        with session.autocast():
            losses = task(batch.to(session.device))
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        session.synchronise()
        marks.append((time.perf_counter(), loader.waited))

    # From the end of the second step: the first waits for the workers to start.
    (start, before), (end, waited) = marks[1], marks[-1]
    share = (waited - before) / (end - start)
    report.data.update(share=share, steps=len(marks) - 2, micro_batch=count, seconds=end - start)
    report.line(
        f"waiting for data, micro batch {count}, {session.sizes.workers} workers",
        f"{100 * share:.2f} %",
        "G8: < 2 %",
    )
