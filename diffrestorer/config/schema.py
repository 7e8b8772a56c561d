"""The typed configuration of training and preparation: what keys exist, their types, defaults and meaning."""

from dataclasses import dataclass, field
from typing import Any

from diffrestorer.config.hardware_presets import HardwareConfig
from diffrestorer.config.synthesis_ranges import Synthesis
from diffrestorer.config.view_ranges import Views

CHOICES = {
    "train.mixed_precision": ("no", "bf16"),
    "train.lr_schedule": ("constant", "cosine", "steps"),
    "pretraining.lr_schedule": ("constant", "cosine", "steps"),
    "train.save_dtype": ("float32", "float16"),
    "train.tracker": ("none", "tensorboard", "wandb"),
    "train.wandb_mode": ("online", "offline"),
    "train.hardware.checkpointing": ("none", "blocks"),
    "model.train_unet": ("none", "cross_attention", "all", "lora"),
    "model.perceptual": ("vgg19", "efficientnet_lite0", "lpips", "none"),
    "z0": ("hq", "sampled"),
    "split": ("train", "test"),
    "fit": ("auto", "resize", "crop"),
    "haze": ("OTS", "ITS"),
    "dtype": ("float32", "tf32", "bfloat16", "float16"),
    "only": ("restore", "score"),
    "part": ("all", "vae", "image_encoder", "unet"),
    "loss": ("l1", "smooth_l1", "psnr"),
    "pixel_loss": ("mse", "psnr"),
    "optimizer": ("adam", "adamw"),
    "perceptual": ("vgg16", "efficientnet_lite0", "none"),
}
"""Keys whose values are names, and the names."""


@dataclass
class ModelConfig:
    """Which networks. The dictionaries are constructor arguments of the classes in `diffrestorer.models`."""

    name: str = "sd15"
    base: str | None = None
    """Pretrained VAE and UNet (mini: image encoder too): a folder, a hub id, `mini` (bundled) or `none` (random)."""
    clip: str | None = None
    """CLIP weights: a tag of open_clip (`openai`) or a file; unused where the base brings its image encoder."""
    vae_class: str = "AutoencoderKL"
    image_encoder_class: str = "ImageEncoder"
    control_encoder_class: str = "ControlEncoder"
    decoder_class: str = "DegradationAwareDecoder"
    """Names of the classes that may differ from the paper's; see `diffrestorer.models.mini`."""
    vae: dict[str, Any] = field(default_factory=dict)
    image_encoder: dict[str, Any] = field(default_factory=dict)
    prompt_processor: dict[str, Any] = field(default_factory=dict)
    unet: dict[str, Any] = field(default_factory=dict)
    control_encoder: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    """Arguments of the decoder that do not follow from the VAE's."""
    relative_prediction: bool = False
    """Whether the UNet predicts the difference to the degraded image's latents; needs prediction_type=sample."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    refine: bool = True
    """False leaves the DRBs out of the decoder."""
    train_unet: str = "none"
    perceptual: str = "vgg19"
    """Feature network of the decoder stage's perceptual loss."""
    perceptual_weights: str | None = None
    """File with its weights, where they can't be downloaded."""


@dataclass
class DataConfig:
    """Which pairs."""

    name: str = "paper"
    root: str | None = None
    """A folder that scripts/prepare_data.py made, or (`data=photos`) one of clean photos, searched recursively."""
    size: int = 512
    """Side of the training crop in pixels, a multiple of 8."""
    degradations: list[str] | None = None
    """Classes that are trained on; null: all. `data=photos` makes the more of one the more often it is named."""
    synthesis: Synthesis = field(default_factory=Synthesis)
    """How strong the synthesised degradations are, such as data.synthesis.noise.sigma=[10,50]."""
    views: Views = field(default_factory=Views)
    """What is seen of the clean photos, such as data.views.scale=[0.5,1]."""
    validation_root: str | None = None
    """Folder of clean photos that are not trained on, for `train.validate_every`; degraded on the fly, once for all."""
    classes: list[str] | None = None
    """The model's classes, in the order of its probabilities. Null: the paper's eight, in later stages stage 1's."""
    skip_unreadable: bool = False
    """Train without photos that cannot be read; the next one by name takes the place of each."""


