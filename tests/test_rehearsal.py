"""The files with random weights are laid out as the published ones, and the rehearsal walks the whole way."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from models.test_sd15_contract import NUM_TENSORS, PUBLISHED
from safetensors import safe_open

from diffrestorer.models.backbones import decode_latents, encode_image
from diffrestorer.models.pretrained import load_base

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

CLIP = {
    "positional_embedding": (77, 768),
    "text_projection": (768, 768),
    "logit_scale": (),
    "token_embedding.weight": (49408, 768),
    "transformer.resblocks.11.mlp.c_fc.weight": (3072, 768),
    "ln_final.weight": (768,),
    "visual.class_embedding": (1024,),
    "visual.positional_embedding": (257, 1024),
    "visual.proj": (1024, 768),
    "visual.conv1.weight": (1024, 3, 14, 14),
    "visual.ln_pre.weight": (1024,),
    "visual.transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
    "visual.transformer.resblocks.23.mlp.c_proj.bias": (1024,),
    "visual.ln_post.bias": (1024,),
}
VGG = {
    "features.0.weight": (64, 3, 3, 3),
    "features.34.weight": (512, 512, 3, 3),
    "classifier.0.weight": (4096, 25088),
    "classifier.6.weight": (1000, 4096),
}
MILLIONS = {"unet": 859.52, "vae": 34.16 + 49.49, "clip": 427.62, "vgg19": 143.67}
"""Parameters of the published networks."""


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


@pytest.fixture
def random_sd15(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("random_sd15", monkeypatch)


def test_names_and_shapes_are_the_published_ones(random_sd15: ModuleType) -> None:
    shapes = random_sd15.file_shapes(random_sd15.sd15_model())
    old_vae = {  # as the published file has them
        name.replace("mid_block.attentions.0.to_q", "mid_block.attentions.0.query"): shape
        for name, shape in PUBLISHED["vae"].items()
    }
    for file, published in {
        "unet": PUBLISHED["unet"],
        "vae": old_vae,
        "clip": CLIP,
        "vgg19": VGG,
    }.items():
        assert {name: shapes[file].get(name) for name in published} == published, file
        assert sum(map(math.prod, shapes[file].values())) / 1e6 == pytest.approx(
            MILLIONS[file], abs=0.01
        ), file
    assert {file: len(shapes[file]) for file in ("unet", "vae")} == {
        file: NUM_TENSORS[file] for file in ("unet", "vae")
    }
    visual = {name: shape for name, shape in shapes["clip"].items() if name.startswith("visual.")}
    assert sum(map(math.prod, visual.values())) / 1e6 == pytest.approx(303.97, abs=0.01)


def test_configurations_are_those_of_model_sd15(random_sd15: ModuleType) -> None:
    """The published config.json and configs/model/sd15.yaml describe the same networks."""
    model = random_sd15.sd15_model()
    for name in ("unet", "vae"):
        assert random_sd15.published_config(name, model) == random_sd15.CONFIGS[name]
    shared = sorted({*model.scheduler} & {*random_sd15.CONFIGS["scheduler"]})
    assert len(shared) == 5
    assert [model.scheduler[key] for key in shared] == [
        random_sd15.CONFIGS["scheduler"][key] for key in shared
    ]


def test_a_tensor_follows_from_its_name(random_sd15: ModuleType) -> None:
    shapes = {"conv_in.weight": (320, 4, 3, 3), "conv_out.weight": (320, 4, 3, 3), "norm.weight": (7,)}
    tensors = random_sd15.random_tensors("unet", shapes)
    alone = random_sd15.random_tensors("unet", {"conv_out.weight": (320, 4, 3, 3)})
    assert torch.equal(tensors["conv_out.weight"], alone["conv_out.weight"])
    assert not torch.equal(tensors["conv_in.weight"], tensors["conv_out.weight"])
    assert torch.equal(tensors["norm.weight"], torch.ones(7))
    assert tensors["conv_in.weight"].std() == pytest.approx(1 / math.sqrt(3 * 36), rel=0.02), (
        "PyTorch's default"
    )


@pytest.mark.soak
def test_a_small_base_is_read_and_computes(
    random_sd15: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[str] = []
    draw = random_sd15.random_tensors
    monkeypatch.setattr(random_sd15, "VGG_FILE", "vgg.safetensors")
    monkeypatch.setattr(
        random_sd15, "random_tensors", lambda file, shapes: drawn.append(file) or draw(file, shapes)
    )
    random_sd15.write_tiny_files(tmp_path)
    random_sd15.write_tiny_files(tmp_path)
    assert sorted(drawn) == ["image_encoder", "unet", "vae", "vgg19"], "files that are there are kept"
    with safe_open(tmp_path / "vgg.safetensors", "pt") as file:
        assert file.get_slice("features.34.weight").get_shape() == [512, 512, 3, 3]

    vae, image_encoder, unet = load_base(random_sd15.sd15_model(random_sd15.TINY_WIDTHS), str(tmp_path))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = encode_image(vae, images).latents
        noise = unet(latents, torch.tensor([1, 900]), torch.ones(2, 1, 64)).sample
        outputs = [latents, decode_latents(vae, latents), image_encoder(images), noise]
    for output in outputs:
        assert output.isfinite().all()
        assert 1e-3 < output.std() < 10


def rehearse(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "rehearsal.py"), "--tiny", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.soak
def test_the_whole_way(tmp_path: Path) -> None:
    output = tmp_path / "rehearsal"
    done = rehearse("--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    stages = {
        row["stage"]: row for row in json.loads((output / "rehearsal.json").read_text())["stages"]
    }
    assert stages["stage 1, killed"]["status"] == -9
    assert stages["stage 1, resumed"]["note"] == "went on at step 4 of 8"
    assert all(
        row["failure"] is None and row["memory"] > 2e8 and row["seconds"] > 1 for row in stages.values()
    )
    assert not list(output.rglob("*.safetensors")), "weights are deleted at the end"
    assert len(list((output / "restored").glob("*.png"))) == 2
    assert (output / "evaluation" / "index.html").exists()


@pytest.mark.soak
def test_a_stage_that_fails_is_named_with_its_last_lines(tmp_path: Path) -> None:
    broken = tmp_path / "modules"
    broken.mkdir()
    (broken / "pyarrow.py").write_text("raise ImportError('no such library here')\n")
    path = os.pathsep.join(filter(None, [str(broken), os.environ.get("PYTHONPATH")]))
    done = rehearse("--output", str(tmp_path / "rehearsal"), PYTHONPATH=path)
    assert done.returncode == 1
    assert "training pairs failed: exit status 1" in done.stderr
    assert "ImportError: no such library here" in done.stderr
    assert "stage 1" not in done.stdout
    assert (tmp_path / "rehearsal" / "base_tiny" / "unet").is_dir(), "the next try finds it"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--size", "100"], "take a multiple of 64"),
        (["--steps", "2"], "take at least 4"),
        (["--output", "FULL"], "holds files that are no rehearsal's"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    given = [str(tmp_path) if argument == "FULL" else argument for argument in arguments]
    rehearsal = benchmark("rehearsal", monkeypatch)
    monkeypatch.setattr(
        sys, "argv", ["rehearsal.py", "--tiny", "--output", str(tmp_path / "new"), *given]
    )
    with pytest.raises(SystemExit, match=sentence) as end:
        rehearsal.main()
    assert isinstance(end.value.code, str), "a sentence to stderr, and status 1"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_watched_command_is_measured_and_killed_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watch = benchmark("watch", monkeypatch)
    program = (
        "import subprocess, sys, time\n"
        "held = bytearray(200_000_000)\n"
        "held[::4096] = b'1' * len(held[::4096])\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "open('big', 'wb').write(bytes(1_000_000))\n"
        "time.sleep(2)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    folder = tmp_path / "folder"
    folder.mkdir()
    command = [sys.executable, "-c", program]
    found = watch.watch(command, log, folder, folder, (folder / "ready").exists)
    assert found.status == -9
    assert (
        not psutil.pid_exists(int(log.read_text()))
        or psutil.Process(int(log.read_text())).status() == "zombie"
    )
    assert 2e8 < found.memory < 4e8
    assert found.longest_silence >= 1
    assert found.disk == 1_000_000
    assert watch.watch([sys.executable, "-c", "raise SystemExit(3)"], log, folder, folder).status == 3
