"""`diffrestorer export` and the runner: onnxruntime restores what PyTorch restores, without PyTorch."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image

from diffrestorer.cli import main
from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config
from diffrestorer.inference import onnx_export
from diffrestorer.inference.one_step import OneStepScheduler
from diffrestorer.inference.onnx_export import export_student, resize_as_clip
from diffrestorer.inference.onnx_files import FILE_NAME
from diffrestorer.inference.pipeline import DiffRestorerPipeline
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.pretrained import load_base
from diffrestorer.models.restorer import build_restorer

RUNNER = Path(__file__).resolve().parents[2] / "integrations" / "onnx" / "restore.py"

SIZES = [(64, 64), (90, 201), (256, 33)]
"""Square and not, in the models' multiples and not."""


@pytest.fixture(scope="module", autouse=True)
def traced_as_users_do() -> Iterator[None]:
    """Without the tests' type checks, which see the symbols of a traced shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def student(overrides: list[str], randomised: Callable) -> DiffRestorerPipeline:
    """A tiny student in which every path matters."""
    config = load("train_stage1", Stage1Config, overrides).model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        restorer = randomised(build_restorer(config, *load_base(config)).eval())
    teacher = UniPCMultistepScheduler(**config.scheduler)
    scheduler = OneStepScheduler.from_teacher(teacher, tau=200)
    pipe = DiffRestorerPipeline(
        **restorer.components(),
        scheduler=scheduler,
        relative_prediction=config.relative_prediction,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def mini_student(tiny_overrides: list[str], randomised: Callable) -> DiffRestorerPipeline:
    return student(tiny_overrides, randomised)


@pytest.fixture(scope="module")
def mini_folder(mini_student: DiffRestorerPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    mini_student.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mini_file(mini_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the command writes."""
    out = tmp_path_factory.mktemp("exported")
    assert main(["export", str(mini_folder), "-o", str(out)]) == 0
    return out / FILE_NAME


def check_sizes(file: Path, pipe: DiffRestorerPipeline) -> None:
    session = onnxruntime.InferenceSession(file)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["classes"].split(",") == list(pipe.classes)
    for height, width in SIZES:
        image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * width))
        expected = pipe(image, output_type="pt").images[0].numpy()
        padded = pad_to_multiple(image, int(metadata["multiple"]))
        inputs = {"image": padded.numpy(), "size": np.array([height, width])}

        found = session.run(["restored"], inputs)[0][0, :, :height, :width]

        assert expected.std() > 0.01, "a flat image would show nothing"
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.soak
def test_mini_s_kind_equals_pytorch(mini_file: Path, mini_student: DiffRestorerPipeline) -> None:
    check_sizes(mini_file, mini_student)


@pytest.mark.soak
def test_stable_diffusion_s_kind_equals_pytorch(
    tiny_sd15_overrides: list[str],
    randomised: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With its weights in a second file, as a model of more than 2 GiB has them."""
    monkeypatch.setattr(onnx_export, "LARGEST_SINGLE_FILE", 0)
    pipe = student(tiny_sd15_overrides, randomised)

    file = export_student(pipe, tmp_path)

    weights, graph = sorted(path.name for path in tmp_path.iterdir())
    assert graph == FILE_NAME
    assert weights.startswith("restorer-")
    assert weights.endswith(".onnx.data")
    check_sizes(file, pipe)


@pytest.mark.soak
def test_the_runner_needs_neither_pytorch_nor_this_package(
    mini_file: Path, mini_student: DiffRestorerPipeline, photos_dir: Path, tmp_path: Path
) -> None:
    # A large photo, a photo smaller than its padding, and a file that is none.
    photo = Image.open(photos_dir / "astronaut.png")
    photos = {"a.png": photo.crop((0, 0, 150, 101)), "b.png": photo.crop((60, 60, 69, 63))}
    for name, image in photos.items():
        image.save(tmp_path / name)
    (tmp_path / "c.png").write_text("no photo")
    words = [str(mini_file), *(str(tmp_path / f"{x}.png") for x in "abc"), "-o", str(tmp_path / "out")]
    program = (
        "import runpy, sys\n"
        "for name in ('torch', 'torchvision', 'diffusers', 'diffrestorer'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = {['restore.py', *words]!r}\n"
        f"runpy.run_path({str(RUNNER)!r}, run_name='__main__')\n"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert answer.returncode == 1, answer.stderr
    assert "c.png: cannot identify image file" in answer.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    for name, image in photos.items():
        expected = np.asarray(mini_student(image).images[0], dtype=int)
        found = np.asarray(Image.open(tmp_path / "out" / name), dtype=int)
        assert np.abs(found - expected).max() <= 1, name


@pytest.mark.parametrize("content", [None, "no graph"])
def test_the_runner_refuses_a_bad_file_in_a_sentence(content: str | None, tmp_path: Path) -> None:
    model = tmp_path / "restorer.onnx"
    if content is not None:
        model.write_text(content)
    words = [sys.executable, str(RUNNER), str(model), "photo.png", "-o", str(tmp_path / "out")]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1].startswith(f"restore.py: error: {model} can't be loaded: ")
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("height", "width"), [(20, 70), (32, 32), (300, 145)])
def test_the_image_encoder_sees_the_same(
    mini_student: DiffRestorerPipeline, height: int, width: int
) -> None:
    encoder = mini_student.image_encoder
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    small = resize_as_clip(
        pad_to_multiple(image, 32), torch.tensor([height, width]), encoder.image_size
    )
    mean = torch.tensor(encoder.config.mean).view(3, 1, 1)
    std = torch.tensor(encoder.config.std).view(3, 1, 1)
    torch.testing.assert_close((small - mean) / std, encoder.prepare(image), rtol=0, atol=1e-5)


def test_a_teacher_is_refused(
    random_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(random_model), "-o", str(tmp_path / "out")]) == 2
    sentence = (
        f"diffrestorer: {random_model}: only a one-step student can be exported, and this model samples in several "
        "steps: train a student of it with diffrestorer train student\n"
    )
    assert capfd.readouterr().err == sentence
    assert not (tmp_path / "out").exists()


def test_a_folder_that_can_t_be_made_is_one_sentence(
    mini_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("in the way")
    assert main(["export", str(mini_folder), "-o", str(tmp_path / "out")]) == 1
    assert capfd.readouterr().err == f"diffrestorer: {tmp_path / 'out'} can't be written: File exists\n"


def test_without_the_extra_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", "mini", "-o", str(tmp_path)]) == 2
    sentence = "export needs onnxscript, which is not installed: pip install 'diffrestorer[onnx]'"
    assert sentence in capfd.readouterr().err
