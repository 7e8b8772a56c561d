"""The ten data sets of the paper: how each is distributed, how its files pair, their number, where they come from.

Files are recognised by the end of their path and paired by name, never by position. `data/README.md` is `page()`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffrestorer.config.degradations import degradation_steps


@dataclass(frozen=True)
class Product:
    """The pairs that are made of a part: one class or mixture.

    Attributes:
        degradation: the label.
        steps: degradations synthesised on top of what the images carry, in order, after the resize or crop.
    """

    degradation: str
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One split of a set.

    Attributes:
        name: as the set's authors call it.
        split: `train`, `test`, or `test_b` where a set has a second test split.
        published: number of pairs its authors state (of images, where there is no degraded or no clean version).
        products: what is made of it.
        lq, gt: patterns of the path's end; partners share the group `key` (and `scene`, where numbers start anew in
            each scene). None where there is no such image.
        sample: how many pairs are drawn by seed from a test split; None takes all.
        layout: an example of its files as distributed.
        apart_from: a test part of the same set whose scenes, by key, must not be trained on: they are left out.
    """

    name: str
    split: str
    published: int
    products: tuple[Product, ...]
    layout: str
    lq: str | None = None
    gt: str | None = None
    sample: int | None = None
    apart_from: str | None = None

    def key(self, kind: str, path: str) -> str | None:
        """Return the key of the file `path` (POSIX) if it is this part's image of the kind `lq` or `gt`, else None."""
        pattern = self.lq if kind == "lq" else self.gt
        found = None if pattern is None else re.search(rf"(?:^|/){pattern}$", path, re.IGNORECASE)
        if found is None:
            return None
        return "/".join(
            found[group].lower() for group in ("scene", "key") if group in found.groupdict()
        )


@dataclass(frozen=True)
class DataSet:
    """A set: its parts, its licence as its page states it, the page, and what is worth knowing."""

    name: str
    title: str
    parts: tuple[Part, ...]
    licence: str
    url: str
    note: str = ""


_ANY = r"\.(?:png|jpe?g|bmp)"
_UNSTATED = "none stated on its page: use for research, and ask its authors for anything else"


def _carried(degradation: str) -> tuple[Product, ...]:
    """Return the product of images that carry their degradation already."""
    return (Product(degradation),)


def _synthesised(*names: str) -> tuple[Product, ...]:
    """Return the products that are degraded here, one per name."""
    return tuple(Product(name, degradation_steps(name)) for name in names)


def _gopro(split: str, published: int) -> Part:
    """Return a split of GoPro."""
    lq, gt = (rf"{split}/(?P<scene>GOPR[\w-]+)/{kind}/(?P<key>\d+)\.png" for kind in ("blur", "sharp"))
    layout = f"{split}/GOPR0372_07_00/blur/000047.png, {split}/GOPR0372_07_00/sharp/000047.png"
    return Part(split, split, published, _carried("blur"), layout, lq, gt)


def _rain1400(folder: str, split: str, published: int) -> Part:
    """Return a split of Rain1400."""
    start = rf"{folder}/"
    layout = f"{folder}/rainy_image/1_14.jpg, {folder}/ground_truth/1.jpg"
    lq, gt = rf"{start}rainy_image/(?P<key>\d+)_\d+{_ANY}", rf"{start}ground_truth/(?P<key>\d+){_ANY}"
    return Part(folder, split, published, _carried("rain"), layout, lq, gt)


def _raindrop(folder: str, split: str, published: int, *more: Product) -> Part:
    """Return a split of Raindrop."""
    lq, gt = (
        rf"{folder}/(?:{folder}/)?{kind}/(?P<key>\d+)_{end}{_ANY}"
        for kind, end in (("data", "rain"), ("gt", "clean"))
    )
    layout = f"{folder}/data/0_rain.png, {folder}/gt/0_clean.png"
    return Part(folder, split, published, (Product("raindrop"), *more), layout, lq, gt)


def _snow100k(
    folder: str, name: str, split: str, published: int, *more: Product, sample: int | None = None
) -> Part:
    """Return a split of Snow100K."""
    lq, gt = (rf"{folder}/{kind}/(?P<key>[^/]+){_ANY}" for kind in ("synthetic", "gt"))
    layout = f"{name}/synthetic/beautiful_smile_00003.jpg, {name}/gt/beautiful_smile_00003.jpg"
    return Part(name, split, published, (Product("snow"), *more), layout, lq, gt, sample)


def _realsnow(folder: str, split: str, published: int) -> Part:
    """Return a split of RealSnow."""
    start = rf"realsnow[^/]*/(?:[^/]+/)*{folder}(?:ing)?/"
    lq, gt = (
        rf"{start}(?:input|snow)/(?P<key>[^/]+){_ANY}",
        rf"{start}(?:gt|target)/(?P<key>[^/]+){_ANY}",
    )
    layout = f"RealSnow/{folder}ing/input/NAME.png, RealSnow/{folder}ing/gt/NAME.png"
    return Part(folder, split, published, _carried("snow"), layout, lq, gt)


