"""Rows of compiled restoring: torch.compile and CUDA graphs against eager code, and the cold start."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gpu_rows.proofs import BF16_BOUND, decibels, restore
from gpu_rows.report import Rejected, Report, ratios, spread
from gpu_rows.restoring import our_run, peer_run
from gpu_rows.session import Session

COLD_START = Path(__file__).with_name("cold_start.py")


def compiled_pipeline(session: Session, mode: str) -> Any:
    """Return a copy of our pipeline that compiles its denoising networks when it first runs."""
    pipe, _ = session.pipelines()
    return session.pipeline(copy.deepcopy(pipe.restorer), session.dtype, mode)


def contest(session: Session, report: Report, mode: str, goal: str) -> None:
    """Time compiled code against eager code: first image, then images in turn; prove that the image is the same.

    Args:
        mode: `compile`, or `graphs` for CUDA graphs.
    """
    pipe, _ = session.pipelines()
    fast = session.keep("compiled", lambda: compiled_pipeline(session, mode))
    image, steps = session.images(1, 11), max(session.sizes.steps)
    first = session.seconds(lambda: our_run(fast, image, steps)(0))
    report.data["first_image_seconds"] = first
    report.line(f"first image, {mode}", f"{first:.1f} s")

    runs = {"eager": our_run(pipe, image, steps), mode: our_run(fast, image, steps)}
    taken = session.interleave(runs)
    report.data[f"{steps} steps"] = taken
    gain = spread(ratios(taken["eager"], taken[mode]))
    report.line(
        f"batch 1, {steps} steps, {mode}", f"{spread(taken[mode], 1e3)} ms, eager code: {gain}x", goal
    )
    single = session.interleave({mode: our_run(fast, image, 1)})[mode]
    report.line(f"batch 1, one step, {mode}", f"{spread(single, 1e3)} ms", "G12: <= 40 ms")
    report.data["one step"] = single
    report.at_least(
        f"{mode} against eager code",
        decibels(restore(fast, image, steps), restore(pipe, image, steps)),
        BF16_BOUND,
    )


def compiled(session: Session, report: Report) -> None:
    """The denoising step through torch.compile, from an empty compile cache."""
    contest(session, report, "compile", "G1: <= 140 ms")
    session.keep("compile_seconds", lambda: report.data["first_image_seconds"])


def graphs(session: Session, report: Report) -> None:
    """The same in CUDA graphs."""
    if not session.on_gpu:
        raise Rejected("CUDA graphs need a GPU")
    session.release("compiled", "runner")
    contest(session, report, "graphs", "G1: <= 140 ms")
    session.release("compiled")


def peer_compiled(session: Session, report: Report) -> None:
    """Ours against diffusers' pipeline, both compiled."""
    _, peer = session.pipelines()
    fast = session.keep("compiled", lambda: compiled_pipeline(session, "compile"))
    peer.pipe.unet.compile(**session.keep("compile_options", dict))
    peer.pipe.controlnet.compile(**session.keep("compile_options", dict))
    image, steps = session.images(1, 12), max(session.sizes.steps)
    runs = {"ours": our_run(fast, image, steps), "peer": peer_run(session, peer, image, steps)}
    first = session.seconds(lambda: runs["peer"](0))
    taken = session.interleave(runs)
    report.data.update(first_image_seconds=first, seconds=taken)
    gain = spread(ratios(taken["peer"], taken["ours"]))
    report.line(
        f"batch 1, {steps} steps, both compiled",
        f"{spread(taken['ours'], 1e3)} ms, diffusers {spread(taken['peer'], 1e3)} ms: {gain}x",
        "G1: >= 1.3x",
    )
    session.release("peer", "pipe")  # its networks are no longer plain


def cold_start(session: Session, report: Report) -> None:
    """A process of its own from nothing to an image: eager, then compiled out of the cache that is there by now."""
    folder = str(session.model_folder)
    session.release()
    had_cache = "compile_seconds" in session.kept
    settings = {
        "folder": folder,
        "device": str(session.device),
        "side": session.sizes.side,
        "steps": max(session.sizes.steps),
        "backend": session.kept.get("compile_options", {}).get("backend"),
    }

    def start() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, str(COLD_START), json.dumps(settings)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])

    # The cache is filled by the row before, or by a first process here.
    cold = session.kept["compile_seconds"] if had_cache else start()["first_compiled_image"]
    warm = start()
    report.data.update(cold_compile=cold, warm=warm)
    report.line(
        "import, load and prepare",
        f"{warm['import']:.1f} + {warm['load']:.1f} + {warm['prepare']:.1f} s",
    )
    report.line(
        "first image, eager", f"{warm['first_image']:.2f} s", "G10: a correct eager answer first"
    )
    ratio = warm["first_compiled_image"] / cold
    report.line(
        "first compiled image, with a cache",
        f"{warm['first_compiled_image']:.1f} s, without {cold:.1f} s: {ratio:.2f}x",
        "G10: <= 0.25x",
    )
    report.at_least("compiled out of the cache, against eager code", warm["decibels"], BF16_BOUND)


def use_backend(session: Session, backend: str) -> None:
    """Let everything that is compiled use a backend of torch.compile: the walk on a CPU generates no code."""
    plain = torch.compile
    session.kept["compile_options"] = {"backend": backend}
    torch.compile = lambda *args, **options: plain(*args, **{"backend": backend, **options})  # type: ignore[assignment]
