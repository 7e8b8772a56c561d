"""The parts that the configurations of training share: networks, data, and the loop itself."""

from dataclasses import dataclass, field
from typing import Any

from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.options import option
from diffrestorer.config.scale import SCALES
from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.config.view_ranges import Views

LR_SCHEDULES = ("constant", "cosine", "steps")

FP16_REFUSED = (
    "it needs loss scaling, which skips steps where gradients overflow and whose state checkpoints do not hold; take "
    "bf16, or no (float32) on a GPU without bf16"
)


@dataclass
class ModelConfig:
    """Networks. The dictionaries hold constructor arguments, and `+model.unet.dropout=0.1` adds one."""

    name: str = "sd15"
    """Name of the file in configs/model/."""
    base: str | None = None
    """Pretrained VAE and UNet (mini: image encoder too): a folder, a file, a hub id, `mini` (bundled) or `none`."""
    clip: str | None = None
    """CLIP weights: a tag of open_clip (`openai`), a file, a folder or a hub id; unused if the base brings its own."""
    vae_class: str = option("AutoencoderKL", choices=("AutoencoderKL", "PatchAutoencoderKL"))
    """Class of the VAE."""
    image_encoder_class: str = option("ImageEncoder", choices=("ImageEncoder", "MiniImageEncoder"))
    """Class of the image encoder."""
    control_encoder_class: str = option(
        "ControlEncoder", choices=("ControlEncoder", "MiniControlEncoder")
    )
    """Class of the control module's image encoder."""
    decoder_class: str = option(
        "DegradationAwareDecoder", choices=("DegradationAwareDecoder", "MiniDecoder")
    )
    """Class of the Degradation-aware Decoder."""
    vae: dict[str, Any] = field(default_factory=dict)
    """Arguments of the VAE."""
    image_encoder: dict[str, Any] = field(default_factory=dict)
    """Arguments of the CLIP image encoder; `vision_cfg` is open_clip's description of the tower."""
    prompt_processor: dict[str, Any] = field(default_factory=dict)
    """Arguments of the prompt processor."""
    unet: dict[str, Any] = field(default_factory=dict)
    """Arguments of the UNet."""
    control_encoder: dict[str, Any] = field(default_factory=dict)
    """Arguments of the control module's image encoder."""
    decoder: dict[str, Any] = field(default_factory=dict)
    """Arguments of the decoder that do not follow from the VAE's."""
    relative_prediction: bool = False
    """Let the UNet predict the difference to the degraded image's latents; needs prediction_type=sample."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Arguments of the noise schedule, which training (DDPM) and sampling (UniPC) share."""
    refine: bool = True
    """Put refinement blocks (DRBs) into the decoder."""
    train_unet: str = option("none", choices=("none", "cross_attention", "all", "lora"))
    """Part of the UNet that trains."""
    perceptual: str = option("vgg19", choices=("vgg19", "efficientnet_lite0", "lpips", "none"))
    """Feature network of the decoder stage's perceptual loss."""
    perceptual_weights: str | None = None
    """File with its weights, where they can't be downloaded."""


@dataclass
class DataConfig:
    """Training pairs."""

    name: str = "paper"
    """Name of the file in configs/data/."""
    root: str | None = None
    """A folder that `diffrestorer prepare` made, or a URL of its copy (s3://, gs://, hf://, ...); one of clean photos
    (`data=photos`), searched recursively, or one with NAME/lq/ and NAME/gt/ for each class (`data=pairs`)."""
    size: int = option(512, ge=32, multiple_of=8)
    """Side of the training crop in pixels. The VAE divides by 8, VGG-19's features need 32."""
    degradations: list[str] | None = None
    """Classes that are trained on; null: all. `data=photos` makes the more of one the more often it is named."""
    synthesis: Synthesis = field(default_factory=Synthesis)
    """Strength of the synthesised degradations, such as data.synthesis.noise.sigma=[10,50]."""
    views: Views = field(default_factory=Views)
    """Views of the clean photos, such as data.views.scale=[0.5,1]."""
    skip_unreadable: bool = False
    """Train without photos that cannot be read; the next one by name takes the place of each."""
    augment: bool = False
    """Mirror pairs and turn them by quarter turns, in one of eight ways each."""
    validation_root: str | None = None
    """Folder of clean photos that are not trained on, for `train.validate_every`; degraded on the fly, once for all.
    With `data=pairs` one of pairs: lq/ and gt/, or NAME/lq/ and NAME/gt/."""
    classes: list[str] | None = None
    """The model's classes, in the order of its probabilities. Null: the paper's eight (`data=pairs`: the folders'), in
    later stages stage 1's."""
    synthesis_module: str | None = None
    """`data=photos`: Python file with a function (image, generator -> image) for each class of your own."""
    balance: str = option("pairs", choices=("pairs", "classes"))
    """`pairs`: each once an epoch. `classes`: each class equally often, or as often as `degradations` names it."""
    lq: str | None = None
    """`data=pairs`: folder of degraded images."""
    gt: str | None = None
    """`data=pairs`: folder of the clean images, which have the same names."""
    degradation: str | None = None
    """`data=pairs`: class of `lq` and `gt`; null: own."""
    lq_name: str = "{}"
    """`data=pairs`: names of degraded files without their suffix; `{}_lq` fits x_lq.png."""
    gt_name: str = "{}"
    """`data=pairs`: names of clean files, likewise."""
    cache_gb: float = option(50.0, ge=0)
    """`root` at a URL: disk for a cache of its pairs; the least recently used ones are deleted first. 0: no cache."""
    cache_dir: str | None = None
    """`root` at a URL: folder of that cache, shared by a machine's processes; null: in the user's folder of caches."""


