"""Freely licensed photos that need no registration: for training out of Debian's gcompris-qt-data, others to evaluate.

GCompris keeps its pictures in Qt resource files and names author, licence and source of each in README files beside
them. Only photos under CC0 or in the public domain are taken. The photos to evaluate ship inside Python packages.
"""

import csv
import importlib.util
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffrestorer.data.images import IMAGE_SUFFIXES, Photo, read_photo, write_photo
from diffrestorer.data.storage import whole_file

INSTALLED = Path("/usr/share/gcompris-qt/rcc")
"""Where Debian's package puts its resource files."""

PHOTO_ACTIVITIES: tuple[str, ...] = (
    "clickgame", "erase", "explore_farm_animals", "explore_monuments", "explore_world_animals", "explore_world_music",
)  # fmt: skip
"""The resource files whose opaque pictures are photos, not drawings."""

_MAX_DEPTH = 32
_DIRECTORY, _ZLIB, _ZSTD = 2, 1, 4


@dataclass(frozen=True)
class Credit:
    """Who made a photo and what may be done with it, as its package says; `source` is where it was found."""

    author: str
    licence: str
    source: str


EVAL_PHOTOS: dict[str, Credit] = {
    "astronaut": Credit("NASA", "public domain", "scikit-image"),
    "chelsea": Credit("Stefan van der Walt", "CC0", "scikit-image"),
    "coffee": Credit("Rachel Michetti", "CC0", "scikit-image"),
    "hubble_deep_field": Credit("NASA", "public domain", "scikit-image"),
    "motorcycle": Credit("D. Scharstein and others, Middlebury 2014 stereo", "CC0", "scikit-image"),
    "rocket": Credit("SpaceX", "public domain", "scikit-image"),
    "china": Credit("danielbuechele", "CC BY 2.0", "scikit-learn"),
    "flower": Credit("vultilion", "CC BY 2.0", "scikit-learn"),
}
"""Photos inside Python packages that may be used freely; those of a package that is not installed are left out."""


def write(root: str | None, out: Path) -> str:
    """Write `train/` and `eval/` below `out`, each with a credits.csv.

    Args:
        root: the .deb of gcompris-qt-data, or a folder with its .rcc files at any depth; None: where it is installed.

    Returns:
        What was written, as a sentence.

    Raises:
        ValueError: `root` is neither, is damaged, or holds no such photo.
    """
    if root is None and not INSTALLED.is_dir():
        raise ValueError(
            "root is not set and gcompris-qt-data is not installed: fetch it (`apt-get download gcompris-qt-data`), "
            "then give root=FILE.deb"
        )

    # Photos to train on.
    train, evaluation = out / "train", out / "eval"
    credits = {}
    for activity, data in _resource_files(INSTALLED if root is None else Path(root)):
        for name, credit, photo in _photos(activity, data):
            train.mkdir(parents=True, exist_ok=True)
            with whole_file(train / name) as file:
                file.write(photo)
            credits[name] = credit
    if not credits:
        raise ValueError(
            f"root={root} holds none of {', '.join(f'{name}.rcc' for name in PHOTO_ACTIVITIES)}"
        )
    _write_credits(train, credits)

    # Photos to evaluate, out of Python packages.
    evaluation.mkdir(parents=True, exist_ok=True)
    eval_credits = {}
    for name, credit in EVAL_PHOTOS.items():
        if (pixels := _eval_photo(name, credit.source)) is not None:
            write_photo(evaluation / f"{name}.png", Photo(pixels))
            eval_credits[f"{name}.png"] = credit
    _write_credits(evaluation, eval_credits)
    return f"{len(credits)} photos in {train}, {len(eval_credits)} in {evaluation}; their authors in credits.csv"


def _write_credits(folder: Path, credits: dict[str, Credit]) -> None:
    """Write the authors, licences and sources of a folder's photos."""
    rows = [
        [name, credit.author, credit.licence, credit.source] for name, credit in sorted(credits.items())
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["file", "author", "licence", "source"], *rows])
    with whole_file(folder / "credits.csv") as file:
        file.write(text.getvalue().encode())


def _eval_photo(name: str, package: str) -> np.ndarray | None:
    """Return a photo's pixels, uint8 (h, w, 3); None if its package is not installed."""
    if package == "scikit-learn":  # its images are read without importing it, which would take seconds
        found = importlib.util.find_spec("sklearn")
        if found is None or found.origin is None:
            return None
        return read_photo(Path(found.origin).parent / "datasets" / "images" / f"{name}.jpg").pixels
    if importlib.util.find_spec("skimage") is None:
        return None
    import skimage.data

    photo = (
        skimage.data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(skimage.data, name)()
    )
    return np.ascontiguousarray(photo[..., :3])


