"""The paper's figures: drawn from what was measured, the choices made by data."""

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from evaluation_runs import quiet, settings
from matplotlib.figure import Figure
from miniatures import make, photos
from PIL import Image

from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.config.evaluating import FiguresConfig, TestDataConfig
from diffrestorer.evaluation.figures.drawing import make_figure
from diffrestorer.evaluation.figures.embeddings import measure_separability
from diffrestorer.evaluation.figures.grids import GRIDS, differing_region, read_evaluation, typical
from diffrestorer.evaluation.figures.paper_figures import PAPER_FIGURES
from diffrestorer.evaluation.figures.similarity import TEXTS, measure_similarity, plot_similarity
from diffrestorer.evaluation.run import evaluate
from diffrestorer.models.components import load_component, save_component
from diffrestorer.models.prompt_processor import PromptProcessor


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of the mixtures; two methods that need no model, one with a further run: outputs made elsewhere."""
    folder = tmp_path_factory.mktemp("evaluation")
    keys = {"suite": "mixed", "images": 3, "metrics": ["psnr"]}
    evaluate(settings(folder, ["degraded"], **keys), quiet())
    for name, value in (("dark", 0.5), ("bright", 1.5)):
        for file in (folder / "suite" / "lq").rglob("*.png"):
            pixels = np.clip(np.asarray(Image.open(file)) * value, 0, 255).astype(np.uint8)
            copy = folder / name / file.relative_to(folder / "suite" / "lq")
            copy.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(copy)
    methods = ["degraded", *(f"{name}={folder / name}" for name in ("dark", "bright"))]
    methods.append(f"dark@1={folder / 'bright'}")
    evaluate(settings(folder, methods, **keys), quiet())
    return folder


def test_every_figure_of_the_paper_has_a_drawer() -> None:
    assert set(PAPER_FIGURES) == {"3", "7", "8", "9", "10", "11", "12", "13", "14", "training"}


def test_a_grid_is_written_as_png_and_pdf_the_same_bytes_each_time(
    evaluation: Path, tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b"):
        config = FiguresConfig(figure="9", evaluation=str(evaluation), output_dir=str(tmp_path / name))
        path = make_figure(config)
        assert path == tmp_path / name / "figure9.png"
        files.append([path.read_bytes(), path.with_suffix(".pdf").read_bytes()])
    assert files[0] == files[1]
    assert files[0][1].startswith(b"%PDF")
    figure = PAPER_FIGURES["9"](config)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["degraded", "dark", "bright", "clean"]
    assert len(figure.axes) == 4 * 2 * 4
    assert len(figure.axes[0].patches) == 1, "the magnified region is marked"


def test_the_image_is_the_median_one(evaluation: Path) -> None:
    finished = read_evaluation(evaluation)
    task = "blur+noise"
    chosen = typical(finished, task, ["dark", "bright"])
    means = {
        image: sum(finished.scores[task, image, name]["psnr"] for name in ("dark", "bright"))
        for name, image in finished.items
        if name == task
    }
    assert sorted(means, key=lambda image: means[image])[1] == chosen.image


def test_the_region_is_where_the_methods_differ() -> None:
    images = [np.full((40, 60, 3), 100, np.uint8) for _ in range(3)]
    images[1][20:30, 33:43] = 200
    top, left, side = differing_region(images)
    assert side == 12
    assert top <= 20 and top + side >= 30  # noqa: PT018
    assert left <= 33 and left + side >= 43  # noqa: PT018


@pytest.mark.parametrize("figure", ["7", "11"])
def test_an_evaluation_of_something_else_is_refused(figure: str, evaluation: Path) -> None:
    suite = "single" if figure == "7" else "ablation"
    with pytest.raises(ValueError, match=rf"figure={figure} .* --suite {suite}` first"):
        PAPER_FIGURES[figure](FiguresConfig(figure=figure, evaluation=str(evaluation)))
    with pytest.raises(ValueError, match=r"holds no scores\.csv"):
        PAPER_FIGURES[figure](FiguresConfig(figure=figure, evaluation="/nowhere"))
    assert GRIDS[figure][0]


def test_figure_3_is_unavailable_with_mini() -> None:
    with pytest.raises(ValueError, match="unavailable with mini"):
        PAPER_FIGURES["3"](FiguresConfig(figure="3"))
    with pytest.raises(ValueError, match="no CLIP weights for clip=/nowhere"):
        PAPER_FIGURES["3"](FiguresConfig(figure="3", model="sd15", clip="/nowhere"))


def test_similarity_goes_through_both_towers() -> None:
    """A tiny CLIP of random weights: rows are distributions, and texts that change change them."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(16, vision, text).eval()
    similarities = measure_similarity(clip, open_clip.SimpleTokenizer(), 0)
    assert similarities.shape == (len(TEXTS), len(TEXTS))
    torch.testing.assert_close(similarities.sum(dim=1), torch.ones(len(TEXTS)))
    assert similarities.std() > 0
    texts = {axis.get_text() for axis in plot_similarity(similarities).axes[0].texts}
    assert f"{similarities[0, 0]:.2f}" in texts


