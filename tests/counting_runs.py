"""A training script that counts its operations as on a GPU of 0.1 TFLOP/s: `counting_runs.py SCRIPT ARGUMENTS`."""

import runpy
import sys
from pathlib import Path

from diffrestorer.training import throughput

if __name__ == "__main__":
    throughput.COUNTED_ON = ("cpu",)
    throughput.PEAKS["cpu"] = (0.1, 0.1, 0.1)
    script = Path(__file__).resolve().parents[1] / "scripts" / sys.argv.pop(1)
    runpy.run_path(str(script), run_name="__main__")
