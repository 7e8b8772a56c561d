"""`diffrestorer export` and the runner: onnxruntime restores what PyTorch restores, without PyTorch."""

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
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


@pytest.fixture
def copier(tmp_path: Path) -> Path:
    """A graph with an export's inputs and outputs that returns its image."""
    sides = [1, 3, "height", "width"]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("image", onnx.TensorProto.FLOAT, sides), value("size", onnx.TensorProto.INT64, [2])]
    outputs = [value("restored", onnx.TensorProto.FLOAT, sides)]
    node = onnx.helper.make_node("Identity", ["image"], ["restored"])
    graph = onnx.helper.make_graph([node], "copier", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.helper.set_model_props(model, {"multiple": "32"})
    onnx.save(model, tmp_path / "copier.onnx")
    return tmp_path / "copier.onnx"


def restore(model: Path, *words: object, largest: int | None = None) -> tuple[int, list[str]]:
    """Run the runner, without a traceback; return its status and the lines on stderr.

    Args:
        model, words: of the command line.
        largest: bytes that a file may have, as on a full disk.
    """

    def limit() -> None:
        if largest is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    command = [sys.executable, str(RUNNER), str(model), *map(str, words)]
    answer = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, preexec_fn=limit
    )
    assert "Traceback" not in answer.stderr
    return answer.returncode, answer.stderr.splitlines()


def deep_png() -> bytes:
    """A PNG of 16-bit RGB, which Pillow can't write."""
    import cv2

    return bytes(cv2.imencode(".png", np.full((40, 50, 3), 30000, np.uint16))[1])


def bomb() -> bytes:
    """A PNG that claims 200 megapixels."""
    file = io.BytesIO()
    Image.new("1", (20000, 10000)).save(file, "PNG")
    return file.getvalue()


def write_hard_photos(folder: Path) -> None:
    """Write what can't be restored, one file of a kind; the name tells it."""
    folder.mkdir()
    grey = np.full((40, 50), 30000, np.uint16)
    Image.fromarray(grey).save(folder / "grey16.png")
    Image.fromarray(grey.astype(np.int32)).save(folder / "grey32.tif")
    Image.fromarray(grey.astype(np.float32)).save(folder / "float.tif")
    (folder / "rgb16.png").write_bytes(deep_png())
    (folder / "rgb16.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(24))
    pages = [Image.new("RGB", (40, 50), colour) for colour in ("red", "blue")]
    for name in ("animated.gif", "animated.png", "animated.webp", "pages.tif"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "text.png").write_text("no photo")
    (folder / "dir.png").mkdir()
    (folder / "link.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")


def test_the_runner_says_which_photos_it_can_t_do_and_does_the_others(
    copier: Path, tmp_path: Path
) -> None:
    write_hard_photos(tmp_path / "hard")
    hard = sorted((tmp_path / "hard").iterdir())
    photo = Image.effect_noise((50, 40), 64).convert("RGB")
    for name in ("one/a.png", "two/A.jpg", "two/z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo.save(tmp_path / name)
    first, same, last = (tmp_path / name for name in ("one/a.png", "two/A.jpg", "two/z.png"))
    # The preview of a phone's photo costs nothing.
    phone = tmp_path / "one" / "phone.jpg"
    photo.save(phone, "MPO", save_all=True, append_images=[photo.resize((10, 8))])

    out = tmp_path / "out"
    status, told = restore(copier, first, *hard, same, phone, last, "-o", out)

    assert status == 1
    assert [line.split(": ")[1] for line in told] == [str(path) for path in (*hard, same)]
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "phone.png", "z.png"]
    for name in ("a.png", "z.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(out / name)), np.asarray(photo))


@pytest.mark.parametrize("link", [False, True], ids=["folder", "link"])
def test_the_runner_never_writes_over_a_photo(link: bool, copier: Path, tmp_path: Path) -> None:
    """One that it is given, or that another one's result would replace."""
    photos = [tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.png"]
    for photo in photos:
        photo.parent.mkdir()
        Image.new("RGB", (40, 50)).save(photo)
    out = tmp_path / "two"
    if link:
        (tmp_path / "link").symlink_to("two")
        out = tmp_path / "link"
    before = photos[1].read_bytes()
    for given in (photos, photos[1:]):
        status, told = restore(copier, *given, "-o", out)
        assert status == 2
        assert told[-1].endswith(f"{out} holds photos to restore: choose another folder")
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["a.png"]
    assert photos[1].read_bytes() == before


def test_the_runner_refuses_outputs_that_can_t_be_written(copier: Path, tmp_path: Path) -> None:
    photos = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.effect_noise((100, 100), 64).save(photos[0])
    Image.new("RGB", (40, 50)).save(photos[1])
    status, told = restore(copier, *photos, "-o", photos[0])
    assert (status, told[-1]) == (2, f"restore.py: error: {photos[0]} can't be written: File exists")

    # On a full disk the small photo still goes on, and nothing half-written stays.
    out = tmp_path / "out"
    status, told = restore(copier, *photos, "-o", out, largest=2000)
    assert status == 1
    assert told == [f"restore.py: {photos[0]}: [Errno 27] File too large"]
    assert [path.name for path in out.iterdir()] == ["b.png"]


def test_the_runner_refuses_a_graph_that_is_no_export(copier: Path, tmp_path: Path) -> None:
    model = onnx.load(copier)
    for props in ({}, {"multiple": "x"}, {"multiple": "0"}):
        onnx.helper.set_model_props(model, props)
        onnx.save(model, copier)
        status, told = restore(copier, tmp_path / "a.png", "-o", tmp_path / "out")
        assert status == 2
        assert told[-1].startswith(f"restore.py: error: {copier} can't be loaded: ")
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
