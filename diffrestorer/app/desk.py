"""The work behind the page: visitors' photos are looked at, restored and packed, as by the command line."""

import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from diffrestorer.app.cleanup import renew, sweep
from diffrestorer.app.visitors import Visitors
from diffrestorer.config.degradations import CLEAN
from diffrestorer.data.images import Photo, write_photo
from diffrestorer.data.storage import fit_name
from diffrestorer.inference.photos import Options, check_options, detect, read, reason, restore

LARGEST_PHOTO = 25_000_000
"""Pixels, width x height."""

MOST_PHOTOS = 16
"""Photos that a visitor may drop at a time."""

DETECTED = "what the model detects"
"""The choice of a degradation that leaves it to the model."""

_SHOWN_SIDE = 1600  # pixels; larger photos are shown reduced, and downloaded as they are
# Chelsea by Stefan van der Walt (CC0), darkened by data/synthesis.py.
_SAMPLE = Path(__file__).with_name("sample.jpg")

Pair = tuple[Image.Image, Image.Image]
Results = dict[str, str]
"""The restored file of each photo, by the path of its upload."""


class VisitorLeftError(Exception):
    """Nobody waits for the job any more."""


@dataclass(frozen=True)
class Desk:
    """The place where visitors' photos are handled.

    Attributes:
        pipe: a DiffRestorerPipeline.
        folder: where results are written.
        visitors: who still waits for jobs.
    """

    pipe: Any
    folder: Path
    visitors: Visitors

    def known(self) -> list[str]:
        """Return the degradations that the model can be told to remove."""
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

    def sample(self) -> list[str]:
        """Return a photo to try the page with."""
        return [str(shutil.copy(_SAMPLE, self._new_folder()))]

    def look(self, paths: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
        """Show new photos: the first on both sides of the slider, with what is wrong with it."""
        nothing = gr.DownloadButton(value=None, interactive=False)
        if not paths:
            return gr.Dropdown(visible=False), None, None, nothing, gr.Button(interactive=False), {}
        with _told():
            self._stay_with(request)
            if len(paths) > MOST_PHOTOS:
                raise ValueError(
                    f"{len(paths)} photos are too many: drop up to {MOST_PHOTOS} at a time"
                )
            found, pair = self._show(paths[0], {})
        return _choice(paths, paths[0]), found, pair, nothing, gr.Button(interactive=True), {}

    def show(
        self, paths: list[str] | None, path: str, results: Results, request: gr.Request
    ) -> tuple[Any, Any]:
        """Show one of several photos beside its result, if it has been restored."""
        if not paths or path not in paths:
            return None, None
        with _told():
            self._stay_with(request)
            return self._show(path, results)

    def restore(
        self,
        paths: list[str] | None,
        steps: int,
        seed: int,
        decoder: Literal["refined", "sd"],
        fidelity: float,
        degradation: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it by its default)
    ) -> Iterator[tuple[Any, ...]]:
        """Restore the photos one after the other; yield each one beside its result, then the file to download.

        A photo that cannot be restored is named, and the others go on.
        """
        if not paths:
            raise gr.Error("Drop a photo first.", print_exception=False)
        with _told():
            if len(paths) > MOST_PHOTOS:
                raise ValueError(
                    f"{len(paths)} photos are too many: drop up to {MOST_PHOTOS} at a time"
                )
            given = None if degradation == DETECTED else degradation
            options = Options(int(steps), int(seed), decoder, float(fidelity), given)
            options = check_options(self.pipe, options)

        # One photo at a time. Its visitor may leave at any step.
        results: Results = {}
        for number, path in enumerate(paths):
            steps = options.steps or 1
            files = [*paths, *results.values()]
            on_step = self._steps(request, progress, steps * len(paths), number * steps, files)
            try:
                with _told():
                    results[path] = self._restore(path, options, on_step)
            except gr.Error as error:
                if len(paths) == 1 or self.visitors.has_left(request.session_hash):
                    raise
                gr.Warning(f"{Path(path).name}: {error.message}")
                continue
            waiting = gr.DownloadButton(interactive=False)
            yield (_choice(paths, path), *self._show(path, results), waiting, results, "")
        if not results:
            raise gr.Error("None of the photos could be restored.", print_exception=False)
        with _told():
            renew([*paths, *results.values()])
            packed = self._pack(list(results.values()))
        label = "Download as PNG" if len(results) == 1 else f"Download {len(results)} photos as ZIP"
        ready = gr.DownloadButton(label, value=packed, interactive=True)
        yield gr.skip(), gr.skip(), gr.skip(), ready, results, ""

    def _stay_with(self, request: gr.Request) -> None:
        """Drop the job if its visitor has left.

        Raises:
            VisitorLeftError: nobody waits for it.
        """
        if self.visitors.has_left(request.session_hash):
            raise VisitorLeftError

    def _steps(
        self,
        request: gr.Request,
        progress: gr.Progress,
        total: int,
        done: int,
        files: Sequence[str],
    ) -> Callable[[int], None]:
        """Return a function that shows each step, keeps the job's files, and drops the job when its visitor has left.

        Args:
            request: of the job.
            progress: to show it by.
            total: steps of all the photos of the job.
            done: steps of those before this one.
            files: the photos of the job and the results so far, which no sweep may remove before it ends.
        """

        def on_step(images: int) -> None:
            """Show a step, unless the visitor has left."""
            nonlocal done
            self._stay_with(request)
            renew(files)
            done += images
            progress((done, total), desc="Restoring", unit="steps")

        on_step(0)
        return on_step

    def _restore(self, path: str, options: Options, on_step: Callable[[int], None]) -> str:
        """Restore a photo; return the path of its result."""
        (restored,) = restore(self.pipe, [read(path, LARGEST_PHOTO)], options, on_step)
        output = self._new_folder() / fit_name(Path(path).stem, "_restored.png")
        write_photo(output, restored.photo)
        return str(output)

    def _show(self, path: str, results: Results) -> tuple[dict[str, float], Pair]:
        """Return what is wrong with a photo, and the two sides of the slider."""
        photo = read(path, LARGEST_PHOTO)
        before = _shown(photo)
        after = _shown(read(results[path])) if path in results else before
        found = {name.replace("_", " "): p for name, p in detect(self.pipe, photo).items()}
        return found, (before, after)

    def _pack(self, files: Sequence[str]) -> str:
        """Return the one file, or a ZIP of several, in which equal names are numbered."""
        if len(files) == 1:
            return files[0]
        folder = self._new_folder()
        with zipfile.ZipFile(
            folder / "restored.zip", "w", zipfile.ZIP_STORED
        ) as archive:  # PNG is compressed already
            for file, name in zip(files, differing_names(files), strict=True):
                archive.write(file, name)
        return str(folder / "restored.zip")

    def _new_folder(self) -> Path:
        """Return a new folder for a file, after removing what other jobs left too long ago."""
        sweep(self.folder)
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir()
        return folder


