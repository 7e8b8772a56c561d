"""Peak memory of restoring one image, by its size: with tiles it grows by the image's own canvases only.

    python benchmarks/memory.py      # a table on stdout, raw numbers in benchmarks/results/memory.json

Each size runs in a process of its own, with the bundled mini weights on the CPU, from an 8-bit array to an 8-bit
picture. Memory is the process's peak resident set, libraries included. One denoising step: the peak does not depend on
their number.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Measures, prints and saves; with `--one SIDE` it is the process that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[1024, 2048, 4096], help="(default: 1024 2048 4096)"
    )
    parser.add_argument("--model", default="mini", help="(default: mini)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results") / "memory.json"
    )
    arguments = parser.parse_args()
    if arguments.one is not None:
        return restore(arguments.model, arguments.one)
    rows = []
    for side in arguments.sides:
        command = [sys.executable, __file__, "--model", arguments.model, "--one", str(side)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        limit = 1.1 * rows[0]["peak_rss_mib"] + 600
        print(
            f"{side}x{side}: {row['peak_rss_mib']} MiB (loaded {row['loaded_rss_mib']}), "
            f"limit {limit:.0f}, {row['seconds']:.0f} s",
            flush=True,
        )
    environment = {
        "model": arguments.model,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "diffusers", "diffrestorer")},
    }
    arguments.output.write_text(json.dumps({**environment, "rows": rows}, indent=1) + "\n")


def restore(model: str, side: int) -> None:
    """Restores one enlarged photo and prints the process's peaks as JSON."""
    import skimage.data
    import torch
    from PIL import Image

    from diffrestorer import DiffRestorerPipeline

    pipe = DiffRestorerPipeline.from_pretrained(model).prepare("cpu")
    pipe.set_progress_bar_config(disable=True)
    photo = Image.fromarray(skimage.data.astronaut()).resize((side, side), Image.Resampling.BICUBIC)
    loaded = peak()
    started = time.perf_counter()
    pipe(photo, 1, torch.Generator().manual_seed(0))
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "side": side,
                "peak_rss_mib": peak(),
                "loaded_rss_mib": loaded,
                "seconds": round(seconds, 1),
            }
        )
    )


def peak() -> int:
    """Peak resident set of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
