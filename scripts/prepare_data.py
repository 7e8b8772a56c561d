"""Make training and test pairs of downloaded data sets, or check them. See configs/prepare_data.yaml, or --help."""

from diffrestorer.config.composition import run
from diffrestorer.config.schema import PrepareConfig
from diffrestorer.preparation.catalog import explain


def main(config: PrepareConfig) -> None:
    """Write the pairs and their manifest below `out`."""
    from diffrestorer.preparation.prepare import prepare

    prepare(config)


if __name__ == "__main__":
    run(
        "prepare_data",
        PrepareConfig,
        main,
        flags=("set", "root", "out"),
        switch="check",
        describe=explain,
    )