def differing_names(files: Sequence[str]) -> list[str]:
    """Return the files' names; one that is taken already gets its file's number in front."""
    names: list[str] = []
    for number, file in enumerate(files, 1):
        name = Path(file).name
        while name in names:
            name = f"{number}_{name}"
        names.append(name)
    return names


def _choice(paths: Sequence[str], path: str) -> gr.Dropdown:
    """Return the list to choose a photo from, hidden if there is one only."""
    choices = [(f"{number}. {Path(each).name}", each) for number, each in enumerate(paths, 1)]
    return gr.Dropdown(choices, value=path, visible=len(paths) > 1)


@contextmanager
def _told() -> Iterator[None]:
    """Turn any failure into one sentence on the page."""
    try:
        yield
    except VisitorLeftError as error:
        raise gr.Error("The page was closed.", print_exception=False) from error
    except Exception as error:  # a bad file, the disk, or a network that fails in one of many ways
        line = reason(error)
        raise gr.Error(
            line[:1].upper() + line[1:] + ".", duration=None, print_exception=False
        ) from error


def _shown(photo: Photo) -> Image.Image:
    """Return the photo as 8-bit RGB, reduced to what a screen shows."""
    pixels = photo.pixels if photo.pixels.dtype.itemsize == 1 else (photo.pixels // 257).astype("uint8")
    image = Image.fromarray(pixels)
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return image
