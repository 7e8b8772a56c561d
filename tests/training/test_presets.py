"""Presets of `hardware=` and the precision: chosen by what the device has, refused with a reason."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import training_runs as runs

from diffrestorer.config import composition
from diffrestorer.config.composition import CONFIG_DIR, load
from diffrestorer.config.hardware_presets import (
    GIB,
    LIBRARIES,
    NEEDED,
    Detected,
    choose_preset,
    detect_hardware,
)
from diffrestorer.config.schema import Stage1Config
from diffrestorer.training.hardware import check_precision

ROOT = Path(__file__).resolve().parents[2]
COUNTS = json.loads((ROOT / "benchmarks" / "results" / "training_memory.json").read_text())["rows"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def counted_gib(stage: str, checkpointing: str, precision: str, samples: int) -> float:
    """The counted peak of a micro batch: what grows with it lies on the line through the two counts."""
    first, second = COUNTS[f"{stage}, {checkpointing}, {precision}"]
    slope = (second["peak"] - first["peak"]) / (second["samples"] - first["samples"])
    return (first["peak"] + slope * (samples - first["samples"])) / GIB


def test_presets_say_what_they_are() -> None:
    """A preset's name is its file's, and only GPUs round and compile."""
    for path in sorted((CONFIG_DIR / "hardware").glob("*.yaml")):
        settings = load("train_stage1", Stage1Config, [f"hardware={path.stem}"]).train
        on_gpu = settings.hardware.name.startswith("gpu")
        assert settings.hardware.name == (
            detect_hardware().preset if path.stem == "auto" else path.stem
        )
        assert (settings.mixed_precision == "bf16") == settings.hardware.compile_blocks == on_gpu
    key = load("train_stage1", Stage1Config, ["hardware=gpu80", "train.hardware.compile_blocks=false"])
    assert not key.train.hardware.compile_blocks, "a key of its own comes after the preset"


@pytest.mark.parametrize("precision", ["bf16", "no"])
@pytest.mark.parametrize("name", NEEDED)
def test_a_preset_needs_what_was_counted(name: str, precision: str) -> None:
    """In both stages, also where latents are sampled, at the preset's micro batch: what fits into such cards."""
    hardware = load("train_stage1", Stage1Config, [f"hardware={name}"]).train.hardware
    assert hardware.max_micro_batch is not None
    counted = max(
        counted_gib(stage, hardware.checkpointing, precision, hardware.max_micro_batch)
        for stage in ("stage1", "decoder", "decoder z0=sampled")
    )
    assert NEEDED[name][precision] == pytest.approx(counted, abs=0.06)


@pytest.mark.parametrize(
    ("free_gib", "has_bf16", "expected"),
    [
        (79.2, True, Detected("gpu80")),  # A100, H100 of 80 GB
        (61.0, True, Detected("gpu40")),  # an 80 GB card that others use
        (47.0, True, Detected("gpu40")),  # A6000, L40S
        (39.0, True, Detected("gpu40")),  # A100 of 40 GB
        (23.5, True, Detected("gpu24")),  # RTX 3090, 4090
        (
            10.0,
            True,
            Detected("gpu24"),
        ),  # none fits: the smallest, and running out of memory gives advice
        (31.5, False, Detected("gpu24", "no")),  # V100
        (14.5, False, Detected("gpu24", "no")),  # T4
    ],
)
def test_a_preset_is_chosen_by_free_memory_and_precision(
    free_gib: float, has_bf16: bool, expected: Detected
) -> None:
    assert choose_preset(int(free_gib * GIB), has_bf16) == expected


def test_a_trained_unet_fits_on_four_small_gpus_that_share_the_optimizer() -> None:
    """At gpu24's micro batch, which is then the whole share of the paper's batch of 16; not on two of them."""
    path = ROOT / "benchmarks" / "results" / "sharded_memory.json"
    counts = {counted["samples"]: counted for counted in json.loads(path.read_text())}
    config = load("train_stage1", Stage1Config, ["hardware=gpu24", "model.train_unet=all"]).train
    samples = config.global_batch_size // 4
    assert samples == config.hardware.max_micro_batch

    # On two GPUs the gradients of the first micro batch lie beside the buckets.
    counted = counts[samples]
    fixed = counted["weights"] + counted["gradients"] + LIBRARIES
    assert fixed + counted["made"] + counted["optimizer"] / 4 <= 22.5 * GIB
    least = fixed + counted["gradients"] + counts[1]["made"] + counted["optimizer"] / 2
    assert least > 23.5 * GIB


