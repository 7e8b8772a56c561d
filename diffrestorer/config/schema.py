"""The typed configuration of each training script and of preparation: keys, types, limits, defaults and meaning."""

from dataclasses import dataclass, field
from typing import Any

from diffrestorer.config.options import option
from diffrestorer.config.parts import LR_SCHEDULES
from diffrestorer.config.parts import DataConfig as DataConfig
from diffrestorer.config.parts import ModelConfig as ModelConfig
from diffrestorer.config.parts import TrainConfig as TrainConfig
from diffrestorer.config.synthesis_ranges import Synthesis

PIXEL_LOSSES = ("mse", "psnr", "l1")

PNG_REFUSED = "it is larger than zstd and decoded more slowly than zstd and webp; take zstd"


@dataclass
class RunConfig:
    """Keys of every training run."""

    output_dir: str = "outputs"
    """Folder that holds everything the run writes. The same command on the same folder resumes."""
    seed: int = option(0, ge=0)
    """Seed of every random number."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    check: bool = False
    """Read every file of the data, count the pairs of each class, and train nothing; also written --check."""


@dataclass
class BaseConfig(RunConfig):
    """`scripts/train_base.py`: mini's VAE, image encoder and UNet, one after the other."""

    output_dir: str = "outputs/train_base"
    part: str = option("all", choices=("all", "vae", "image_encoder", "unet"))
    """Train one part only; the parts before it must be finished."""
    init: str | None = None
    """Base whose weights the parts begin with, `mini` or a folder (say, of smaller images); null: random ones."""
    model: ModelConfig = field(default_factory=ModelConfig)
    vae_steps: int | None = option(None, ge=1)
    """Steps of the VAE; null: train.max_steps."""
    image_encoder_batches: int = option(200, ge=1)
    """Batches of 16 degraded crops that the image encoder's projection is fitted to."""
    image_encoder_steps: int = option(0, ge=0)
    """Steps in which the image encoder then learns to tell degradations; 0: it stays ImageNet's."""
    teacher: str | None = None
    """With part=image_encoder: a finished model that gets the tuned image encoder, `mini` or a folder. Its prompt
    processor learns too, so that the model's other networks read what they read before."""
    lambda_prompts: float = option(1.0, ge=0)
    """Weight of the squared distance to the teacher's P_S and P_D."""
    unet_steps: int | None = option(None, ge=1)
    """Steps of the UNet; null: train.max_steps."""
    lambda_kl: float = option(1e-6, ge=0)
    """Weight of the VAE's Kullback-Leibler term."""


@dataclass
class Stage1Config(RunConfig):
    """`scripts/train_stage1.py`: prompt processor, classifier and control module (Eq. 7)."""

    output_dir: str = "outputs/train_stage1"
    base: str | None = None
    """Overrides model.base: a folder, a hub id, `mini`, or `none` for random weights."""
    init: str | None = None
    """Model whose weights all that trains begins with, to go on from it; null: as the method says."""
    model: ModelConfig = field(default_factory=ModelConfig)
    lambda_deg: float = option(1.0, ge=0)
    """Weight of the degradation classifier's loss."""
    lambda_rec: float = option(1.0, ge=0)
    """Weight of the control decoder's reconstruction loss."""


@dataclass
class DecoderConfig(RunConfig):
    """`scripts/train_decoder.py`: the Degradation-aware Decoder (Eq. 8)."""

    output_dir: str = "outputs/train_decoder"
    stage1: str | None = None
    """Output folder of stage 1 (or a model folder), whose prompts modulate the decoder."""
    init: str | None = None
    """Model whose refined decoder's weights the decoder begins with; null: the VAE's."""
    model: ModelConfig = field(default_factory=ModelConfig)
    z0: str = option("hq", choices=("hq", "sampled"))
    """Latents it learns to decode: of the clean image (paper) or sampled by stage 1 from the degraded one."""
    z0_steps: int = option(4, ge=1)
    """Sampling steps of `z0=sampled`."""
    pixel_loss: str = option("mse", choices=PIXEL_LOSSES)
    """`mse` (paper), `l1`, or `psnr`: minus the mean PSNR, in which an image counts more the closer it already is."""
    lambda_perceptual: float = option(0.1, ge=0)
    """Weight of the perceptual loss."""
    lambda_adversarial: float = option(0.001, ge=0)
    """Weight of the adversarial loss; 0: there is no discriminator."""
    discriminator_lr: float = option(1e-5, gt=0)
    """Learning rate of the discriminator."""
    discriminator_start: int = option(0, ge=0)
    """First step at which the adversarial loss is active; the paper states none."""
    discriminator_channels: int = option(64, ge=1)
    """Width of the PatchGAN's first layer."""


