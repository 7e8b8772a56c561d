"""A study: a page of blind pairs for people, and the key that stays behind."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diffrestorer.data.formats.encoding import encode
from diffrestorer.data.images import ImageError, Photo, read_photo
from diffrestorer.data.storage import write_bytes, write_text
from diffrestorer.evaluation.study.blind_pairs import Pair, choose_pairs

TEMPLATES = Path(__file__).with_name("templates")

PAGE = "page"
KEY = "key.json"
ANSWERS = "answers"


def make_study(
    runs: Sequence[Path],
    folder: Path,
    count: int,
    seed: int,
) -> int:
    """Make a study of blind pairs and return their number.

    Writes FOLDER/page/ (index.html and images under numbers; give people this folder), FOLDER/key.json (the methods
    behind the numbers; keep it) and an empty FOLDER/answers/ (put people's files there).

    Args:
        runs: output folders of scripts/evaluate.py.
        folder: where the study goes; it must not hold one.
        count: number of pairs.
        seed: of the choice, the sides and the order.

    Raises:
        ValueError: the folder holds a study, the runs make no pair, or an image can't be decoded.
    """
    if (folder / KEY).exists():
        raise ValueError(
            f"{folder} holds a study already: its answers belong to its pairs; give another folder"
        )

    # Images under numbers, so that nothing on the page names a method. The study is known by its pictures.
    pairs = choose_pairs(runs, count, seed)
    identity = hashlib.sha256(f"{seed}".encode())
    for number, pair in enumerate(pairs):
        identity.update(pair.place.encode())
        for name, file in (("input", pair.input), ("left", pair.left_file), ("right", pair.right_file)):
            identity.update(hashlib.sha256(file.read_bytes()).digest())
            write_bytes(folder / PAGE / _image(number, name), _pixels_alone(file))
    study = identity.hexdigest()[:16]
    write_text(folder / PAGE / "index.html", _page(len(pairs), seed, study))

    # The key comes last: where it stands, the study is whole.
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    key = {"study": study, "seed": seed, "pairs": [_key(pair) for pair in pairs]}
    write_text(folder / KEY, json.dumps(key, indent=1) + "\n")
    return len(pairs)


def _image(number: int, name: str) -> str:
    """Return the file of an image below the page's folder, which shows nothing of the method."""
    return f"images/{number:04d}_{name}.png"


def _pixels_alone(file: Path) -> bytes:
    """Return the image of a file as a PNG of RGB pixels and nothing else: no text, no profile, no transparency.

    An output's own file tells which method made it, and a copy made elsewhere may tell its program. Equal pixels give
    equal bytes here, so that the size of a file tells no more than its picture. 16-bit pixels stay 16-bit. A colour
    profile goes too: neither methods nor scores know of it, and all images of a pair have to be shown alike.

    Raises:
        ValueError: it can't be decoded; the message names the file.
    """
    try:
        return encode(Photo(read_photo(file).pixels), "png")
    except ImageError as error:
        raise ValueError(f"{file}: {error}") from None


def _key(pair: Pair) -> dict[str, str]:
    return {"place": pair.place, "left": pair.left, "right": pair.right}


def _page(count: int, seed: int, study: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    pairs = []
    for number in range(count):
        pairs.append({name: _image(number, name) for name in ("input", "left", "right")})
    return environment.get_template("study.html").render(pairs=pairs, seed=seed, study=study)