def test_a_trained_unet_fits_too() -> None:
    """`model.train_unet=all` at gpu80's and gpu40's micro batches."""
    for name, free in (("gpu80", 79), ("gpu40", 39)):
        samples = load(
            "train_stage1", Stage1Config, [f"hardware={name}"]
        ).train.hardware.max_micro_batch
        assert samples is not None
        assert counted_gib("stage1 train_unet=all", "none", "bf16", samples) + LIBRARIES / GIB <= free


def test_a_chosen_preset_fits() -> None:
    for free in range(8, 100):
        for has_bf16, precision in ((True, "bf16"), (False, "no")):
            chosen = choose_preset(free * GIB, has_bf16).preset
            larger = list(NEEDED)[: list(NEEDED).index(chosen)]
            assert all(NEEDED[name][precision] * GIB + LIBRARIES > free * GIB for name in larger), (
                "the largest"
            )
            fits = NEEDED[chosen][precision] * GIB + LIBRARIES <= free * GIB
            assert fits or chosen == list(NEEDED)[-1]


@pytest.mark.parametrize(("shown", "asked"), [(1, 0), (8, 3)])
def test_a_process_asks_the_gpu_that_it_will_use(
    shown: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fourth process of a node: the only one that it is shown, or the fourth of eight."""
    indices: list[int] = []

    def free(index: int) -> tuple[int, int]:
        indices.append(index)
        return int(79.2 * GIB), int(80 * GIB)

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    detect_hardware.cache_clear()
    try:
        assert detect_hardware() == Detected("gpu80")
    finally:
        detect_hardware.cache_clear()
    assert indices == [asked]


def test_a_gpu_without_bf16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a key says otherwise, which is refused where the device is known."""
    monkeypatch.setattr(composition, "detect_hardware", lambda: Detected("gpu24", "no"))
    settings = load("train_stage1", Stage1Config).train
    assert (settings.hardware.name, settings.mixed_precision) == ("gpu24", "no")
    assert (
        load("train_stage1", Stage1Config, ["train.mixed_precision=bf16"]).train.mixed_precision
        == "bf16"
    )

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert check_precision("no", CUDA) == "training in float32: Tesla T4 has no bf16"
    with pytest.raises(ValueError, match=r"Tesla T4 has no bf16: take train.mixed_precision=no"):
        check_precision("bf16", CUDA)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert check_precision("bf16", CUDA) is None


@pytest.mark.parametrize(("amx", "avx512", "accepted"), [(1, 1, True), (0, 1, True), (0, 0, False)])
def test_bf16_on_a_cpu_needs_its_instructions(
    amx: int, avx512: int, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    assert check_precision("no", CPU) is None
    if not accepted:
        with pytest.raises(
            ValueError, match=r"neither AMX nor AVX512-BF16.*take train.mixed_precision=no"
        ):
            check_precision("bf16", CPU)
    elif amx:
        assert check_precision("bf16", CPU) is None
    else:
        assert "without AMX" in (check_precision("bf16", CPU) or "")
    assert load("train_stage1", Stage1Config, ["hardware=cpu"]).train.mixed_precision == "no", (
        "never by itself"
    )


def test_fp16_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ValueError, match=r"train.mixed_precision=fp16 is refused: it needs loss scaling"
    ):
        load("train_stage1", Stage1Config, ["train.mixed_precision=fp16"])


@pytest.mark.slow
def test_a_run_in_bf16_on_this_cpu(tiny_overrides: list[str], photos_dir: Path, tmp_path: Path) -> None:
    """It trains where the CPU has the instructions; elsewhere it ends with the reason before anything is written."""
    arguments = [
        *tiny_overrides, "hardware=cpu", "train.mixed_precision=bf16", "data=photos", f"data.root={photos_dir}",
        "data.size=64", "train.max_steps=2", "train.global_batch_size=2", "train.num_workers=0",
        f"output_dir={tmp_path}/run",
    ]  # fmt: skip
    process = runs.start("train_stage1.py", arguments, tmp_path / "log")
    process.join()
    text = (tmp_path / "log").read_text()
    amx, avx512 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    if not amx and not avx512:
        assert process.exitcode == 2, text
        assert "neither AMX nor AVX512-BF16" in text
        assert not (tmp_path / "run").exists()
        return
    assert process.exitcode == 0, text
    assert ("without AMX" in text) == (not amx)
    assert len(runs.losses(tmp_path / "run")) == 2
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["mixed_precision"] == "bf16"
