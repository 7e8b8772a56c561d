"""Restore a suite with several methods and compare them. See configs/evaluate.yaml."""

from diffrestorer.config.composition import run
from diffrestorer.config.evaluating import EvaluateConfig


def main(config: EvaluateConfig) -> None:
    """Write scores, tables and pages below `output_dir`."""
    from diffrestorer.evaluation.run import evaluate

    evaluate(config)


if __name__ == "__main__":
    run("evaluate", EvaluateConfig, main, flags=("suite", "method"))
