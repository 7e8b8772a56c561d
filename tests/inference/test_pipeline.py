"""The pipeline: any size in, the same size out, nothing depends on the batch, and strict model folders."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from soaking import some_now

from diffrestorer.data.tensors import as_tensors
from diffrestorer.inference.model_folder import find_model, save_model_folder
from diffrestorer.inference.pipeline import DiffRestorerOutput, DiffRestorerPipeline, SampledLatents
from diffrestorer.models.blocks import pad_to_multiple
from diffrestorer.models.components import COMPONENTS, WEIGHTS_NAME, ModelFolderError, save_component

if TYPE_CHECKING:
    from diffrestorer.config.schema import ModelConfig
    from diffrestorer.models.restorer import Restorer

STEPS = 2


def pipeline_of(restorer: "Restorer", config: "ModelConfig") -> DiffRestorerPipeline:
    pipeline = DiffRestorerPipeline(
        **restorer.components(), scheduler=UniPCMultistepScheduler(**config.scheduler)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def untrained(tiny_restorer: "Restorer", tiny_config: "ModelConfig") -> DiffRestorerPipeline:
    """Weights of step 0."""
    return pipeline_of(tiny_restorer, tiny_config)


@pytest.fixture(scope="module")
def trained(
    tiny_restorer: "Restorer", tiny_config: "ModelConfig", randomised: Callable
) -> DiffRestorerPipeline:
    """Weights in which every path matters."""
    return pipeline_of(randomised(tiny_restorer), tiny_config)


@pytest.fixture(scope="module")
def folder(
    trained: DiffRestorerPipeline, tiny_config: "ModelConfig", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A sound model folder; damage a copy."""
    folder = tmp_path_factory.mktemp("model")
    save_model_folder(trained.restorer, UniPCMultistepScheduler(**tiny_config.scheduler), folder)
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """As users run it: without the tests' type checks, which would catch a wrong type before the code's own check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def restore(
    pipeline: DiffRestorerPipeline, images: Any, *numbers: int, **options: Any
) -> DiffRestorerOutput:
    options = {"num_inference_steps": STEPS, "output_type": "pt", **options}
    return pipeline(images, generator=seeds(*numbers), **options)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (31, 33), (32, 64), (47, 8)])
def test_sizes_are_kept(size: tuple[int, int], trained: DiffRestorerPipeline) -> None:
    for decoder in ("refined", "sd"):
        (restored,) = restore(trained, image(*size), 0, decoder=decoder).images
        assert restored.shape == (3, *size)
        assert torch.isfinite(restored).all()
        assert ((restored >= 0) & (restored <= 1)).all()


def test_padding_reflects_and_is_not_needed_where_the_size_fits() -> None:
    fits = image(32, 64)[None]
    assert pad_to_multiple(fits, 32) is fits, "a large image is held once"
    padded = pad_to_multiple(image(30, 33)[None], 32)
    assert padded.shape[-2:] == (32, 64)
    assert torch.equal(padded[0, :, :30, :33], image(30, 33))
    assert torch.equal(padded[0, :, 30], padded[0, :, 28]), "reflected, the edge itself once"
    assert torch.equal(padded[0, :, :, 33], padded[0, :, :, 31])
    assert (pad_to_multiple(image(1, 1)[None], 32) == image(1, 1)[None]).all(), (
        "a single pixel is repeated"
    )


def test_the_caller_s_image_is_left_as_it_was(trained: DiffRestorerPipeline) -> None:
    for size in ((32, 32), (20, 28)):
        lq = image(*size)
        restore(trained, lq, 0, output_type="pil")
        assert torch.equal(lq, image(*size))


def test_prompts_see_the_unpadded_image(trained: DiffRestorerPipeline) -> None:
    lq = image(20, 70)[None]
    prompts = trained.sample(lq, STEPS, seeds(0)).condition.prompts
    assert torch.equal(prompts.clip_embedding, trained.image_encoder(lq))


def test_batching_changes_nothing_where_each_image_has_its_generator(
    trained: DiffRestorerPipeline,
) -> None:
    images = [image(33, 40, 0), image(16, 16, 1), image(33, 40, 2), image(33, 40, 0)]
    together = restore(trained, images, 10, 11, 12, 13)
    for i, single in enumerate(images):
        alone = restore(trained, single, 10 + i)
        assert (alone.images[0] - together.images[i]).abs().max() <= 1e-4
        torch.testing.assert_close(
            alone.degradation_probabilities[0],
            together.degradation_probabilities[i],
            atol=1e-5,
            rtol=1e-4,
        )
    assert (together.images[0] - together.images[3]).abs().max() > 1e-3, (
        "another generator, another sample"
    )


def test_restoring_is_deterministic(trained: DiffRestorerPipeline) -> None:
    lq = image(24, 24)
    first, again, other = (restore(trained, lq, seed).images[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    shared = [
        trained([lq, lq], STEPS, torch.Generator().manual_seed(5), output_type="pt").images
        for _ in range(2)
    ]
    assert torch.equal(torch.stack(shared[0]), torch.stack(shared[1]))


def test_every_kind_of_image_is_read_alike(trained: DiffRestorerPipeline) -> None:
    array = (image(20, 28).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    unit = array.astype(np.float32) / 255
    kinds = [
        Image.fromarray(array),
        array,
        array.astype(np.uint16) * 257,
        unit,
        torch.tensor(unit).permute(2, 0, 1),
    ]
    expected = restore(trained, kinds[0], 0).images[0]
    for kind in [*kinds, kinds[-1][None], [kinds[0]], unit.astype(np.float64)]:
        torch.testing.assert_close(restore(trained, kind, 0).images[0], expected, atol=1e-5, rtol=0)
    grey = Image.fromarray(array[..., 0])
    assert restore(trained, grey, 0).images[0].shape == (3, 20, 28)


def test_output_types(trained: DiffRestorerPipeline) -> None:
    lq = [image(20, 28), image(9, 8)]
    tensors = restore(trained, lq, 0, 1).images
    arrays = restore(trained, lq, 0, 1, output_type="np").images
    pictures = trained(lq, STEPS, seeds(0, 1)).images
    for tensor, array, picture in zip(tensors, arrays, pictures, strict=True):
        expected = tensor.permute(1, 2, 0).numpy()
        assert isinstance(picture, Image.Image), "PIL by default"
        assert isinstance(array, np.ndarray)
        assert (array == expected).all()
        assert picture.size == expected.shape[1::-1]
        assert np.abs(np.asarray(picture) / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_detection_sums_to_1_and_is_what_restoring_reports(trained: DiffRestorerPipeline) -> None:
    images = [image(20, 28), image(9, 8, 1), image(20, 28, 2)]
    probabilities = trained.detect(images)
    assert probabilities.shape == (3, 8)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    assert (probabilities >= 0).all()
    reported = restore(trained, images, 0, 1, 2).degradation_probabilities
    torch.testing.assert_close(reported, probabilities, atol=1e-5, rtol=1e-4)
    logits = trained.restorer.read_prompts(images[1][None]).degradation_logits
    torch.testing.assert_close(probabilities[1:2], logits.softmax(1))


def test_one_sampling_serves_both_decoders(trained: DiffRestorerPipeline) -> None:
    lq = image(20, 28)[None]
    sampled = trained.sample(lq, STEPS, seeds(0))
    for decoder in ("refined", "sd"):
        assert torch.equal(
            trained.decode(sampled, decoder), restore(trained, lq, 0, decoder=decoder).images[0][None]
        )
    assert not torch.allclose(
        trained.decode(sampled, "sd"), trained.decode(sampled, "refined"), atol=1e-3
    )
    half = trained.decode(sampled, "refined", fidelity=0.5)
    assert not torch.allclose(half, trained.decode(sampled, "refined"), atol=1e-4)
    assert torch.equal(half, restore(trained, lq, 0, fidelity=0.5).images[0][None])


def test_both_decoders_agree_at_step_0(untrained: DiffRestorerPipeline) -> None:
    sampled = untrained.sample(torch.stack([image(20, 28), image(20, 28, 1)]), STEPS, seeds(0, 1))
    assert torch.equal(untrained.decode(sampled, "sd"), untrained.decode(sampled, "refined"))


def test_each_step_is_the_scheduler_s(
    trained: DiffRestorerPipeline, tiny_config: "ModelConfig"
) -> None:
    """Sampling by hand: the same noise, UniPC's steps around the controlled UNet."""
    lq = image(32, 32)[None]
    sampled = trained.sample(lq, 3, seeds(4))
    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    scheduler.set_timesteps(3)
    latents = torch.randn(4, 4, 4, generator=seeds(4)[0])[None]
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            latents = scheduler.step(
                trained.restorer.denoise(latents, timestep, sampled.condition), timestep, latents
            ).prev_sample
    torch.testing.assert_close(sampled.latents, latents, atol=1e-5, rtol=1e-5)


