"""Decoded photos kept in memory: bounded by bytes whatever their size, and never another photo's pixels."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffrestorer.data import recent_photos
from diffrestorer.data.images import ImageError, Photo, read_photo, write_photo
from diffrestorer.data.recent_photos import RecentArrays, read_pixels


class Maker:
    """Makes arrays of given sizes by number, and counts how often each was made."""

    def __init__(self, recent: RecentArrays, sizes: list[int]) -> None:
        self.recent = recent
        self.sizes = sizes
        self.made = [0] * len(sizes)

    def get(self, number: int) -> np.ndarray:
        def make() -> np.ndarray:
            self.made[number] += 1
            return np.full(self.sizes[number], number, np.uint8)

        return self.recent.get(number, make)


def kept(recent: RecentArrays) -> list[int]:
    """Keys of the arrays in memory, the least recently used first."""
    return list(recent._arrays)


def test_the_least_recently_used_leave_first() -> None:
    maker = Maker(RecentArrays(100), [40, 40, 40, 10, 90])
    for number in (0, 1, 0):
        maker.get(number)
    maker.get(2)  # takes the place of 1, since 0 was used again
    assert kept(maker.recent) == [0, 2]
    maker.get(3)  # fits beside them
    assert kept(maker.recent) == [0, 2, 3]
    maker.get(4)  # fits beside 3 alone
    assert kept(maker.recent) == [3, 4]
    assert maker.made == [1, 1, 1, 1, 1]
    maker.get(0)
    assert maker.made[0] == 2


def test_what_is_larger_than_the_budget_is_returned_and_displaces_nothing() -> None:
    maker = Maker(RecentArrays(100), [60, 101, 100])
    maker.get(0)
    for _ in range(2):
        assert np.array_equal(maker.get(1), np.full(101, 1))
    assert maker.made == [1, 2, 0]
    assert kept(maker.recent) == [0]
    maker.get(2)
    assert kept(maker.recent) == [2]


@pytest.mark.parametrize("threads", [1, 4])
def test_any_order_of_sizes_stays_within_the_budget(threads: int) -> None:
    """Also with threads that make arrays at the same time, sometimes the same one."""
    rng = np.random.default_rng(0)
    budget = 1000
    maker = Maker(RecentArrays(budget), [int(size) for size in rng.integers(1, 1200, 40)])

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 40, 500):
            array = maker.get(int(number))
            assert array.size == maker.sizes[number]
            assert (array == number).all()
            with maker.recent._lock:
                held = [array.nbytes for array in maker.recent._arrays.values()]
                assert sum(held) == maker.recent._bytes <= budget

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(use, range(threads)))


def test_making_does_not_hold_up_other_threads() -> None:
    recent = RecentArrays(100)
    both = threading.Barrier(2, timeout=60)

    def make() -> np.ndarray:
        both.wait()
        return np.zeros(1, np.uint8)

    with ThreadPoolExecutor(2) as pool:
        arrays = list(pool.map(lambda _: recent.get("same", make), range(2)))
    assert all(array.nbytes == 1 for array in arrays)
    assert recent._bytes == 1


def test_photos_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and enlarged ones, 8 and 16 bits: what is kept and what is read again are the same pixels."""
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width, dtype) in enumerate(
        [(30, 40, np.uint8), (80, 60, np.uint16), (8, 12, np.uint8), (200, 200, np.uint8)]
    ):
        path = tmp_path / f"{number}.png"
        largest = np.iinfo(dtype).max
        write_photo(path, Photo(rng.integers(0, largest, (height, width, 3), dtype)))
        paths.append(path)
    expected = [recent_photos._decode(path, 24) for path in paths]
    assert [array.shape[:2] for array in expected] == [(30, 40), (80, 60), (24, 36), (200, 200)]

    # Room for the first two, or the first and the third; never for the last.
    recent = RecentArrays(3 * (30 * 40 + 80 * 60))
    monkeypatch.setattr(recent_photos, "_recent", recent)
    for index in (0, 1, 0, 2, 3, 1, 2, 0, 3):
        assert np.array_equal(read_pixels(paths[index], 24), expected[index])
        assert recent._bytes <= recent._max_bytes
        assert (paths[3], 24) not in kept(recent)


def test_a_kept_photo_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_photos, "_recent", RecentArrays(1 << 20))
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(path)
    first = read_pixels(path, 16)
    assert np.array_equal(first, read_photo(path).pixels)
    path.unlink()
    assert read_pixels(path, 16) is first
    with pytest.raises(ImageError, match=r"a\.png: there is no such file"):
        read_pixels(path, 64)  # another size is another photo


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(ImageError, match=r"a\.png: there is no such file"):
        read_pixels(path, 16)
    Image.new("RGB", (40, 30)).save(path)
    assert read_pixels(path, 16).shape == (30, 40, 3)


def test_the_budget_of_a_process_holds_few_large_photos() -> None:
    photo = 24_000_000 * 3
    assert recent_photos._recent._max_bytes == 512 << 20
    assert recent_photos._recent._max_bytes // photo == 7