_DIV2K = DataSet(
    "div2k",
    "DIV2K",
    (
        Part("DIV2K_train_HR", "train", 800, _synthesised("noise", "jpeg"), "DIV2K_train_HR/0001.png",
             gt=r"DIV2K_train_HR/(?P<key>\d{4})\.png"),
        Part("DIV2K_valid_HR", "test", 100, _synthesised("noise", "jpeg", "blur+noise", "jpeg+blur+noise"),
             "DIV2K_valid_HR/0801.png", gt=r"DIV2K_valid_HR/(?P<key>\d{4})\.png"),
    ),
    "academic research only, as its page says",
    "https://data.vision.ee.ethz.ch/cvl/DIV2K/",
    "Clean images: noise and JPEG are synthesised.",
)  # fmt: skip

_FLICKR2K = DataSet(
    "flickr2k",
    "Flickr2K",
    (
        Part("Flickr2K_HR", "train", 2650, _synthesised("noise", "jpeg"), "Flickr2K/Flickr2K_HR/000001.png",
             gt=r"Flickr2K_HR/(?P<key>\d{6})\.png"),
    ),
    "photos of Flickr users, each under its own licence: research only",
    "https://github.com/limbee/NTIRE2017",
    "Clean images: noise and JPEG are synthesised. Its low-resolution folders are not used.",
)  # fmt: skip

_LOL = DataSet(
    "lol",
    "LOL",
    tuple(
        Part(folder, split, published, _carried("low_light"), f"{folder}/low/2.png, {folder}/high/2.png",
             rf"{folder}/low/(?P<key>\d+)\.png", rf"{folder}/high/(?P<key>\d+)\.png")
        for folder, split, published in (("our485", "train", 485), ("eval15", "test", 15))
    ),
    _UNSTATED,
    "https://daooshee.github.io/BMVC2018website/",
)  # fmt: skip

_INDOOR_OR_TEST = r"(?<!indoor/)(?<!outdoor/)"
_RESIDE = DataSet(
    "reside",
    "RESIDE",
    (
        Part("OTS", "train", 72_135, _carried("haze"), "OTS/part1/0001_0.8_0.2.jpg, OTS/clear/0001.jpg",
             rf"{_INDOOR_OR_TEST}(?:hazy|haze|part\d|OTS)/(?P<key>\d{{4}})_[\d.]+_[\d.]+\.jpg",
             rf"{_INDOOR_OR_TEST}clear/(?P<key>\d{{4}})\.jpg", apart_from="SOTS outdoor"),
        Part("ITS", "train", 13_990, _carried("haze"), "ITS/hazy/1_1_0.90179.png, ITS/clear/1.png",
             rf"{_INDOOR_OR_TEST}hazy/(?P<key>\d{{1,4}})_\d+_[\d.]+\.png",
             rf"{_INDOOR_OR_TEST}clear/(?P<key>\d{{1,4}})\.png"),
        Part("SOTS outdoor", "test", 500, _carried("haze"),
             "SOTS/outdoor/hazy/0001_0.8_0.2.jpg, SOTS/outdoor/clear/0001.png",
             r"outdoor/hazy/(?P<key>\d{4})_[\d.]+_[\d.]+\.(?:jpg|png)", r"outdoor/(?:clear|gt)/(?P<key>\d{4})\.png"),
    ),
    _UNSTATED,
    "https://sites.google.com/view/reside-dehaze-datasets",
    "`haze=OTS` (default) or `haze=ITS` chooses the training part. A clean image has several hazy versions. Scenes of "
    "OTS whose number is in SOTS outdoor are left out: the set as distributed trains on a part of its test images "
    "(github.com/IDKiro/DehazeFormer, issue 9).",
)  # fmt: skip

_RAIN1400 = DataSet(
    "rain1400",
    "Rain1400",
    (_rain1400("training", "train", 12_600), _rain1400("testing", "test", 1_400)),
    _UNSTATED,
    "https://xueyangfu.github.io/projects/cvpr2017.html",
    "14 rainy versions of a clean image: `1_1.jpg` to `1_14.jpg` belong to `1.jpg`.",
)

_RAINDROP = DataSet(
    "raindrop",
    "Raindrop",
    (
        _raindrop("train", "train", 861),
        _raindrop("test_a", "test", 58, Product("raindrop+blur+noise", ("blur", "noise"))),
        _raindrop("test_b", "test_b", 249),
    ),
    _UNSTATED,
    "https://github.com/rui1996/DeRaindrop",
)