def test_fidelity_0_is_the_sd_decoder(trained: DiffRestorerPipeline) -> None:
    lq = image(20, 28)
    assert torch.equal(
        restore(trained, lq, 0, fidelity=0.0).images[0], restore(trained, lq, 0, decoder="sd").images[0]
    )


def test_a_given_degradation_replaces_the_detected_one(
    trained: DiffRestorerPipeline, tmp_path: Path
) -> None:
    """Prototypes that are the image's own P_D change nothing, others do; a folder keeps them."""
    lq = image(20, 28)
    with pytest.raises(ValueError, match="this model holds no prototype of haze"):
        restore(trained, lq, 0, degradation="haze")
    pipeline = copy.deepcopy(trained)
    other = torch.rand(1, 12, generator=torch.Generator().manual_seed(0))
    embeddings = torch.cat([trained.image_encoder(lq[None]), other, -other]).detach()
    with torch.no_grad():
        pipeline.prompt_processor.record_prototypes(embeddings, torch.tensor([0, 2, 2]))
    pipeline.save_pretrained(tmp_path)
    loaded = DiffRestorerPipeline.from_pretrained(tmp_path)
    detected = restore(trained, lq, 0)
    same, hazy = (restore(loaded, lq, 0, degradation=name) for name in ("noise", "haze"))
    torch.testing.assert_close(same.images[0], detected.images[0], atol=1e-4, rtol=0)
    assert (hazy.images[0] - detected.images[0]).abs().max() > 1e-3
    torch.testing.assert_close(hazy.degradation_probabilities, detected.degradation_probabilities)
    with pytest.raises(ValueError, match="this model holds no prototype of snow"):
        restore(loaded, lq, 0, degradation="snow")
    with pytest.raises(ValueError, match=r"degradation must be one of noise, .*, not 'fog'"):
        restore(loaded, lq, 0, degradation="fog")


