"""What is on the page, and what happens when: drop a photo, see what is wrong, restore, compare, download."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from diffrestorer.config.degradations import CLEAN
from diffrestorer.data.images import IMAGE_SUFFIXES, Photo, write_photo
from diffrestorer.inference.photos import Options, check_options, detect, read, reason, restore

LARGEST_PHOTO = 25_000_000  # pixels, width x height
KEEP_SECONDS = 3600  # what visitors have uploaded and received
SHOWN_SIDE = 1600  # pixels; larger photos are shown reduced, and downloaded as they are
DETECTED = "what the model detects"

Pair = tuple[Image.Image, Image.Image]


def build_page(pipe: Any, folder: Path) -> gr.Blocks:
    """The page, of a DiffRestorerPipeline that works for one visitor at a time; results are written below `folder`."""
    desk = _Desk(pipe, folder)
    with gr.Blocks(title="DiffRestorer", analytics_enabled=False, delete_cache=(300, KEEP_SECONDS)) as page:
        gr.Markdown(_about(pipe.classes))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                suffixes = sorted(IMAGE_SUFFIXES)
                photo = gr.File(label="Photo", file_types=suffixes, height=130, elem_id="photo")
                found = gr.Label(label="What is wrong with it", show_heading=False, elem_id="degradations")
                controls = _controls(desk.known(), desk.pipe.default_steps)
                button = gr.Button("Restore", variant="primary", interactive=False, elem_id="restore")
            with gr.Column(scale=3, min_width=420):
                slider = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, max_height=720, elem_id="compare",
                    buttons=["fullscreen"],
                )  # fmt: skip
                download = gr.DownloadButton("Download as PNG", interactive=False, elem_id="download")
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        shown = [found, slider, download, button]
        gr.on([photo.upload, photo.clear], desk.look, photo, shown, trigger_mode="multiple", **alone)
        button.click(desk.restore, [photo, *controls], [slider, download], show_progress_on=slider, **alone)
    return page


def _about(classes: Sequence[str]) -> str:
    *others, last = (name.replace("_", " ") for name in classes if name != CLEAN)
    named = f"{', '.join(others)} or {last}, or several of these," if others else f"{last},"
    return f"# DiffRestorer\nRestores photos degraded by {named}\nwithout being told which.\n"


def _controls(known: list[str], steps_by_default: int) -> list[gr.components.Component]:
    """Return the options of a restoration, in the order that `_Desk.restore` takes them.

    Args:
        known: degradations that the model can be given.
        steps_by_default: of the model; a student has one step and nothing to choose.
    """
    with gr.Accordion("Options", open=False, elem_id="options"):
        decoder = gr.Radio(
            [("refined: detail of the degraded photo", "refined"), ("sd: the VAE's own", "sd")],
            value="refined", label="Decoder", elem_id="decoder",
        )  # fmt: skip
        fidelity = gr.Slider(0, 1, 1, step=0.05, label="Fidelity of the refined decoder", elem_id="fidelity")
        several = steps_by_default > 1
        steps = gr.Slider(
            1, 50, steps_by_default, step=1, label="Steps: fewer are faster", visible=several, elem_id="steps"
        )
        degradation = gr.Dropdown(
            [DETECTED, *known], value=DETECTED, label="Remove", interactive=bool(known), elem_id="degradation",
            info=None if known else "This model's weights hold no class prototypes: it decides itself.",
        )  # fmt: skip
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, visible=several, elem_id="seed")
    return [steps, seed, decoder, fidelity, degradation]


@dataclass(frozen=True)
class _Desk:
    """Where visitors' photos are handled, as by the command line: `pipe` restores, results go below `folder`."""

    pipe: Any
    folder: Path

    def known(self) -> list[str]:
        """Degradations that the model can be told to remove."""
        known = []
        for name in self.pipe.classes:
            if name == CLEAN:
                continue
            try:
                check_options(self.pipe, Options(degradation=name))
            except ValueError:
                continue
            known.append(name)
        return known

    def look(self, path: str | None) -> tuple[Any, ...]:
        """What is wrong with a new photo, itself on both sides of the slider, and the buttons."""
        if path is None:
            return None, None, gr.DownloadButton(value=None, interactive=False), gr.Button(interactive=False)
        with _told():
            photo = read(path, LARGEST_PHOTO)
            shown = _shown(photo)
            found = {name.replace("_", " "): p for name, p in detect(self.pipe, photo).items()}
        return found, (shown, shown), gr.DownloadButton(value=None, interactive=False), gr.Button(interactive=True)

    def restore(
        self,
        path: str | None,
        steps: int,
        seed: int,
        decoder: Literal["refined", "sd"],
        fidelity: float,
        degradation: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it by its default)
    ) -> tuple[Pair, gr.DownloadButton]:
        """The photo beside what it was, and the file to download."""
        if path is None:
            raise gr.Error("Drop a photo first.", print_exception=False)
        with _told():
            given = None if degradation == DETECTED else degradation
            options = Options(int(steps), int(seed), decoder, float(fidelity), given)
            options = check_options(self.pipe, options)
            photo, done = read(path, LARGEST_PHOTO), 0

            def on_step(images: int) -> None:
                nonlocal done
                done += images
                progress((done, options.steps), desc="Restoring", unit="steps")

            on_step(0)
            (restored,) = restore(self.pipe, [photo], options, on_step)
            output = self.folder / secrets.token_hex(16) / f"{Path(path).stem}_restored.png"
            output.parent.mkdir()
            write_photo(output, restored.photo)
            return (_shown(photo), _shown(restored.photo)), gr.DownloadButton(value=output, interactive=True)


@contextmanager
def _told() -> Iterator[None]:
    """Any failure becomes one sentence on the page."""
    try:
        yield
    except Exception as error:  # a bad file, the disk, or a network that fails in one of many ways
        line = reason(error)
        raise gr.Error(line[:1].upper() + line[1:] + ".", duration=None, print_exception=False) from error


def _shown(photo: Photo) -> Image.Image:
    """The photo as 8-bit RGB, reduced to what a screen shows."""
    pixels = photo.pixels if photo.pixels.dtype.itemsize == 1 else (photo.pixels // 257).astype("uint8")
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return image