@dataclass
class TrainConfig:
    """Length, speed and output of training."""

    scale: str = option("paper", choices=tuple(SCALES))
    """Batch, learning rate, warm-up, steps and average together, each unless given: the paper's, or for 8 or 64 GPUs by
    a rule that was never tried at these sizes (docs/scaling.md)."""
    max_steps: int = option(500_000, ge=1)
    """Steps of the whole run."""
    global_batch_size: int = option(16, ge=1)
    """Samples per step over all processes, whatever their number."""
    micro_batch_size: int | None = option(None, ge=1)
    """Samples a process computes at once, accumulating gradients up to its share; null: as `hardware` says."""
    lr: float = option(1e-5, gt=0)
    """Peak learning rate."""
    weight_decay: float = option(0.01, ge=0)
    """Weight decay of AdamW."""
    lr_schedule: str = option("constant", choices=LR_SCHEDULES)
    """`constant`, `cosine` down to 0 at max_steps, or `steps` at `lr_milestones`."""
    lr_hold: float = option(0.0, ge=0, lt=1)
    """Share of the run that `cosine` stays at the peak before it falls."""
    lr_floor: float = option(0.0, ge=0)
    """Learning rate at which `cosine` ends."""
    lr_milestones: dict[float, float] = option({}, ge=0)
    """Share of the run -> factor on the learning rate from there on."""
    warmup_steps: int = option(0, ge=0)
    """Steps over which the learning rate rises to its peak."""
    max_grad_norm: float | None = option(None, gt=0)
    """Norm to which gradients are clipped; null: not clipped."""
    mixed_precision: str = option("no", choices=("no", "bf16"), refused={"fp16": FP16_REFUSED})
    """Precision of the forward pass: float32 (`no`) or bf16. Weights stay in float32."""
    num_workers: int = option(4, ge=0)
    """Processes that make batches, per training process; 0: the training process itself."""
    checkpoint_every: int = option(5000, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = option(2, ge=1)
    """Number of newest checkpoints that are kept."""
    profile: int | None = option(None, ge=0)
    """Step whose operations torch's profiler records, into `profile/`: a trace for the browser, and a table by time."""
    log_every: int = option(50, ge=1)
    """Steps between lines of progress."""
    sample_every: int = option(5000, ge=1)
    """Steps between sheets of samples."""
    save_dtype: str = option("float32", choices=("float32", "float16"))
    """Number format of the weights in `model/`."""
    tracker: str = option("none", choices=("none", "tensorboard", "wandb"))
    """Tracker that gets the losses, besides `losses.csv`."""
    wandb_mode: str | None = option(None, choices=("online", "offline"))
    """`online`, or `offline`: the report stays in `output_dir`. Null: as WANDB_MODE says, else online."""
    ema_decay: float | None = option(None, gt=0, lt=1)
    """Decay of an average of the weights (say 0.9999), which is validated and saved as the model; null: none."""
    validate_every: int | None = option(None, ge=1)
    """Steps between validations on `data.validation_root`; null: none."""
    validation_images: int = option(16, ge=1)
    """Photos of a validation, the first by name, each with the next degradation."""
    validation_lpips: bool = False
    """Compute LPIPS (AlexNet, fetched by torchvision) beside PSNR."""
    cache_dir: str | None = None
    """Folder that keeps the frozen encoders' outputs on prepared pairs, computed once; null: computed at each step."""
    allow_changed_data: bool = False
    """Resume although the training data are not those the run began with."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Use of the machine; `hardware=cpu|gpu24|gpu40|gpu80|auto` sets all of it."""