@dataclass
class TrainConfig:
    """How long, how fast, and what is kept."""

    max_steps: int = 500_000
    global_batch_size: int = 16
    """Samples a step over all processes: what counts, whatever their number."""
    micro_batch_size: int | None = None
    """Samples a process computes at once, accumulating gradients up to its share; null: as `hardware` says."""
    lr: float = 1e-5
    weight_decay: float = 0.01
    lr_schedule: str = "constant"
    """`constant`, `cosine` down to 0 at max_steps, or `steps` at `lr_milestones`."""
    lr_hold: float = 0.0
    """Share of the run that `cosine` stays at the peak before it falls."""
    lr_milestones: dict[float, float] = field(default_factory=dict)
    """Share of the run -> factor on the learning rate from there on."""
    warmup_steps: int = 0
    max_grad_norm: float | None = None
    """Gradients are clipped to this norm; null: not clipped."""
    mixed_precision: str = "no"
    num_workers: int = 4
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2
    log_every: int = 50
    sample_every: int = 5000
    save_dtype: str = "float32"
    """Of the weights in `model/`."""
    tracker: str = "none"
    """Where losses go besides `losses.csv`."""
    wandb_mode: str | None = None
    """`online`, or `offline`: the report stays in `output_dir`. Null: as WANDB_MODE says, else online."""
    ema_decay: float | None = None
    """Keep an average of the weights with this decay (say 0.9999), validate and save it as the model; null: none."""
    validate_every: int | None = None
    """Steps between validations on `data.validation_root`; null: none."""
    validation_images: int = 16
    """Photos of a validation, the first by name, each with the next degradation."""
    validation_lpips: bool = False
    """LPIPS (AlexNet, fetched by torchvision) beside PSNR."""
    cache_dir: str | None = None
    """Folder for what frozen encoders say of prepared pairs, computed once and read ever after; null: computed anew."""
    allow_changed_data: bool = False
    """Resume although the training data are not those the run began with."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)


@dataclass
class BaseConfig:
    """`scripts/train_base.py`: mini's VAE, image encoder and UNet, one after the other."""

    output_dir: str = "outputs/train_base"
    seed: int = 0
    part: str = "all"
    """Train one part only; the parts before it must be finished."""
    init: str | None = None
    """Base whose weights the parts begin with, `mini` or a folder (say, of smaller images); null: random ones."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    vae_steps: int | None = None
    """Steps of each part; null: train.max_steps."""
    image_encoder_steps: int | None = None
    unet_steps: int | None = None
    lambda_kl: float = 1e-6
    """Weight of the VAE's Kullback-Leibler term."""
    lambda_content: float = 0.1
    """Weight of the image encoder's contrastive term beside its classification of the degradation."""


@dataclass
class Stage1Config:
    """`scripts/train_stage1.py`: prompt processor, classifier and control module (Eq. 7)."""

    output_dir: str = "outputs/train_stage1"
    seed: int = 0
    base: str | None = None
    """Overrides model.base: a folder, a hub id, `mini`, or `none` for random weights."""
    init: str | None = None
    """Model whose weights all that trains begins with, to go on from it; null: as the method says."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lambda_deg: float = 1.0
    lambda_rec: float = 1.0


@dataclass
class DecoderConfig:
    """`scripts/train_decoder.py`: the Degradation-aware Decoder (Eq. 8)."""

    output_dir: str = "outputs/train_decoder"
    seed: int = 0
    stage1: str | None = None
    """Output folder of stage 1 (or a model folder): whose prompts modulate the decoder."""
    init: str | None = None
    """Model whose refined decoder's weights the decoder begins with; null: the VAE's."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    z0: str = "hq"
    """Latents it learns to decode: of the clean image (paper) or sampled by stage 1 from the degraded one."""
    z0_steps: int = 4
    """Sampling steps of `z0=sampled`."""
    pixel_loss: str = "mse"
    """`mse` (paper), or `psnr`: its logarithm an image, so that mild degradations count as much as strong ones."""
    lambda_perceptual: float = 0.1
    lambda_adversarial: float = 0.001
    """0: there is no discriminator."""
    discriminator_lr: float = 1e-5
    discriminator_start: int = 0
    """Step from which the discriminator learns and the decoder hears of it; the paper states none."""
    discriminator_channels: int = 64
    """Width of the PatchGAN's first layer."""


@dataclass
class StudentConfig:
    """`scripts/train_student.py`: a student that restores in one step (docs/student.md)."""

    output_dir: str = "outputs/train_student"
    seed: int = 0
    teacher: str | None = None
    """Finished model that the student begins as: output folder of the decoder stage, a model folder, or `mini`."""
    init: str | None = None
    """Finished student whose weights it begins with instead; null: the teacher's."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tau: int = 200
    """Timestep of the one network call, from 0 to 999."""
    lora_rank: int = 64
    """Of the UNet's adapters, with `model.train_unet=lora`."""
    lora_lr: float = 5e-5
    """Learning rate of the adapters."""
    train_decoder: bool = True
    """False keeps the teacher's decoder."""
    decoder_start: int = 0
    """First step at which the decoder's weights change."""
    pixel_loss: str = "mse"
    """`mse`, or `psnr`: its logarithm per image, so that mild degradations count as much as strong ones."""
    lambda_pixel: float = 1.0
    lambda_perceptual: float = 5.0
    lambda_adversarial: float = 0.5
    """0: there are no discriminators."""
    lambda_latent: float = 0.1
    """Weight of the squared distance to the clean image's latents."""
    lambda_distillation: float = 0.0
    """First weight of the squared distance to the latents that the teacher samples; 0: the teacher does not sample."""
    lambda_degradation: float = 0.0
    """Weight of the classifier's cross-entropy. Above 0 the prompt processor trains too; at 0 it is the teacher's."""
    distillation_share: float = 0.3
    """Share of the run over which that weight falls to 0."""
    distillation_steps: int = 20
    """Sampling steps of the teacher."""
    discriminator_lr: float = 1e-5
    discriminator_start: int = 0
    """First step at which the adversarial loss is active."""
    discriminator_channels: int = 64
    """Width of the PatchGAN's first layer."""


