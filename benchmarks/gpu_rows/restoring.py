"""Rows of restoring: the card itself, latency, throughput, one step, large images, evaluation."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from peer import Peer

from diffrestorer.evaluation.methods import Method
from diffrestorer.evaluation.restoring.runners import Sampling, open_runner
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from gpu_rows.proofs import BF16_BOUND, decibels, restore
from gpu_rows.report import Report, gib, ratios, spread
from gpu_rows.session import Session, float32_products


def matrix_rate(session: Session) -> float:
    """Return operations a second of a large bf16 matrix product, measured once; a CPU's is float32."""

    def measure() -> float:
        side = session.sizes.matrix
        a, b = (torch.randn(side, side, device=session.device, dtype=session.dtype) for _ in range(2))
        for _ in range(3):
            a @ b
        times = [session.seconds(lambda: [a @ b for _ in range(10)]) for _ in range(3)]
        return 10 * 2 * side**3 / statistics.median(times)

    return session.keep("matrix_rate", measure)


def machine(session: Session, report: Report) -> None:
    """The rate of a large matrix product: what utilisation is measured by."""
    rate = matrix_rate(session)
    report.data["matrix_flops_per_second"] = rate
    report.line(
        f"matrix product, {session.sizes.matrix} rows, {session.dtype}", f"{rate / 1e12:.3g} TFLOP/s"
    )


def our_run(pipe: DiffRestorerPipeline, images: torch.Tensor, steps: int) -> Callable[[int], Any]:
    """Return a call on fresh noise: from images on the CPU to images on the CPU."""
    return lambda number: pipe(images, steps, torch.Generator().manual_seed(number), output_type="pt")


def peer_run(session: Session, peer: Peer, images: torch.Tensor, steps: int) -> Callable[[int], Any]:
    """Return the same of diffusers' pipeline, which gets the same prompts."""

    def run(number: int) -> torch.Tensor:
        on_device = images.to(session.device, session.dtype)
        token = peer.read_prompts(on_device)
        return peer.run(token, on_device, number, steps, "pt").float().cpu()

    return run


def compare(
    session: Session, report: Report, count: int, steps: int, goal: str, rounds: int | None = None
) -> None:
    """Time a batch of images against diffusers' pipeline, eager, in turn."""
    pipe, peer = session.pipelines()
    images = session.images(count, 10 + count)
    runs = {"ours": our_run(pipe, images, steps), "peer": peer_run(session, peer, images, steps)}
    taken = session.interleave(runs, rounds)
    report.data[f"batch {count}, {steps} steps"] = taken
    gain = spread(ratios(taken["peer"], taken["ours"]))
    if count == 1:
        measured = (
            f"{spread(taken['ours'], 1e3)} ms, diffusers {spread(taken['peer'], 1e3)} ms: {gain}x"
        )
    else:
        ours, others = ([count / seconds for seconds in taken[name]] for name in ("ours", "peer"))
        measured = f"{spread(ours)} images/s, diffusers {spread(others)}: {gain}x"
    report.line(f"batch {count}, {steps} steps", measured, goal)


def latency(session: Session, report: Report) -> None:
    """One image, against diffusers' pipeline with the same networks; ours decodes with the refined decoder."""
    first, *others = session.sizes.steps
    compare(session, report, 1, first, "G1: >= 3.5x, <= 140 ms (with a compiled step)")
    for steps in others:
        compare(session, report, 1, steps, "")

    # The same image, but for rounding, where both use the VAE's decoder.
    pipe, peer = session.pipelines()
    images = session.images(1, 99)
    token = peer.read_prompts(images.to(session.device, session.dtype))
    theirs = peer.run(token, images.to(session.device, session.dtype), 0, first, "pt").float().cpu()
    bound = BF16_BOUND if session.on_gpu else 60.0  # a CPU computes in float32
    report.at_least(
        "image against diffusers' pipeline",
        decibels(restore(pipe, images, first, decoder="sd"), theirs),
        bound,
    )