def test_a_photo_without_a_clear_degradation_is_restored_as_a_clean_one() -> None:
    """Each photo by itself, whatever else is in its batch; a degradation that the caller names is clear."""
    mini = DiffRestorerPipeline.from_pretrained("mini")
    photos = [image(64, 64, seed) for seed in (0, 1)]
    assert "clean" in mini.classes
    probable = mini.detect(photos)[:, : mini.classes.index("clean")].amax(dim=1)
    least, most = probable.argmin(), probable.argmax()
    threshold = float(probable.mean())

    def restored(threshold: float, degradation: str | None = None) -> list[torch.Tensor]:
        found = mini(photos, output_type="pt", threshold=threshold, degradation=degradation)
        return list(found.images)

    read, clean, mixed = restored(0.0), restored(0.0, "clean"), restored(threshold)
    torch.testing.assert_close(mixed[least], clean[least], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[most], read[most], atol=1e-5, rtol=0)
    assert (read[least] - clean[least]).abs().max() > 1e-3
    torch.testing.assert_close(restored(1.0, "haze"), restored(0.0, "haze"), atol=0, rtol=0)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="threshold must be from 0 to 1"):
            restored(wrong)


def test_every_step_is_reported(trained: DiffRestorerPipeline) -> None:
    reported: list[int] = []
    restore(trained, [image(20, 28), image(8, 8), image(20, 28, 1)], 0, 1, 2, on_step=reported.append)
    assert sorted(reported) == [1] * STEPS + [2] * STEPS