@dataclass
class MiniConfig:
    """`scripts/train_mini.py`: mini in a given number of minutes."""

    output_dir: str = "outputs/train_mini"
    seed: int = 0
    root: str | None = None
    """Folder of clean photos, searched recursively."""
    minutes: float = 10.0
    """Time for all stages, from the start to the finished model."""
    num_workers: int | None = None
    """Processes that make training pairs; null: one per core but one."""
    common: list[str] = field(default_factory=list)
    """What every stage is given, as on the command line of its script."""
    stages: dict[str, list[str]] = field(default_factory=dict)
    """Stage -> what it is given besides."""
    shares: dict[str, float] = field(default_factory=dict)
    """Stage -> its share of the minutes."""


@dataclass
class PretrainingConfig:
    """A method's first phase: the keys of `train` that differ in it. 0 steps: there is none."""

    max_steps: int = 0
    global_batch_size: int | None = None
    """Null: as in `train`."""
    lr: float = 1e-4
    weight_decay: float = 0.0
    lr_schedule: str = "constant"
    lr_milestones: dict[float, float] = field(default_factory=dict)


@dataclass
class BaselineConfig:
    """`scripts/train_baseline.py`: one of the six compared methods."""

    output_dir: str = "outputs/train_baseline"
    seed: int = 0
    method: str = "nafnet"
    size: str = "paper"
    network: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the method's class in `diffrestorer.baselines`."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """First phase of AirNet (its encoder) and DA-CLIP (its controller)."""
    optimizer: str = "adamw"
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    loss: str = "l1"
    lambda_perceptual: float = 0.0
    """Weight of the perceptual term (TransWeather)."""
    perceptual: str = "none"
    perceptual_weights: str | None = None
    """File with VGG-16's weights, where they can't be downloaded."""
    lambda_contrastive: float = 0.1
    """AirNet: weight of the contrastive term in the second phase."""
    patch_size: int = 128
    """AirNet: side of the two crops of an image that belong together."""
    queue_length: int = 2048
    """AirNet: negatives of the contrastive term, a multiple of the global batch."""
    momentum: float = 0.999
    """AirNet: of the key encoder."""
    temperature: float = 0.07
    """AirNet: of the contrastive term."""
    clip: str | None = None
    """DA-CLIP: CLIP's weights: a tag of open_clip (`openai`), a file, `mini` (its image encoder) or `none`."""


RunConfig = BaseConfig | Stage1Config | DecoderConfig | StudentConfig | BaselineConfig
"""Of any training run."""


@dataclass
class PrepareConfig:
    """`scripts/prepare_data.py`: from downloads to verified pairs on disk."""

    set: str = "all"
    root: str | None = None
    """Folder (or archive) of the downloads; for `photos` and `open_photos` see the file's header."""
    out: str | None = None
    """Folder of the prepared pairs; several sets may share one."""
    check: bool = False
    """Validate what is at `root`, verify the checksums of what is at `out`, and make nothing."""
    seed: int = 0
    size: int = 512
    """Side of the stored images in pixels."""
    fit: str = "auto"
    """`resize` to a square (the paper), `crop`, or `auto`: crop for photos, resize for everything else."""
    budget: int | None = None
    """Training pairs a class, shared by the sets that make it; null: 10,000, for photos one a photo."""
    split: str = "train"
    """What `photos` are for: training pairs of the eight classes, or test images of these and the four mixtures."""
    haze: str = "OTS"
    """Which of RESIDE's training parts."""
    degradations: list[str] = field(default_factory=list)
    """Make these classes and mixtures only; empty: all that the set gives."""
    synthesis: Synthesis = field(default_factory=Synthesis)
    """How strong the synthesised degradations are, such as synthesis.noise.sigma=[10,50]."""
    num_workers: int | None = None
    """Processes; null: one a core."""
    allow_incomplete: bool = False
    """Go on without sets that are missing (the others take over their share) and without files that lack a partner."""
    skip_unreadable: bool = False
    """Leave out the pairs of images that cannot be read."""
