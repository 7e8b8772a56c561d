"""The typed configuration of scripts/evaluate.py and scripts/make_figures.py."""

from dataclasses import dataclass, field

from diffrestorer.config.options import option


@dataclass
class TestDataConfig:
    """Test sets."""

    root: str | None = None
    """Folder that `diffrestorer prepare` made; null: open photos, degraded by this package. With `suite=pairs` one of
    pairs too: NAME/lq/ and NAME/gt/ for each class."""
    lq: str | None = None
    """`suite=pairs`: folder of degraded images."""
    gt: str | None = None
    """`suite=pairs`: folder of the clean images, which have the same names."""
    degradation: str | None = None
    """`suite=pairs`: class of `lq` and `gt`; null: own."""
    lq_name: str = "{}"
    """`suite=pairs`: names of degraded files without their suffix; `{}_lq` fits x_lq.png."""
    gt_name: str = "{}"
    """`suite=pairs`: names of clean files, likewise."""


@dataclass
class EvaluateConfig:
    """`scripts/evaluate.py`: restore a suite with each method, score the files, write tables and pages."""

    output_dir: str = "outputs/evaluate"
    """Folder that holds everything the evaluation writes. The same command on it makes only what is missing."""
    seed: int = option(0, ge=0)
    """Seed of every random number."""
    seeds: int = option(3, ge=1)
    """Runs of every method that starts from noise, with seed, seed + 1, ...: pooled by image, their spread beside the
    mean. What draws no noise (a one-step student, most compared methods) runs once."""
    suite: str = "demo"
    """Suite: demo, single, real, mixed, all, ablation or pairs."""
    method: list[str] = field(default_factory=list)
    """Names, or NAME=FOLDER of a model or of outputs made elsewhere; empty: what the suite is about."""
    model: str = "mini"
    """Weights of diff_restorer: `mini`, a folder or a hub id."""
    ablation: str | None = None
    """Evaluate `model` as this row of Tables II-V."""
    trained: str = "outputs"
    """Folder of the baselines and ablations that are named without one: TRAINED/NAME."""
    consistency_decoder: str = "openai/consistency-decoder"
    """Folder or hub id of its weights (Table V)."""
    data: TestDataConfig = field(default_factory=TestDataConfig)
    steps: int | None = option(None, ge=1)
    """Denoising steps; null: as many as each model's folder asks for (20, or a student's one)."""
    batch_size: int = option(4, ge=1)
    """Images restored or scored at once."""
    device: str = "auto"
    """Device that computes: `cpu`, `cuda:1`, ...; `auto` takes a GPU if there is one."""
    dtype: str = option("float32", choices=("float32", "tf32", "bfloat16", "float16"))
    """Number format of diff_restorer's models; compared methods run in float32, or in `tf32` too. `tf32` is float32
    whose products a GPU computes in TF32; otherwise none is. Scores are always computed in float32."""
    size: int = option(256, ge=32)
    """Side of the open photos in pixels."""
    synthesis: str = option("ours", choices=("ours", "broad", "heldout"))
    """Degradations of open photos: this package's default ones, all trained variants, or those that never train."""
    images: int | None = option(None, ge=1)
    """Use the first so many images of each task; null: all."""
    metrics: list[str] = field(default_factory=list)
    """Names of the metrics; empty: the suite's own, see configs/evaluate.yaml."""
    metric_weights: str | None = None
    """Folder with the metrics' weights, laid out like torch's hub folder; null: that folder itself, and downloads."""
    fid_floor: int = option(10, ge=2)
    """FID is refused on fewer images than this (the smallest set of the paper has 15)."""
    only: str | None = option(None, choices=("restore", "score"))
    """`restore` makes the images, `score` scores the ones that are there; null: both."""
    cards: int = option(6, ge=1)
    """Number of images of each task that the page shows; half of them are the worst."""


@dataclass
class FiguresConfig:
    """`scripts/make_figures.py`: a picture for the documentation."""

    figure: str = "degradations"
    """Name of the picture: degradations, variants, tiles, training, or the number of one of the paper's figures."""
    output_dir: str = "docs"
    """The picture is OUTPUT_DIR/FIGURE.png; the paper's are OUTPUT_DIR/figureN.png and .pdf."""
    seed: int = option(0, ge=0)
    """Seed of every random number."""
    photo: str = "astronaut"
    """Photo of scikit-image."""
    evaluation: str = "outputs/evaluate"
    """Output folder of `diffrestorer evaluate`, for figures 7-9 and 11-14."""
    model: str = "mini"
    """Model of figures 3 and 10: `mini`, a folder or a hub id."""
    data: TestDataConfig = field(default_factory=TestDataConfig)
    """Test images of figure 10: data.root=PREPARED takes its own, null crops of scikit-image's photos."""
    clip: str = "openai"
    """CLIP with its text tower, for figure 3: a tag of open_clip, a file, a folder or a hub id."""
    training: str = "outputs/train_stage1"
    """Output folder of a training script, for figure=training."""