_SNOW_TEST = (("S", 16_611, 667), ("M", 16_588, 667), ("L", 16_801, 666))
_SNOW100K = DataSet(
    "snow100k",
    "Snow100K",
    (
        _snow100k("all", "all", "train", 50_000),
        *(
            _snow100k(f"Snow100K-{size}", f"test/Snow100K-{size}", "test", count,
                      Product("snow+noise", ("noise",)), sample=sample)
            for size, count, sample in _SNOW_TEST
        ),
    ),
    _UNSTATED,
    "https://sites.google.com/view/yunfuliu/desnownet",
    "2,000 test pairs are drawn by seed from the three test sets; the masks and the realistic images are not used.",
)  # fmt: skip

_GOPRO = DataSet(
    "gopro",
    "GoPro",
    (_gopro("train", 2_103), _gopro("test", 1_111)),
    "CC BY 4.0",
    "https://seungjunnah.github.io/Datasets/gopro",
    "The `blur` folders are used, not `blur_gamma`. Frames are numbered anew in every scene.",
)

_REALSNOW = DataSet(
    "realsnow",
    "RealSnow",
    (_realsnow("test", "test", 240),),
    _UNSTATED,
    "https://github.com/zhuyr97/WGWS-Net",
    "Only its test pairs are used; `test` or `testing`, `input` or `snow`, `gt` or `target` are all recognised.",
)

_RTTS = DataSet(
    "rtts",
    "RTTS",
    (
        Part("RTTS", "test", 4_322, _carried("haze"), "RTTS/JPEGImages/AM_Bing_211.png",
             lq=rf"RTTS/(?:[^/]+/)*JPEGImages/(?P<key>[^/]+){_ANY}"),
    ),
    _UNSTATED,
    "https://sites.google.com/view/reside-dehaze-datasets",
    "Real haze without ground truth.",
)  # fmt: skip

CATALOG: dict[str, DataSet] = {
    entry.name: entry
    for entry in (
        _DIV2K, _FLICKR2K, _LOL, _RESIDE, _RAIN1400, _RAINDROP, _SNOW100K, _GOPRO, _REALSNOW, _RTTS,
    )
}  # fmt: skip
"""Name, as in `set=NAME`, -> set."""


def training_share(degradation: str, haze: str) -> dict[str, int]:
    """Return the published pairs of each set that trains a class: the sets share its budget in that proportion.

    Args:
        haze: which of RESIDE's two training parts counts.
    """
    unused = {"OTS", "ITS"} - {haze}
    return {
        entry.name: part.published
        for entry in CATALOG.values()
        for part in entry.parts
        if part.split == "train"
        and part.name not in unused
        and degradation in {p.degradation for p in part.products}
    }


def describe(entry: DataSet) -> str:
    """Return a set's section of `data/README.md`, in Markdown."""
    # A table with a row per part.
    lines = [f"## {entry.title} (`set={entry.name}`)", ""]
    lines += ["| part | split | published | makes | files |", "|---|---|---|---|---|"]
    for part in entry.parts:
        made = ", ".join(product.degradation for product in part.products)
        sample = f", {part.sample} drawn" if part.sample else ""
        files = ", ".join(f"`{file}`" for file in part.layout.split(", "))
        lines.append(f"| {part.name} | {part.split} | {part.published:,}{sample} | {made} | {files} |")
    lines += ["", f"Where: <{entry.url}>  ", f"Licence: {entry.licence}."]
    return "\n".join([*lines, *(["", entry.note] if entry.note else []), ""])


def explain(arguments: Sequence[str]) -> str:
    """Return the sections of the sets that a command line names (`set=gopro`, `--set gopro`), for its `--help`."""
    words = {word for argument in arguments for word in re.split(r"[=,\s]", argument)}
    return "\n".join(describe(entry) for name, entry in CATALOG.items() if name in words)


def page() -> str:
    """Return the whole of `data/README.md`."""
    return "\n".join([_HEAD, *map(describe, CATALOG.values())]).rstrip() + "\n"


_HEAD = """# The data sets

Download a set from its page, leave it as it is (its archive or its unpacked folder), then

    diffrestorer prepare set=NAME root=DOWNLOADS out=PREPARED     # one set; several may share an out
    diffrestorer prepare set=all root=DOWNLOADS out=PREPARED      # all ten
    diffrestorer prepare ... shard=0/8                            # one of eight parts, see docs/training.md
    diffrestorer prepare --check out=PREPARED
    accelerate launch -m diffrestorer train stage1 data=paper data.root=PREPARED

Files are recognised by the end of their path and paired by name. Every class is brought to 10,000 training pairs; the
sets of one class share them in proportion to their published pairs. `set=photos root=FOLDER` makes pairs of any folder
of clean photos; `set=open_photos` collects freely licensed ones. Nothing but this page is kept in this folder by git;
it is written by `diffrestorer prepare set=readme out=data`.
"""