@dataclass
class StudentConfig(RunConfig):
    """`scripts/train_student.py`: a student that restores in one step (docs/student.md)."""

    output_dir: str = "outputs/train_student"
    teacher: str | None = None
    """Finished model that the student begins as: output folder of the decoder stage, a model folder, or `mini`. A model
    that is a student already goes on as it is."""
    init: str | None = None
    """Finished student whose weights it begins with instead; null: the teacher's."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tau: int = option(200, ge=0, lt=1000)
    """Timestep of the one network call."""
    patch: int | None = option(None, ge=64)
    """Side of a square of each crop, of chance position, that the networks restore while CLIP sees the whole crop; more
    of them fit into an hour. Null: the whole crop."""
    lora_rank: int = option(64, ge=1)
    """Rank of the UNet's adapters, with `model.train_unet=lora`."""
    lora_lr: float = option(5e-5, gt=0)
    """Learning rate of the adapters."""
    train_decoder: bool = True
    """Train the decoder too; false keeps the teacher's."""
    decoder_start: int = option(0, ge=0)
    """First step at which the decoder's weights change."""
    pixel_loss: str = option("mse", choices=PIXEL_LOSSES)
    """`mse`, `l1`, or `psnr`: minus the mean PSNR, in which an image counts more the closer it already is."""
    lambda_pixel: float = option(1.0, ge=0)
    """Weight of the pixel loss."""
    lambda_gradient: float = option(0.0, ge=0)
    """Weight of the same loss between the images' differences of neighbouring pixels: edges, and traces of a grid."""
    lambda_perceptual: float = option(5.0, ge=0)
    """Weight of the perceptual loss."""
    lambda_adversarial: float = option(0.5, ge=0)
    """Weight of the adversarial loss; 0: there are no discriminators."""
    lambda_latent: float = option(0.1, ge=0)
    """Weight of the squared distance to the clean image's latents."""
    lambda_distillation: float = option(0.0, ge=0)
    """First weight of the squared distance to the latents that the teacher samples; 0: the teacher does not sample."""
    lambda_degradation: float = option(0.0, ge=0)
    """Weight of the classifier's cross-entropy. Above 0 the prompt processor trains too; at 0 it is the teacher's."""
    distillation_share: float = option(0.3, gt=0, le=1)
    """Share of the run over which that weight falls to 0."""
    distillation_steps: int = option(20, ge=1)
    """Sampling steps of the teacher."""
    discriminator_lr: float = option(1e-5, gt=0)
    """Learning rate of the discriminators."""
    discriminator_start: int = option(0, ge=0)
    """First step at which the adversarial loss is active."""
    discriminator_channels: int = option(64, ge=1)
    """Width of the PatchGAN's first layer."""


@dataclass
class MiniConfig:
    """`scripts/train_mini.py`: mini trained on for a given number of minutes."""

    output_dir: str = "outputs/train_mini"
    """Folder that holds the runs of the stages. The same command on the same folder resumes."""
    seed: int = option(0, ge=0)
    """Seed of every random number."""
    root: str | None = None
    """Folder of clean photos, searched recursively."""
    minutes: float = option(10.0, gt=0)
    """Time for all stages, from the start to the finished model."""
    teacher: str = "mini"
    """Model that is trained on: `mini` or a folder."""
    batch_size: int | None = option(None, ge=1)
    """Crops per step of every stage; null: 64 on a GPU and 8 on a CPU."""
    num_workers: int | None = option(None, ge=0)
    """Processes that make training pairs; null: one per core but one."""
    common: list[str] = field(default_factory=list)
    """Overrides for every stage, as on the command line of its script."""
    stages: dict[str, list[str]] = field(default_factory=dict)
    """Stage -> its own overrides."""
    shares: dict[str, float] = option({}, ge=0)
    """Stage -> its share of the minutes, relative to the others'; 0: the stage is left out."""