def test_separability_tells_clusters_from_noise() -> None:
    rng = np.random.default_rng(0)
    classes, photos = np.repeat(np.arange(4), 20), np.tile(np.arange(5), 16)
    noise = rng.standard_normal((80, 8))
    apart, mixed = (
        measure_separability(noise + shift, classes, photos) for shift in (10 * classes[:, None], 0)
    )
    assert apart.accuracy == 1
    assert apart.silhouette > 0.8
    assert mixed.accuracy < 0.5
    assert abs(mixed.silhouette) < 0.1


def test_training_curves(tmp_path: Path) -> None:
    rows = [f"{step},{1 / step},{step - 50}" for step in range(1, 101)]
    (tmp_path / "losses.csv").write_text("\n".join(["step,total,diff", *rows]) + "\n")
    figure = PAPER_FIGURES["training"](FiguresConfig(figure="training", training=str(tmp_path)))
    assert isinstance(figure, Figure)
    assert [axis.get_title() for axis in figure.axes] == ["total", "diff"]
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear"]
    assert len(figure.axes[0].lines[0].get_xdata()) == 100  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds no losses\.csv"):
        PAPER_FIGURES["training"](FiguresConfig(figure="training", training="/nowhere"))


@pytest.mark.soak
def test_figure_10_shows_the_classes_that_the_model_has(random_model: Path, tmp_path: Path) -> None:
    """Of its classes the ones that the prepared images have; a model with fewer than two of them has no figure."""
    make("photos", photos(tmp_path / "photos", *range(1, 7)), tmp_path / "prepared", split="test")
    model = shutil.copytree(random_model, tmp_path / "model")
    config = FiguresConfig(
        figure="10", model=str(model), data=TestDataConfig(str(tmp_path / "prepared"))
    )
    for classes in (["sandstorm", "haze", "blur"], ["sandstorm", "haze"]):
        arguments = {**load_component(random_model / "prompt_processor").config, "classes": classes}
        known = {name: value for name, value in arguments.items() if not name.startswith("_")}
        save_component(PromptProcessor(**known), model / "prompt_processor", torch.float32)
        if len(classes) == 3:
            figure = PAPER_FIGURES["10"](config)
            assert "12 degraded images of 6 photos" in figure.get_suptitle()
            assert [text.get_text() for text in figure.legends[0].get_texts()] == ["haze", "blur"]
    with pytest.raises(ValueError, match=r"fewer than two of .*'s \(sandstorm, haze\) have images"):
        PAPER_FIGURES["10"](config)


def test_figure_10_tells_how_many_images_the_classifier_knows(
    random_model: Path, tmp_path: Path
) -> None:
    """Prepared test images of four photos, and a classifier that calls everything haze."""
    make("photos", photos(tmp_path / "photos", 1, 2, 3, 4), tmp_path / "prepared", split="test")
    model = shutil.copytree(random_model, tmp_path / "model")
    processor = load_component(model / "prompt_processor")
    torch.nn.init.zeros_(processor.classifier.weight)
    processor.classifier.bias.data = torch.eye(8)[DEGRADATIONS.index("haze")]
    save_component(processor, model / "prompt_processor", torch.float32)
    config = FiguresConfig(
        figure="10", model=str(model), data=TestDataConfig(str(tmp_path / "prepared"))
    )
    figure = PAPER_FIGURES["10"](config)
    assert "32 degraded images of 4 photos" in figure.get_suptitle()
    assert "tells 12% of them right" in figure.get_suptitle()
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["P_CLIP", "P_D"]
    assert sum(len(dots.get_offsets()) for dots in figure.axes[0].collections) == 32