def _resource_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield activity and content of the resource files that hold photos."""
    if root.is_dir():
        for path in sorted(root.rglob("*.rcc")):
            if path.stem in PHOTO_ACTIVITIES:
                yield path.stem, path.read_bytes()
        return
    if not root.is_file():
        raise ValueError(
            f"root={root} does not exist; give gcompris-qt-data's .deb or the folder of its .rcc files"
        )
    try:
        with tarfile.open(fileobj=io.BytesIO(_deb_data(root))) as package:
            for member in package:
                path = Path(member.name)
                if member.isfile() and path.suffix == ".rcc" and path.stem in PHOTO_ACTIVITIES:
                    content = package.extractfile(member)
                    assert content is not None
                    yield path.stem, content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{root} cannot be unpacked ({error}); give the folder of its .rcc files instead"
        ) from None


def _deb_data(path: Path) -> bytes:
    """Return the member data.tar.* of a Debian package, which is an `ar` archive (deb(5))."""
    content = path.read_bytes()
    place = 8
    while content.startswith(b"!<arch>\n") and place + 60 <= len(content):
        header = content[place : place + 60]
        size = int(header[48:58]) if header[48:58].strip().isdigit() else len(content)
        if header.startswith(b"data.tar"):
            return content[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise ValueError(f"{path} is not a Debian package, or it is cut off")


def _photos(activity: str, data: bytes) -> Iterator[tuple[str, Credit, bytes]]:
    """Yield name, credit and file of the free, opaque pictures in a resource file."""
    files = dict(read_resources(data))
    for readme in sorted(name for name in files if name.endswith("/README")):
        folder = readme.removesuffix("README")
        credits = read_credits(files[readme].decode("utf-8", "replace"))
        for file, credit in sorted(credits.items()):
            photo = files.get(folder + file)
            if (
                photo is None
                or Path(file).suffix not in IMAGE_SUFFIXES
                or not re.search(r"\bcc0|public domain", credit.licence, re.IGNORECASE)
            ):
                continue
            try:
                with Image.open(io.BytesIO(photo)) as image:
                    opaque = not image.has_transparency_data
            except UnidentifiedImageError:
                raise ValueError(f"{activity}.rcc is damaged: {file} is not an image") from None
            if opaque:
                yield f"{activity}_{Path(file).name}", credit, photo


def read_credits(readme: str) -> dict[str, Credit]:
    """Return the credit of each file that a README of GCompris names."""
    credits = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        fields = {
            key.lower(): value.strip()
            for key, value in re.findall(r"^(\w+):[ \t]*(.*)$", paragraph, re.M)
        }
        credit = Credit(
            fields.get("copyright", ""), fields.get("license", ""), fields.get("source", "")
        )
        for file in paragraph.partition("Files:")[2].split():
            credits[file] = credit
    return credits


def read_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every file in a Qt resource file (`rcc --binary`), format versions 1 to 3.

    Big-endian throughout: header `qres`, version, offsets of tree, data and names; a node of the tree is name, flags,
    then number of children and first child, or (of a file) locale and offset of a 4-byte length and the content.

    Raises:
        ValueError: it is none, is damaged, or is compressed in a way that zlib cannot undo.
    """
    try:
        if data[:4] != b"qres":
            raise ValueError("not a Qt resource file")
        version, tree, contents, names = struct.unpack_from(">4I", data, 4)
        if version not in (1, 2, 3):
            raise ValueError(f"a Qt resource file of format version {version}, which is not known")
        yield from _read_node(data, tree, contents, names, 14 if version == 1 else 22, 0, "", 0)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"a damaged Qt resource file ({error})") from None


def _read_node(
    data: bytes,
    tree: int,
    contents: int,
    names: int,
    node_size: int,
    node: int,
    parent: str,
    depth: int,
) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the files at and below a node of the tree."""
    place = tree + node * node_size
    name_place, flags, first, second = struct.unpack_from(">IHII", data, place)
    (length,) = struct.unpack_from(">H", data, names + name_place)
    start = names + name_place + 6  # behind the length and a hash
    path = f"{parent}/{data[start : start + 2 * length].decode('utf-16-be')}" if node else parent
    if depth > _MAX_DEPTH:
        raise ValueError("a damaged Qt resource file (its folders do not end)")

    # A folder's children follow one another in the tree.
    if flags & _DIRECTORY:
        for child in range(second, second + first):
            yield from _read_node(data, tree, contents, names, node_size, child, path, depth + 1)
        return
    if flags & _ZSTD:
        raise ValueError(f"{path} is compressed with Zstandard, which is not supported")

    # A file's content: its length, then its bytes, packed or not.
    (size,) = struct.unpack_from(">I", data, contents + second)
    content = data[contents + second + 4 : contents + second + 4 + size]
    if len(content) != size:
        raise ValueError(f"a damaged Qt resource file ({path} is cut off)")
    yield path, zlib.decompress(content[4:]) if flags & _ZLIB else content