def bad_images() -> dict[str, Any]:
    return {
        "grey array": np.zeros((8, 8), np.uint8),
        "four channels": np.zeros((8, 8, 4), np.uint8),
        "channels first": np.zeros((3, 8, 8), np.uint8),
        "array of images": np.zeros((2, 8, 8, 3), np.uint8),
        "wide integers": np.zeros((8, 8, 3), np.int64),
        "booleans": np.zeros((8, 8, 3), bool),
        "beyond 1": np.full((8, 8, 3), 255.0, np.float32),
        "below 0": torch.full((3, 8, 8), -1.0),
        "not a number": np.full((8, 8, 3), np.nan, np.float32),
        "no pixels": np.zeros((0, 8, 3), np.uint8),
        "byte tensor": torch.zeros(3, 8, 8, dtype=torch.uint8),
        "grey tensor": torch.zeros(1, 8, 8),
        "channels last tensor": torch.zeros(8, 8, 3),
        "bad one among good": [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)],
    }


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", bad_images())
def test_bad_images_are_refused(kind: str, trained: DiffRestorerPipeline) -> None:
    for call in (lambda images: trained(images, STEPS), trained.detect):
        with pytest.raises(ValueError, match="image"):
            call(bad_images()[kind])


@pytest.mark.usefixtures("unchecked")
def test_bad_options_are_refused_before_sampling(
    trained: DiffRestorerPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*arguments: object) -> SampledLatents:
        pytest.fail("it sampled first")

    monkeypatch.setattr(trained, "sample", sample)
    lq = image(8, 8)
    with pytest.raises(ValueError, match="1 generators were given for 2 images"):
        trained([lq, lq], STEPS, seeds(0))
    with pytest.raises(ValueError, match="decoder must be 'refined' or 'sd', not 'vae'"):
        trained(lq, STEPS, decoder="vae")
    with pytest.raises(ValueError, match=r"fidelity must be from 0 to 1, not 1\.5"):
        trained(lq, STEPS, fidelity=1.5)
    with pytest.raises(
        ValueError, match="output_type must be 'pil', 'np', 'pt' or 'latent', not 'jpg'"
    ):
        trained(lq, STEPS, output_type="jpg")


def same_weights(first: DiffRestorerPipeline, second: DiffRestorerPipeline) -> bool:
    one, two = first.restorer.state_dict(), second.restorer.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_a_saved_folder_comes_back_equal(
    trained: DiffRestorerPipeline, folder: Path, tmp_path: Path
) -> None:
    loaded = DiffRestorerPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert same_weights(loaded, trained)
    assert not any(getattr(loaded, name).training for name in COMPONENTS)
    lq = image(20, 28)
    # Equal weights at other addresses: aligned otherwise, their sums may round otherwise.
    torch.testing.assert_close(
        restore(loaded, lq, 3).images[0], restore(trained, lq, 3).images[0], atol=1e-4, rtol=0
    )
    loaded.save_pretrained(tmp_path / "again")
    again = DiffRestorerPipeline.from_pretrained(tmp_path / "again")
    assert same_weights(again, trained)
    assert (
        again.scheduler.config.prediction_type == trained.scheduler.config.prediction_type == "sample"
    )


def test_a_folder_names_no_machine_and_its_parts(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler",
        *COMPONENTS,
    }
    for path in folder.rglob("*.json"):
        assert str(folder.parent) not in path.read_text()
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "scheduler_config.json",
        "config.json",
        WEIGHTS_NAME,
    }


def test_a_folder_gets_a_card_and_keeps_its_own(
    trained: DiffRestorerPipeline, folder: Path, tmp_path: Path
) -> None:
    card = (folder / "README.md").read_text()
    for line in (
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "| `unet` | UNet2DConditionModel |",
    ):
        assert line in card
    (tmp_path / "README.md").write_text("mine")
    trained.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_pickled_weights_are_refused(
    trained: DiffRestorerPipeline, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / WEIGHTS_NAME).unlink()
    torch.save(trained.unet.state_dict(), tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=rf"unet/{WEIGHTS_NAME} is missing"):
        DiffRestorerPipeline.from_pretrained(tmp_path / "model")


def test_loading_shows_no_bar(folder: Path, capfd: pytest.CaptureFixture) -> None:
    DiffRestorerPipeline.from_pretrained(folder)
    assert "Loading" not in capfd.readouterr().err


def test_the_index_is_the_one_diffusers_writes(
    trained: DiffRestorerPipeline, folder: Path, tmp_path: Path
) -> None:
    trained.save_config(tmp_path)
    written, expected = (
        json.loads((place / "model_index.json").read_text()) for place in (folder, tmp_path)
    )
    assert written == expected


