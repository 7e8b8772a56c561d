"""The typed configuration of scripts/evaluate.py and scripts/make_figures.py."""

from dataclasses import dataclass, field


@dataclass
class TestDataConfig:
    """Which test sets."""

    root: str | None = None
    """Folder that scripts/prepare_data.py made; null: open photos, degraded by this package."""


@dataclass
class EvaluateConfig:
    """`scripts/evaluate.py`: restore a suite with each method, score the files, write tables and pages."""

    output_dir: str = "outputs/evaluate"
    seed: int = 0
    seeds: int = 1
    """Runs of every sampled method, with seed, seed + 1, ...: pooled by image, their spread beside the mean."""
    suite: str = "demo"
    method: list[str] = field(default_factory=list)
    """Names, or NAME=FOLDER of a model or of outputs made elsewhere; empty: what the suite is about."""
    model: str = "mini"
    """Weights of diff_restorer: `mini`, a folder or a hub id."""
    ablation: str | None = None
    """Evaluate `model` as this row of Tables II-V."""
    trained: str = "outputs"
    """Where baselines and ablations without a folder are looked for: TRAINED/NAME."""
    consistency_decoder: str = "openai/consistency-decoder"
    """Folder or hub id of its weights (Table V)."""
    data: TestDataConfig = field(default_factory=TestDataConfig)
    steps: int | None = None
    """Denoising steps; null: as many as each model's folder asks for (20, or a student's one)."""
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "float32"
    """Of diff_restorer's models; compared methods run in float32, or in `tf32` too. `tf32` is float32 whose products a
    GPU computes in TF32; otherwise none is. Scores are always computed in float32."""
    size: int = 256
    """Side of the open photos in pixels."""
    images: int | None = None
    """Use the first so many images of each task; null: all."""
    metrics: list[str] = field(default_factory=list)
    """Empty: the suite's own, see configs/evaluate.yaml."""
    metric_weights: str | None = None
    """Folder with the metrics' weights, laid out like torch's hub folder; null: that folder itself, and downloads."""
    fid_floor: int = 10
    """FID is refused on fewer images than this (the smallest set of the paper has 15)."""
    only: str | None = None
    """`restore` makes the images, `score` scores the ones that are there; null: both."""
    cards: int = 6
    """How many images of each task the page shows; half of them are the worst."""


@dataclass
class FiguresConfig:
    """`scripts/make_figures.py`: a picture for the documentation."""

    figure: str = "degradations"
    output_dir: str = "docs"
    """The picture is OUTPUT_DIR/FIGURE.png; the paper's are OUTPUT_DIR/figureN.png and .pdf."""
    seed: int = 0
    photo: str = "astronaut"
    """Of scikit-image."""
    evaluation: str = "outputs/evaluate"
    """Output folder of scripts/evaluate.py, for figures 7-9 and 11-14."""
    model: str = "mini"
    """For figures 3 and 10."""
    data: TestDataConfig = field(default_factory=TestDataConfig)
    """For figure 10: data.root=PREPARED takes its test images, null crops of scikit-image's photos."""
    clip: str = "openai"
    """CLIP with its text tower, for figure 3: a tag of open_clip or a file."""
    training: str = "outputs/train_stage1"
    """Output folder of a training script, for figure=training."""