def throughput(session: Session, report: Report) -> None:
    """Batches, against diffusers' pipeline."""
    first, *others = session.sizes.steps
    for count in session.sizes.batches:
        goal = "G2: >= 1.5x, >= 12 images/s" if count == max(session.sizes.batches) else ""
        compare(session, report, count, first, goal, rounds=min(3, session.sizes.rounds))
    for steps in others:
        compare(session, report, max(session.sizes.batches), steps, "", rounds=2)


def one_step(session: Session, report: Report) -> None:
    """One network call, photo in and photo out: today's weights at one step, or a student."""
    pipe, _ = session.pipelines()
    name = "one step of today's sampler"
    if session.student is not None:
        pipe = DiffRestorerPipeline.from_pretrained(session.student).prepare(session.device)
        pipe.set_progress_bar_config(disable=True)
        name = "the student"
    images = session.images(1, 7)
    taken = session.interleave({"ours": our_run(pipe, images, 1)}, 2 * session.sizes.rounds)["ours"]
    report.data["seconds"] = taken
    report.line(
        f"{name}, {session.sizes.side}x{session.sizes.side}",
        f"{spread(taken, 1e3)} ms",
        "G12: <= 40 ms",
    )


def tiled(session: Session, report: Report) -> None:
    """A large image by tiles: memory against a whole image, several tiles at a time against one."""
    pipe, _ = session.pipelines()
    session.release("peer", "compiled", "runner")
    sizes, steps = session.sizes, min(4, max(session.sizes.steps))
    base = session.allocated()
    sides = {"whole": sizes.whole, "tiled": sizes.tiled}
    images = {name: session.images(1, 5, side) for name, side in sides.items()}
    tile: Any = "auto" if session.on_gpu else sizes.tile
    run = {
        name: (lambda image=image: restore(pipe, image, steps, tile=tile))
        for name, image in images.items()
    }
    run["whole"]()  # warm

    # Memory and time of each size.
    peaks, seconds = {}, {}
    for name in ("whole", "tiled"):
        session.collect()
        seconds[name] = session.seconds(
            lambda name=name: peaks.__setitem__(name, session.peak(run[name], base))
        )
        side = sides[name]
        report.line(
            f"{side}x{side}, {steps} steps",
            f"{seconds[name]:.2f} s, {gib(peaks[name])} beside the weights",
        )
    goal = "G7: <= 1.10x" if session.on_gpu else "counted on GPUs only"
    report.line(
        "memory, tiled over whole", f"{(peaks['tiled'] + base) / (peaks['whole'] + base):.2f}x", goal
    )

    # Small tiles, several at a time against one by one.
    image = session.images(1, 6, sizes.tile_image)
    batches = {"several": None, "one": 1}
    calls = {
        name: (
            lambda number, size=size: restore(pipe, image, steps, tile=sizes.tile, tile_batch_size=size)
        )
        for name, size in batches.items()
    }
    taken = session.interleave(calls, 2)
    gain = spread(ratios(taken["one"], taken["several"]))
    report.line(
        f"{sizes.tile_image}x{sizes.tile_image} by tiles of {sizes.tile}, one by one",
        f"{gain}x",
        "G7: >= 3x",
    )
    report.data.update(peaks=peaks, weights=base, seconds=seconds, batches=taken)


def evaluation(session: Session, report: Report) -> None:
    """Images a second as scripts/evaluate.py restores them: float32, TF32, bf16."""
    session.release()
    method = Method("diff_restorer", "model", str(session.model_folder))
    runner: Any = open_runner([method], Sampling(steps=max(session.sizes.steps)), session.device)
    images = session.images(4, 8)

    def run(number: int) -> torch.Tensor:
        return runner.restore(images, [f"{index}" for index in range(len(images))], [method])[
            method.name
        ].images

    restored = {}
    for name in ("float32", "tf32", "bfloat16"):
        if name == "bfloat16":
            runner.pipe.to(torch.bfloat16)
        with float32_products(tf32=name != "float32"):
            taken = session.interleave({name: run}, 2)[name]
            restored[name] = run(0)
        rates = [len(images) / seconds for seconds in taken]
        report.data[name] = rates
        change = (
            ""
            if name == "float32"
            else f", {decibels(restored[name], restored['float32']):.1f} dB from float32"
        )
        report.line(f"evaluation, {name}, batch {len(images)}", f"{spread(rates)} images/s{change}")