@dataclass
class PretrainingConfig:
    """A method's first phase: the keys of `train` that differ in it."""

    max_steps: int = option(0, ge=0)
    """Steps of the phase; 0: there is none."""
    global_batch_size: int | None = option(None, ge=1)
    """Samples per step over all processes; null: as in `train`."""
    lr: float = option(1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = option(0.0, ge=0)
    """Weight decay of the optimiser."""
    lr_schedule: str = option("constant", choices=LR_SCHEDULES)
    """As in `train`."""
    lr_milestones: dict[float, float] = option({}, ge=0)
    """Share of the phase -> factor on the learning rate from there on."""
    lr_floor: float = option(0.0, ge=0)
    """Learning rate at which `cosine` ends."""
    warmup_steps: int = option(0, ge=0)
    """Steps over which the learning rate rises to its peak."""


@dataclass
class BaselineConfig(RunConfig):
    """`scripts/train_baseline.py`: one of the six compared methods."""

    output_dir: str = "outputs/train_baseline"
    method: str = "nafnet"
    """Name of the method: a file in configs/method/."""
    size: str = "paper"
    """Size of the network and its recipe: a file in configs/size/."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of the method's class in `diffrestorer.baselines`."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """First phase of AirNet (its encoder) and DA-CLIP (its controller)."""
    optimizer: str = option("adamw", choices=("adam", "adamw"))
    """Optimiser."""
    betas: list[float] = option([0.9, 0.999], ge=0, lt=1)
    """Decay rates of the optimiser's two averages."""
    loss: str = option("l1", choices=("l1", "smooth_l1", "psnr"))
    """Loss on pixels."""
    lambda_perceptual: float = option(0.0, ge=0)
    """Weight of the perceptual term (TransWeather)."""
    perceptual: str = option("none", choices=("vgg16", "efficientnet_lite0", "none"))
    """Feature network of the perceptual term."""
    perceptual_weights: str | None = None
    """File with VGG-16's weights, where they can't be downloaded."""
    lambda_contrastive: float = option(0.1, ge=0)
    """Weight of AirNet's contrastive term in the second phase."""
    patch_size: int = option(128, ge=8)
    """Side of AirNet's two crops of one image."""
    window_size: int = option(397, ge=8)
    """Side of the square, anywhere in the image, that both of AirNet's crops come from."""
    queue_length: int = option(2048, ge=1)
    """Negatives of AirNet's contrastive term, a multiple of the global batch."""
    momentum: float = option(0.999, ge=0, le=1)
    """Momentum of AirNet's key encoder."""
    temperature: float = option(0.07, gt=0)
    """Temperature of AirNet's contrastive term."""
    clip: str | None = None
    """DA-CLIP: CLIP's weights, a tag of open_clip (`laion2b_s34b_b79k`), a file, `mini` (its encoder) or `none`."""


@dataclass
class PrepareConfig:
    """`scripts/prepare_data.py`: from downloads to verified pairs on disk."""

    set: str = "all"
    """Name of the data set, `all`, `photos`, `pairs` or `open_photos`."""
    root: str | None = None
    """Folder (or archive) of the downloads, of photos, or of pairs: NAME/lq/ and NAME/gt/ for each class."""
    out: str | None = None
    """Folder of the prepared pairs; several sets may share one."""
    check: bool = False
    """Validate the downloads at `root`, verify the checksums of the pairs at `out`, and make nothing."""
    seed: int = option(0, ge=0)
    """Seed of every random number."""
    size: int = option(512, ge=32, multiple_of=8)
    """Side of the stored images in pixels."""
    fit: str = option("auto", choices=("auto", "resize", "crop"))
    """`resize` to a square (the paper), `crop`, or `auto`: crop for photos, resize for everything else."""
    budget: int | None = option(None, ge=1)
    """Training pairs per class, shared by the sets that make it; null: 10,000, for photos one per photo."""
    split: str = option("train", choices=("train", "test"))
    """Use of `photos`: training pairs of the eight classes, or test images of these and the four mixtures. Use of
    `pairs`."""
    haze: str = option("OTS", choices=("OTS", "ITS"))
    """Training part of RESIDE."""
    compress: str = option("none", choices=("none", "zstd", "webp"), refused={"png": PNG_REFUSED})
    """Training shards: raw pixels (`none`), or compressed without loss by `zstd` to 44 % or by `webp` to 37 %, which is
    decoded five times as slowly. Training reads the same pixels in the same order."""
    degradations: list[str] = field(default_factory=list)
    """Make these classes and mixtures only; empty: all that the set gives."""
    synthesis: Synthesis = field(default_factory=Synthesis)
    """Strength of the synthesised degradations, such as synthesis.noise.sigma=[10,50]."""
    num_workers: int | None = option(None, ge=1)
    """Processes; null: one per core."""
    shard: str | None = None
    """Part I/N of the work, from 0/N: parts run at once on machines that share `out`. `merge` writes the manifest when
    all are made. null: the whole work."""
    allow_incomplete: bool = False
    """Go on without sets that are missing (the others take over their share) and without files that lack a partner."""
    skip_unreadable: bool = False
    """Leave out the pairs of images that cannot be read."""
    lq_name: str = "{}"
    """`set=pairs`: names of degraded files without their suffix; `{}_lq` fits x_lq.png."""
    gt_name: str = "{}"
    """`set=pairs`: names of clean files, likewise."""