def test_fp16_folders_load_in_float32(
    trained: DiffRestorerPipeline, tiny_config: "ModelConfig", tmp_path: Path
) -> None:
    scheduler = UniPCMultistepScheduler(**tiny_config.scheduler)
    save_model_folder(trained.restorer, scheduler, tmp_path / "half", torch.float16)
    assert trained.unet.dtype == torch.float32
    loaded = DiffRestorerPipeline.from_pretrained(tmp_path / "half").restorer.state_dict()
    for name, expected in trained.restorer.state_dict().items():
        value = loaded[name]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.half().float() if expected.is_floating_point() else expected)


def test_models_are_found(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model", copy_function=shutil.copy)
    assert find_model(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_model(str(folder)) == folder
    assert find_model("mini").name == "mini"
    with pytest.raises(ModelFolderError, match=r"no model at .*nothing-here.*it is no folder"):
        find_model(tmp_path / "nothing-here")


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), r"model_index\.json is missing"),
    "index of something else": (
        lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}'),
        r"model_index\.json is not Diff-Restorer's: it lacks vae",
    ),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler_config\.json is missing"),
    **{
        f"no {name}": (lambda f, name=name: shutil.rmtree(f / name), f"{name}.* is missing")
        for name in COMPONENTS
    },
    **{
        f"{name} cut off": (
            lambda f, name=name: _cut(f / name / WEIGHTS_NAME),
            rf"{name}/{WEIGHTS_NAME} is damaged or truncated",
        )
        for name in COMPONENTS
    },
    "weights of another": (
        lambda f: shutil.copy(f / "vae" / WEIGHTS_NAME, f / "unet" / WEIGHTS_NAME),
        rf"unet/{WEIGHTS_NAME} does not fit its config\.json",
    ),
    "unknown key": (
        lambda f: _edit(f / "decoder" / "config.json", refined=True),
        r"decoder/config\.json.*refined",
    ),
    "other width": (
        lambda f: _edit(f / "unet" / "config.json", cross_attention_dim=8),
        rf"unet/{WEIGHTS_NAME} does not",
    ),
}


@pytest.mark.parametrize("damage", some_now(DAMAGE, 6))
def test_damaged_folders_are_refused(damage: str, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(folder, copied)
    do, message = DAMAGE[damage]
    do(copied)
    with pytest.raises(ModelFolderError, match=message) as caught:
        DiffRestorerPipeline.from_pretrained(copied)
    assert str(copied) in str(caught.value)


def test_networks_of_two_models_are_refused(
    folder: Path, tiny_restorer: "Restorer", tiny_config: "ModelConfig", tmp_path: Path
) -> None:
    """Each file is sound, and they do not fit one another."""
    from diffrestorer.models.prompt_processor import PromptProcessor

    shutil.copytree(folder, tmp_path / "model")
    wider = replace(
        tiny_config, prompt_processor={**tiny_config.prompt_processor, "degradation_dim": 7}
    )
    other = PromptProcessor(**wider.prompt_processor)
    save_component(other, tmp_path / "model" / "prompt_processor", torch.float32)
    with pytest.raises(
        ModelFolderError,
        match=r"degradation_dim \(7\) must equal control_encoder\.degradation_dim \(6\)",
    ):
        DiffRestorerPipeline.from_pretrained(tmp_path / "model")


def _spoil(path: Path) -> None:
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def test_weights_that_are_no_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    _spoil(tmp_path / "model" / "unet" / WEIGHTS_NAME)
    with pytest.raises(ModelFolderError, match=r"model/unet: .* holds numbers that are not finite"):
        DiffRestorerPipeline.from_pretrained(tmp_path / "model")


def test_half_precision_weights_are_used_as_asked(folder: Path) -> None:
    loaded = DiffRestorerPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.unet.dtype == torch.bfloat16
    (restored,) = restore(loaded, image(16, 16), 0).images
    assert restored.dtype == torch.float32
    assert restored.shape == (3, 16, 16)


@pytest.mark.parametrize("given", ["a.jpg", Path("a.jpg"), "https://host/a.jpg", ["a.jpg"]])
def test_paths_and_addresses_are_answered_by_a_sentence(given: Any) -> None:
    with pytest.raises(
        ValueError, match=r"a\.jpg' is a path or an address, not an image: open it with"
    ) as caught:
        as_tensors(given)
    assert "\n" not in str(caught.value)
    for other in (None, 3, {"image": 1}):
        with pytest.raises(
            ValueError, match=f"an image must be PIL, an array or a tensor, not {type(other).__name__}"
        ):
            as_tensors(other)
