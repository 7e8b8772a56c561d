"""Make a picture of the documentation. See configs/make_figures.yaml, or --help."""

from diffrestorer.config.composition import run
from diffrestorer.config.evaluating import FiguresConfig


def main(config: FiguresConfig) -> None:
    """Write `output_dir`/`figure`.png."""
    from diffrestorer.evaluation.figures.drawing import make_figure

    make_figure(config)


if __name__ == "__main__":
    run("make_figures", FiguresConfig, main)
