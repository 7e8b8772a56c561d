"""Threads that read photos decode at the same time, and leave Pillow's limit and the warnings as they found them."""

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from diffrestorer.data import images
from diffrestorer.data.images import ImageError, Photo, as_photo, read_photo, write_photo

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
KINDS = ("jpg", "png", "deep.png", "tif", "deep.tif", "webp", "gif", "bmp", "ppm", "jp2")
LIMIT = 100  # pixels; the photos break it as 200 megapixels break Pillow's own
PATIENCE = 60  # seconds until a thread that waits for another one gives up: a failure, never a success


def make(folder: Path, kind: str) -> Path:
    """Write a photo of a kind."""
    path = folder / f"a.{kind}"
    if kind.startswith("deep"):
        write_photo(path, Photo(PIXELS.astype(np.uint16) * 257), kind.removeprefix("deep."))
    else:
        Image.fromarray(PIXELS).save(path)
    return path


def make_warning(folder: Path) -> Path:
    """Write a JPEG of whose picture index (MPO) Pillow warns."""
    path = folder / "warns.jpg"
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    index = b"MPF\x00" + b"II*\x00\x08\x00\x00\x00" + bytes(6)
    path.write_bytes(data[:2] + b"\xff\xe2" + (len(index) + 2).to_bytes(2) + index + data[2:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.warns(UserWarning, match="malformed MPO"):
            Image.open(path).close()
    return path


class StoppedFile(io.BufferedReader):
    """A file that calls a function when its reader, chosen by the first bytes, begins to read it."""

    def __init__(self, path: Path, stop: Callable[[Path], object]) -> None:
        super().__init__(io.FileIO(path))
        self.path = path
        self.stop = stop
        self.reads = 0

    def _count(self) -> None:
        self.reads += 1
        if self.reads == 2:  # the first one is the look at its kind
            self.stop(self.path)

    def read(self, size: int | None = -1) -> bytes:
        self._count()
        return super().read(size)

    def readinto(self, buffer: bytearray) -> int:
        self._count()
        return super().readinto(buffer)


StopIn = Callable[[Callable[[Path], object]], None]


@pytest.fixture
def stop_in(monkeypatch: pytest.MonkeyPatch) -> StopIn:
    """Let every read of a file call a function with its path, from within the reader."""

    def patch(stop: Callable[[Path], object]) -> None:
        monkeypatch.setattr(images, "open_regular", lambda path: StoppedFile(path, stop))

    return patch


@pytest.fixture(autouse=True)
def settings_are_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test reads, and however it fails, afterwards nothing has changed."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)
    filters, entries = warnings.filters, list(warnings.filters)
    yield
    assert Image.MAX_IMAGE_PIXELS == LIMIT
    assert warnings.filters is filters
    assert warnings.filters == entries


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "the other thread never came"


def limit_is_kept() -> None:
    """Pillow refuses what breaks its limit."""
    with pytest.warns(Image.DecompressionBombWarning):
        Image._decompression_bomb_check((LIMIT + 1, 1))


class Held:
    """A read in another thread that stands still in the middle, between `with` and its end."""

    def __init__(self, path: Path, stop_in: StopIn) -> None:
        self.path = path
        self.inside, self.go_on = threading.Event(), threading.Event()
        stop_in(self._stop)
        self.pool = ThreadPoolExecutor(1)

    def _stop(self, path: Path) -> None:
        if path == self.path:
            self.inside.set()
            wait(self.go_on)

    def __enter__(self) -> "Held":
        self.photo = self.pool.submit(read_photo, self.path)
        wait(self.inside)
        return self

    def finish(self) -> Photo:
        self.go_on.set()
        return self.photo.result()

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.pool.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_read_at_the_same_time(tmp_path: Path, kind: str, stop_in: StopIn) -> None:
    path = make(tmp_path, kind)
    expected = read_photo(path).pixels
    both = threading.Barrier(2, timeout=PATIENCE)
    stop_in(lambda _: both.wait())
    with ThreadPoolExecutor(2) as pool:
        photos = list(pool.map(read_photo, [path, path]))
    assert all(np.array_equal(photo.pixels, expected) for photo in photos)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize("opened", [False, True])
def test_two_threads_decode_pixels_at_the_same_time(
    tmp_path: Path, kind: str, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, and images that the caller opened with Pillow."""
    path = make(tmp_path, kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # for the caller's own opening
    sources = [Image.open(path) if opened else path for _ in range(2)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)
    both = threading.Barrier(2, timeout=PATIENCE)
    load = ImageFile.ImageFile.load

    def meet(image: ImageFile.ImageFile) -> object:
        if image.tile:  # the first call, which decodes
            both.wait()
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", meet)
    with ThreadPoolExecutor(2) as pool:
        photos = list(pool.map(as_photo if opened else read_photo, sources))
    assert np.array_equal(photos[0].pixels, photos[1].pixels)


def test_many_threads_read_what_one_does(tmp_path: Path) -> None:
    """Every kind at once, and failures among them: each has the result it has alone."""
    paths = [make(tmp_path, kind) for kind in KINDS] + [make_warning(tmp_path)]
    for path in list(paths):
        cut = tmp_path / f"cut.{path.name}"
        cut.write_bytes(path.read_bytes()[:-80])
        noise = tmp_path / f"noise.{path.name}"
        noise.write_bytes(b"no image " * 9)
        paths += [cut, noise]
    paths.append(tmp_path / "missing.jpg")

    def result(path: Path) -> tuple[str, bytes]:
        try:
            return "", read_photo(path).pixels.tobytes()
        except ImageError as error:
            return str(error), b""

    alone = {path: result(path) for path in paths}
    assert sum(not message for message, _ in alone.values()) == len(KINDS) + 1
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("error")
        for _ in range(5):
            assert dict(zip(paths, pool.map(result, paths), strict=True)) == alone


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_to_leave_restores_the_limit(tmp_path: Path, fails: bool, stop_in: StopIn) -> None:
    """The first one may leave first, with a photo or without: the other one still reads without a limit."""
    slow, quick = make(tmp_path, "jpg"), make(tmp_path, "png")
    limit_is_kept()
    with Held(slow, stop_in) as held:
        if fails:
            quick.write_bytes(quick.read_bytes()[:-80])
            with pytest.raises(ImageError):
                read_photo(quick)
        else:
            read_photo(quick)
        assert Image.MAX_IMAGE_PIXELS is None
        assert held.finish().pixels.shape == PIXELS.shape
        limit_is_kept()


@pytest.mark.parametrize("reads", [False, True])
def test_a_limit_that_is_set_while_a_thread_reads_stays(
    tmp_path: Path, reads: bool, stop_in: StopIn
) -> None:
    """Also if the thread that set it reads a photo itself."""
    slow, quick, other = make(tmp_path, "jpg"), make(tmp_path, "png"), PIXELS.size
    with Held(slow, stop_in) as held:
        Image.MAX_IMAGE_PIXELS = other
        if reads:
            read_photo(quick)
        held.finish()
    assert other == Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = LIMIT


def test_warnings_of_a_reader_are_silent_and_of_others_are_not(tmp_path: Path, stop_in: StopIn) -> None:
    path = make_warning(tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Held(path, stop_in) as held:
            warnings.warn("of the main thread", stacklevel=1)
            held.finish()
        assert [str(warning.message) for warning in seen] == ["of the main thread"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Held(path, stop_in) as held:
            with pytest.raises(UserWarning, match="of the main thread"):
                warnings.warn("of the main thread", stacklevel=1)
            held.finish()


def test_a_reader_is_silent_under_filters_that_are_newer_than_another_reader(
    tmp_path: Path, stop_in: StopIn
) -> None:
    slow, path = make(tmp_path, "png"), make_warning(tmp_path)
    with Held(slow, stop_in) as held:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_photo(path).pixels.shape == PIXELS.shape
        held.finish()


def test_filters_that_begin_before_a_read_and_end_within_it(tmp_path: Path, stop_in: StopIn) -> None:
    """Those of other code's `catch_warnings`: they end, and silence nobody."""
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter("error")
    with Held(make(tmp_path, "png"), stop_in) as held:
        caught.__exit__(None, None, None)
        with pytest.warns(UserWarning, match="is heard"):
            warnings.warn("is heard", stacklevel=1)
        held.finish()


def test_filters_that_begin_within_a_read_and_end_after_it(tmp_path: Path, stop_in: StopIn) -> None:
    """They outlive the read, and what they set aside comes back as it was before the read."""
    before = list(warnings.filters)
    with Held(make(tmp_path, "png"), stop_in) as held:
        caught = warnings.catch_warnings()
        caught.__enter__()
        warnings.simplefilter("error")
        held.finish()
    assert warnings.filters[0][0] == "error"
    assert warnings.filters[1:] == before
    with pytest.raises(UserWarning, match="is raised"):
        warnings.warn("is raised", stacklevel=1)
    caught.__exit__(None, None, None)
    assert warnings.filters == before


def test_reads_within_a_read_count_too(tmp_path: Path) -> None:
    path = make_warning(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with images.quiet_pillow():
            read_photo(path)
            assert Image.MAX_IMAGE_PIXELS is None
            warnings.warn("silent", stacklevel=1)
        with pytest.raises(UserWarning, match="heard"):
            warnings.warn("heard", stacklevel=1)
