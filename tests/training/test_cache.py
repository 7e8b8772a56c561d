"""Cached encodings: the losses of a run without a cache, made anew when they should be, refused when they are wrong."""

import copy
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import FrozenDict
from miniatures import make as make_pairs
from miniatures import photos
from soaking import some_now

from diffrestorer.config.composition import load
from diffrestorer.config.schema import DataConfig, DecoderConfig, Stage1Config, StudentConfig
from diffrestorer.data.pairs import PairBatch, SynthesisedPairs, collate_pairs
from diffrestorer.data.prepared import PreparedPairs
from diffrestorer.training import cache as cache_module
from diffrestorer.training.cache import CachedPairs, open_cache
from diffrestorer.training.decoder_stage import DecoderTask
from diffrestorer.training.stage1 import Stage1Task
from diffrestorer.training.student import StudentTask
from diffrestorer.training.task import Task

ROOT = Path(__file__).resolve().parents[2]
LOG = logging.getLogger("diffrestorer.training")

CLASSES = ["noise", "rain"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos, prepared at the size they are trained at."""
    root = tmp_path_factory.mktemp("prepared")
    make_pairs("photos", photos(root / "photos", 1, 2), root / "out", size=32, budget=None)
    return root / "out"


@pytest.fixture(scope="module")
def pairs(prepared: Path) -> PreparedPairs:
    return PreparedPairs(
        DataConfig("manifest", str(prepared), 32, CLASSES), seed=3, global_batch_size=2
    )


@pytest.fixture(scope="module")
def task(tiny_overrides: list[str], prepared: Path) -> Stage1Task:
    torch.manual_seed(0)
    data = ["data=manifest", f"data.root={prepared}", "data.size=32", "data.degradations=[noise,rain]"]
    return Stage1Task(load("train_stage1", Stage1Config, [*tiny_overrides, *data]))


def make(folder: Path, task: Task, pairs: SynthesisedPairs | PreparedPairs) -> CachedPairs:
    return open_cache(folder, task, pairs, Accelerator(cpu=True), 3, 0, LOG)


def batch(pairs: PreparedPairs | CachedPairs, step: int) -> PairBatch:
    return collate_pairs([pairs[step, position] for position in range(2)])


@pytest.mark.parametrize("stage", some_now(["stage1", "decoder hq", "decoder sampled"], 1))
def test_losses_are_those_without_a_cache(
    stage: str, tiny_overrides: list[str], task: Stage1Task, pairs: PreparedPairs, tmp_path: Path
) -> None:
    trained: Task = task
    if stage != "stage1":
        task.save_model(tmp_path / "stage1", torch.float32)
        overrides = [
            *tiny_overrides,
            f"stage1={tmp_path}/stage1",
            f"z0={stage.split()[1]}",
            "z0_steps=2",
        ]
        torch.manual_seed(0)
        trained = DecoderTask(load("train_decoder", DecoderConfig, overrides))
    cached = make(tmp_path / "cache", trained, pairs)
    for step in (0, 1):
        without, losses = trained(batch(pairs, step)), trained(batch(cached, step))
        if (
            stage != "decoder sampled"
        ):  # there the cache keeps one sample a pair; without it every epoch draws its own
            assert losses.total.item() == pytest.approx(without.total.item(), rel=1e-5)
            for name, value in losses.parts.items():
                assert value.item() == pytest.approx(without.parts[name].item(), rel=1e-5), name
        assert losses.total.isfinite()


def test_a_cached_batch_asks_no_encoder(
    task: Stage1Task, pairs: PreparedPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = make(tmp_path, task, pairs)
    calls: list[str] = []
    for name in ("vae.encoder", "image_encoder"):
        hook = task.restorer.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.append(name)
        )
        monkeypatch.setattr(task, f"_hook_{name}", hook, raising=False)
    task(batch(cached, 0))
    assert not calls
    task(batch(pairs, 0))
    assert set(calls) == {"vae.encoder", "image_encoder"}


def test_a_cache_is_built_once_and_repaired(
    task: Stage1Task,
    pairs: PreparedPairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 6)
    caplog.set_level(logging.INFO)
    cache = make(tmp_path, task, pairs).cache
    files = sorted(tmp_path.glob("*/chunk_*/rows.safetensors"))
    assert [file.parent.name for file in files] == ["chunk_00000", "chunk_00001"]
    times = [file.stat().st_mtime_ns for file in files]
    assert "encoding 8 variants" in caplog.text
    caplog.clear()
    make(tmp_path, task, pairs)
    assert [file.stat().st_mtime_ns for file in files] == times
    assert not caplog.text
    whole = [cache.read(i)["latents"] for i in range(8)]

    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    repaired = make(tmp_path, task, pairs).cache
    assert "chunk_00001 is damaged" in caplog.text
    assert files[0].stat().st_mtime_ns == times[0]
    assert all(torch.equal(repaired.read(i)["latents"], latents) for i, latents in enumerate(whole))


HOLD = """
import sys, time
from pathlib import Path
from diffrestorer.data.ownership import own_folder

with own_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_owner_of_a_cache_is_waited_for_in_short_turns(
    task: Stage1Task, pairs: PreparedPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes exchange a word after each: an exchange that takes minutes ends a run on GPUs."""
    folder = make(tmp_path / "other", task, pairs).cache.folder.name
    (tmp_path / "own").mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "own" / folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        turns = []
        take = cache_module._take

        def watched(*arguments: Any) -> bool:
            turns.append(take(*arguments))
            if len(turns) == 2:
                owner.communicate("\n")
            return turns[-1]

        monkeypatch.setattr(cache_module, "OWNER_SECONDS", 0.1)
        monkeypatch.setattr(cache_module, "_take", watched)
        make(tmp_path / "own", task, pairs)
    assert turns[:2] == [False, False]
    assert turns[-1] is True


def test_other_encoders_and_other_pairs_make_another_cache(
    task: Stage1Task, pairs: PreparedPairs, prepared: Path, tmp_path: Path
) -> None:
    make(tmp_path, task, pairs)
    other = copy.deepcopy(task)
    with torch.no_grad():
        other.restorer.vae.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    make(tmp_path, other, pairs)
    trained = copy.deepcopy(task)
    with torch.no_grad():
        trained.restorer.control_encoder.conv_in.weight.add_(1)
    make(tmp_path, trained, pairs)
    make(tmp_path, task, PreparedPairs(DataConfig("manifest", str(prepared), 32, ["noise"]), 3, 2))
    assert len(list(tmp_path.iterdir())) == 3, (
        "a changed VAE, changed pairs; what trains does not matter"
    )


def test_what_diffusers_notes_of_a_configuration_makes_no_other_cache(
    task: Stage1Task, pairs: PreparedPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`_use_default_values` has another order in every process, `_name_or_path` follows a folder that is moved."""
    vae = task.restorer.vae
    for notes in ("sample_size", "act_fn"), ("act_fn", "sample_size"):
        config = {**vae.config, "_use_default_values": list(notes), "_name_or_path": f"/{notes[0]}"}
        monkeypatch.setattr(vae, "_internal_dict", FrozenDict(config))
        assert vae.config["_use_default_values"] == list(notes)
        make(tmp_path, task, pairs)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(vae, "_internal_dict", FrozenDict({**vae.config, "act_fn": "gelu"}))
    make(tmp_path, task, pairs)
    assert len(list(tmp_path.iterdir())) == 2, "an argument of the constructor does"


def test_a_changed_transform_is_found(task: Stage1Task, pairs: PreparedPairs, tmp_path: Path) -> None:
    make(tmp_path, task, pairs)
    changed = copy.copy(pairs)
    changed.fixed = lambda index: PreparedPairs.fixed(pairs, (index + 1) % 8)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"is not what the encoders say now .* remove the folder"):
        make(tmp_path, task, changed)


def test_what_cannot_be_cached_is_refused(
    task: Stage1Task, photos_dir: Path, prepared: Path, tmp_path: Path
) -> None:
    data = DataConfig("photos", str(photos_dir), 32, ["noise"])
    cropped = DataConfig("manifest", str(prepared), 16, ["noise"])
    for changing in (SynthesisedPairs(data, 0, 2), PreparedPairs(cropped, 0, 2)):
        with pytest.raises(
            ValueError, match=r"train\.cache_dir needs pairs that are the same in every epoch"
        ):
            make(tmp_path, task, changing)


def test_stages_that_keep_other_encodings_have_other_caches(
    tiny_sd15_overrides: list[str], pairs: PreparedPairs, prepared: Path, tmp_path: Path
) -> None:
    """In one folder, with the same encoders: stage 1 and the decoder share a cache, the student has its own."""
    keys = [*tiny_sd15_overrides, "data=manifest", f"data.root={prepared}", "data.size=32"]
    keys += ["data.degradations=[noise,rain]"]
    torch.manual_seed(0)
    stage1 = Stage1Task(load("train_stage1", Stage1Config, keys))
    stage1.save_model(tmp_path / "stage1" / "model", torch.float32)
    decoder = DecoderTask(load("train_decoder", DecoderConfig, [*keys, f"stage1={tmp_path}/stage1"]))
    student_keys = [*keys, f"teacher={tmp_path}/stage1", "lora_rank=2", "lambda_adversarial=0"]
    student = StudentTask(load("train_student", StudentConfig, student_keys))
    caches = [
        make(tmp_path / "cache", task, pairs).cache.folder
        for task in (stage1, decoder, student, stage1)
    ]
    assert caches[0] == caches[1] == caches[3] != caches[2]
