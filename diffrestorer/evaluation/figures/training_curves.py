"""Figure `training`: the loss curves of a run."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def draw_training(training: Path) -> Figure:
    """Draw the losses of a training run: every step, and the mean over a fiftieth of the run.

    Args:
        training: output folder of a training script.

    Raises:
        ValueError: it holds no losses.csv.
    """
    path = training / "losses.csv"
    if not path.is_file():
        raise ValueError(
            f"training={training} holds no losses.csv: give the output_dir of a training script"
        )
    losses = pd.read_csv(path, index_col=0, dtype=float)
    window = max(1, len(losses) // 50)

    # A plot per column.
    figure = Figure(figsize=(3.6 * len(losses.columns), 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(losses.columns)))
    for axis, (name, values) in zip(axes, losses.items(), strict=True):
        axis.plot(values.index, values, linewidth=0.5, alpha=0.35)
        mean = values.rolling(window).mean().dropna()
        axis.plot(mean.index, mean, linewidth=1.5, color="C0")
        axis.set_title(name)
        axis.set_xlabel("step")
        if (values > 0).all():
            axis.set_yscale("log")
    return figure
