"""Train a one-step student of a finished model. See configs/train_student.yaml, or --help."""

from pathlib import Path

from diffrestorer.config.composition import run
from diffrestorer.config.schema import StudentConfig


def main(config: StudentConfig) -> None:
    """Hand the task to the training loop."""
    from diffrestorer.training.loop import train
    from diffrestorer.training.model_classes import follow_teacher
    from diffrestorer.training.student import StudentTask

    train(StudentTask, follow_teacher(config), Path(config.output_dir))


if __name__ == "__main__":
    run("train_student", StudentConfig, main)
