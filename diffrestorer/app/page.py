"""The page: drop photos, see what is wrong with them, restore, compare, download."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from diffrestorer.app.cleanup import KEEP_SECONDS
from diffrestorer.app.desk import DETECTED, LARGEST_PHOTO, MOST_PHOTOS, Desk
from diffrestorer.app.guard import LARGEST_REQUEST
from diffrestorer.app.visitors import Visitors
from diffrestorer.config.degradations import CLEAN
from diffrestorer.data.images import IMAGE_SUFFIXES

LARGEST_UPLOAD = 64 * 2**20
"""Bytes of one photo's file."""

_MINUTE = 60  # seconds

_CACHE = (_MINUTE, KEEP_SECONDS - _MINUTE)
"""How often Gradio removes the files that its components have seen, and at what age, in seconds. It comes a minute
before `sweep`, which removes all others: a file that is gone already would stay on its list for ever."""

_NAME_FOR_READERS = """() => {
    const mend = () => {
        document.querySelectorAll("div.empty[aria-label]:not([role])").forEach(box => box.setAttribute("role", "img"));
        document.querySelectorAll("button.upload-container[aria-label]").forEach(drop => {
            if (drop.innerText.trim()) drop.removeAttribute("aria-label");
        });
    };
    new MutationObserver(mend).observe(document.body, {childList: true, subtree: true});
    mend();
}"""
"""What Gradio 6.31 leaves out for screen readers: its empty boxes have a name but no role, and its drop zone's name is
not the text that is seen on it."""


def build_page(pipe: Any, folder: Path, visitors: Visitors) -> gr.Blocks:
    """Build the page.

    Args:
        pipe: a DiffRestorerPipeline, which works for one visitor at a time.
        folder: where results are written.
        visitors: who still waits for jobs.
    """
    desk = Desk(pipe, folder, visitors)
    with gr.Blocks(title="DiffRestorer", analytics_enabled=False, delete_cache=_CACHE) as page:
        gr.Markdown(_about(pipe.classes))
        results = gr.State({})
        with gr.Row():
            # What goes in.
            with gr.Column(scale=2, min_width=320):
                photos = gr.File(
                    label="Photos",
                    file_count="multiple",
                    file_types=sorted(IMAGE_SUFFIXES),
                    height=130,
                    elem_id="photo",
                )
                gr.Markdown(_limits(), elem_id="limits")
                sample = gr.Button("Try a sample photo", size="sm", elem_id="sample")
                found = gr.Label(
                    label="What is wrong with it", show_heading=False, elem_id="degradations"
                )
                controls = _controls(desk.known(), pipe.default_steps)
                button = gr.Button("Restore", variant="primary", interactive=False, elem_id="restore")

            # What comes out. The progress has a place of its own, so that the photo stays in view.
            with gr.Column(scale=3, min_width=420):
                shown = gr.Dropdown([], label="Photo", visible=False, elem_id="shown")
                slider = gr.ImageSlider(
                    label="Before and after", format="png", interactive=False, max_height=660, elem_id="compare",
                    buttons=["fullscreen"],
                )  # fmt: skip
                status = gr.HTML("", min_height=70, elem_id="status")
                download = gr.DownloadButton("Download as PNG", interactive=False, elem_id="download")

        # What happens: one job at a time, since the model works on one.
        alone: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        looking: dict[str, Any] = {
            "fn": desk.look, "inputs": photos, "outputs": [shown, found, slider, download, button, results], **alone,
        }  # fmt: skip
        gr.on([photos.upload, photos.clear], **looking, trigger_mode="multiple")
        button.click(
            desk.restore, [photos, *controls], [shown, found, slider, download, results, status],
            show_progress_on=status, **alone,
        )  # fmt: skip
        shown.input(desk.show, [photos, shown, results], [found, slider], **alone)
        sample.click(desk.sample, None, photos, **alone).then(**looking)
        page.load(js=_NAME_FOR_READERS)
    return page


def _about(classes: Sequence[str]) -> str:
    """Return the heading and what the model restores."""
    *others, last = (name.replace("_", " ") for name in classes if name != CLEAN)
    named = f"{', '.join(others)} or {last}, or several of these," if others else f"{last},"
    return f"# DiffRestorer\nRestores photos degraded by {named}\nwithout being told which.\n"


def _limits() -> str:
    """Return the limits of what visitors may drop."""
    return (
        f"Up to {MOST_PHOTOS} photos at a time, each of up to {LARGEST_UPLOAD >> 20} MiB and {LARGEST_PHOTO // 10**6} "
        f"megapixels, {LARGEST_REQUEST >> 20} MiB together. They are kept for an hour."
    )


def _controls(known: list[str], steps_by_default: int) -> list[gr.components.Component]:
    """Return the options of a restoration, in the order that `Desk.restore` takes them.

    Args:
        known: degradations that the model can be given.
        steps_by_default: of the model; a student has one step and nothing to choose.
    """
    several = steps_by_default > 1
    with gr.Accordion("Options", open=False, elem_id="options"):
        decoder = gr.Radio(
            [("refined: detail of the degraded photo", "refined"), ("sd: the VAE's own", "sd")],
            value="refined", label="Decoder", elem_id="decoder",
        )  # fmt: skip
        fidelity = gr.Slider(
            0, 1, 1, step=0.05, label="Fidelity of the refined decoder", elem_id="fidelity"
        )
        steps = gr.Slider(
            1,
            50,
            steps_by_default,
            step=1,
            label="Steps: fewer are faster",
            visible=several,
            elem_id="steps",
        )
        degradation = gr.Dropdown(
            [DETECTED, *known], value=DETECTED, label="Remove", interactive=bool(known), elem_id="degradation",
            info=None if known else "This model's weights hold no class prototypes: it decides itself.",
        )  # fmt: skip
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, visible=several, elem_id="seed"
        )
    return [steps, seed, decoder, fidelity, degradation]
