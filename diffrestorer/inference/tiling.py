"""Any size: a large image through a network by overlapping tiles, blended, in memory that does not grow with it.

Convolutions see a neighbourhood; what ties a whole image together is GroupNorm. The VAE and the control encoder, whose
features must mean the same everywhere, therefore normalise all tiles by the same statistics, those of crops spread over
the image (`run_shared`): no tile differs from its neighbour, and at most the whole from what it would be untiled. The
UNet normalises each tile by itself, as it was trained; its predictions are averaged at every step (`run`), so that
neighbours never drift apart.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diffrestorer.inference.choices import Tile

WHOLE_PIXELS = 1024 * 1024
"""Up to this many pixels `tile="auto"` takes an image whole."""

AUTO_SIDE = 768
"""Side in pixels of the largest tile that `tile="auto"` makes."""

CROPS = 4
"""Crops along each side of an image whose pooled statistics stand for the image's."""

SMALLEST_CROP = 16
"""Cells along a crop's side, at least."""

Canvas = Float[Tensor, "1 _ _ _"]
Network = Callable[..., Float[Tensor, "t _ _ _"]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Axis:
    """Equal tiles along one side of an image, neighbours overlapping by about a quarter.

    Attributes:
        length: of the image, in cells.
        side: of a tile, in cells.
        starts: first cell of each tile.
    """

    length: int
    side: int
    starts: tuple[int, ...]

    @classmethod
    def spread(cls, length: int, largest: int, multiple: int) -> "Axis":
        """Return as few tiles as cover `length`, none longer than `largest`; all three are multiples of `multiple`."""
        if length <= largest:
            return cls(length, length, (0,))

        # Neighbours overlap by a quarter of the largest tile; the tiles then shrink to what covers the length.
        overlap = largest // 4
        count = math.ceil((length - overlap) / (largest - overlap))
        side = math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple

        # They start at even distances, rounded to the multiple.
        steps = (length - side) // multiple
        starts = tuple(round(i * steps / (count - 1)) * multiple for i in range(count))
        return cls(length, side, starts)

    def weights(self, scale: int, device: torch.device) -> Float[Tensor, "n s"]:
        """Return the weight of each tile at its own positions, `scale` per cell: smooth, and 1 in sum everywhere."""
        side, starts = self.side * scale, [start * scale for start in self.starts]

        # A tile fades in and out over the overlap, but not at the image's own edges.
        weights = torch.ones(len(starts), side, dtype=torch.float64, device=device)
        ramp = (torch.arange(side, dtype=torch.float64, device=device) + 0.5) / (side // 4)
        ramp = (ramp.clamp(max=1) * math.pi / 2).sin().square()
        weights[1:] *= ramp
        weights[:-1] *= ramp.flip(0)

        # At each position the weights are divided by their sum.
        total = torch.zeros(self.length * scale, dtype=torch.float64, device=device)
        for start, row in zip(starts, weights, strict=True):
            total[start : start + side] += row
        for start, row in zip(starts, weights, strict=True):
            row.div_(total[start : start + side])
        return weights.float()


@dataclass(frozen=True)
class Grid:
    """The tiles of one image. A cell is a square of pixels: the coarsest canvas has one value for each.

    Attributes:
        rows, columns: where tiles lie along the height and the width.
        cell: pixels along a cell's side.
        batch_size: tiles that go through a network at a time; None: as many as make 1024x1024 pixels.
    """

    rows: Axis
    columns: Axis
    cell: int = 1
    batch_size: int | None = None

    @classmethod
    def over(
        cls, size: Sequence[int], side: int, multiple: int, cell: int, batch_size: int | None = None
    ) -> "Grid":
        """Return the tiles over an image, none longer than `side`.

        Args:
            size: height and width of the image. These, `side` and `multiple` are pixels and multiples of `cell`.
        """
        rows, columns = (Axis.spread(length // cell, side // cell, multiple // cell) for length in size)
        return cls(rows, columns, cell, batch_size)

    def run(self, network: Network, canvases: Sequence[Canvas]) -> Canvas:
        """Run a network over the canvases' tiles; average in float32 where tiles overlap.

        Args:
            network: takes one batch of crops per canvas, returns one batch, at any whole number of values per cell.
            canvases: each at a whole number of values per cell.
        """
        blended = None
        for tiles in self._batches():
            outputs = network(*(self._crops(canvas, tiles) for canvas in canvases))

            # The first output tells the resolution and the channels of the result.
            scale = outputs.shape[-2] // self.rows.side
            if blended is None:
                size = (self.rows.length * scale, self.columns.length * scale)
                blended = torch.zeros(1, outputs.shape[1], *size, device=outputs.device)

            # Every tile is added with weights that sum up to 1.
            for tile, output, weights in zip(
                tiles, outputs, self._weights(tiles, scale, outputs.device), strict=True
            ):
                self._crop(blended, tile).addcmul_(output.float(), weights)
        assert blended is not None, "a grid has tiles"
        return blended.to(outputs.dtype)

    def run_shared(self, network: Network, canvases: Sequence[Canvas], multiple: int) -> Canvas:
        """Run a network whose GroupNorms normalise every tile by the same statistics: those of crops of the image.

        Args:
            multiple: cells that the network's input sides must be a multiple of.
        """
        # The network runs over the crops once to gather their statistics.
        crops = self._spread_crops(canvases, multiple)
        with _SharedGroupNorm() as pooled:
            network(*crops)

        # Then it runs over the tiles, normalised by them.
        with _SharedGroupNorm(pooled.moments) as shared:

            def normalised(*tiles: Float[Tensor, "t _ _ _"]) -> Float[Tensor, "t _ _ _"]:
                shared.start()
                return network(*tiles)

            return self.run(normalised, canvases)

    def _batches(self) -> Iterator[Sequence[tuple[int, int]]]:
        tiles = list(itertools.product(range(len(self.rows.starts)), range(len(self.columns.starts))))
        size = self.batch_size or max(
            1, WHOLE_PIXELS // (self.rows.side * self.columns.side * self.cell**2)
        )
        return (tiles[i : i + size] for i in range(0, len(tiles), size))

    def _crop(self, canvas: Canvas, tile: tuple[int, int]) -> Canvas:
        scale = canvas.shape[-2] // self.rows.length
        top, left = self.rows.starts[tile[0]] * scale, self.columns.starts[tile[1]] * scale
        return canvas[..., top : top + self.rows.side * scale, left : left + self.columns.side * scale]

    def _crops(self, canvas: Canvas, tiles: Sequence[tuple[int, int]]) -> Float[Tensor, "t _ _ _"]:
        return torch.cat([self._crop(canvas, tile) for tile in tiles])

    def _weights(
        self, tiles: Sequence[tuple[int, int]], scale: int, device: torch.device
    ) -> Float[Tensor, "t {self.rows.side*scale} {self.columns.side*scale}"]:
        rows, columns = _weights(self.rows, scale, device), _weights(self.columns, scale, device)
        return torch.stack([rows[i][:, None] * columns[j] for i, j in tiles])

    def _spread_crops(
        self, canvases: Sequence[Canvas], multiple: int
    ) -> list[Float[Tensor, "t _ _ _"]]:
        """Return `CROPS` x `CROPS` crops of each canvas, evenly spread; together about a tile's area."""

        def spread(axis: Axis) -> Axis:
            side = min(max(axis.side // CROPS // multiple * multiple, SMALLEST_CROP), axis.side)
            steps, count = (axis.length - side) // multiple, CROPS if axis.length > side else 1
            return Axis(
                axis.length,
                side,
                tuple(round(i * steps / max(1, count - 1)) * multiple for i in range(count)),
            )

        crops = Grid(spread(self.rows), spread(self.columns))
        tiles = list(itertools.product(range(len(crops.rows.starts)), range(len(crops.columns.starts))))
        return [crops._crops(canvas, tiles) for canvas in canvases]


@functools.lru_cache(maxsize=16)
def _weights(axis: Axis, scale: int, device: torch.device) -> Float[Tensor, "n s"]:
    return axis.weights(scale, device)


class _SharedGroupNorm(TorchFunctionMode):
    """While active, GroupNorm normalises a batch by given moments, or else by those of the batch as one image.

    The GroupNorms of a network are told apart by the order in which it calls them.

    Attributes:
        moments: mean and variance of the groups of each GroupNorm: those given, or those met.
    """

    def __init__(self, known: Sequence[Float[Tensor, "2 g"]] = ()) -> None:
        super().__init__()
        self.moments = list(known)
        self.start()

    def start(self) -> None:
        """Start over, before the network runs: its first GroupNorm comes next."""
        self.call = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not F.group_norm:
            return function(*args, **(kwargs or {}))
        return self._group_norm(*args, **(kwargs or {}))

    def _group_norm(
        self,
        input: Float[Tensor, "t c *n"],
        num_groups: int,
        weight: Float[Tensor, " c"],
        bias: Float[Tensor, " c"],
        eps: float = 1e-5,
    ) -> Float[Tensor, "t c *n"]:
        if self.call == len(self.moments):
            self.moments.append(_pooled_moments(input, num_groups))
        mean, variance = self.moments[self.call]
        self.call += 1
        scale = (variance + eps).rsqrt().repeat_interleave(len(weight) // num_groups) * weight
        shift = bias - mean.repeat_interleave(len(weight) // num_groups) * scale
        shape = (-1, *[1] * (input.ndim - 2))
        return torch.addcmul(
            shift.to(input.dtype).view(shape), input, scale.to(input.dtype).view(shape)
        )


def _pooled_moments(features: Float[Tensor, "t c *n"], num_groups: int) -> Float[Tensor, "2 g"]:
    """Return mean and variance of each group of channels over the whole batch, without a copy of the features."""
    variance, mean = torch.var_mean(features.flatten(2).float(), dim=2, correction=0)
    variance, mean = (channels.mT.reshape(num_groups, -1) for channels in (variance, mean))
    deviation = mean - mean.mean(dim=1, keepdim=True)
    return torch.stack([mean.mean(dim=1), (variance + deviation.square()).mean(dim=1)])


def tile_side(tile: Tile, height: int, width: int, multiple: int) -> int | None:
    """Return the side in pixels of the largest tile for an image, or None to take it whole.

    Args:
        tile: `auto` takes up to 1024x1024 pixels whole and larger images by tiles of at most 768; `none` takes any
            whole; a number is a tile's side, rounded to what the networks can take.
        multiple: pixels that a tile's sides are a multiple of.

    Raises:
        ValueError: `tile` is none of these, or too small.
    """
    if tile == "none":
        return None
    if tile == "auto":
        return None if height * width <= WHOLE_PIXELS else AUTO_SIDE
    if isinstance(tile, str) or tile < 4 * multiple:
        raise ValueError(
            f"tile must be 'auto', 'none' or a number of pixels of at least {4 * multiple}, not {tile!r}"
        )
    side = tile // multiple * multiple
    return None if max(height, width) <= side else side


def group_images(sizes: Sequence[Sequence[int]], tile: Tile, multiple: int) -> list[list[int]]:
    """Return the positions of the images that run together: those of one size, and alone where tiles are needed.

    Args:
        sizes: height and width of each image, in pixels.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, (height, width) in enumerate(sizes):
        alone = tile_side(tile, height, width, multiple) is not None
        groups.setdefault((height, width, position if alone else -1), []).append(position)
    return list(groups.values())


def smaller_sides(side: int | None, size: Sequence[int], multiple: int) -> list[int]:
    """Return the sides in pixels to try, one after the other, where memory falls short: halves, while they are of use.

    Args:
        side: that was too large; None: the whole image was.
        size: of the image, in pixels.
        multiple: as in `tile_side`.
    """
    side = side or 2 ** math.ceil(math.log2(max(size)))
    halves = [side // 2**i // multiple * multiple for i in range(1, 16)]
    return [half for half in halves if half >= 4 * multiple]


def until_it_fits(
    run: Callable[[int | None, int | None], Result],
    sides: Sequence[int | None],
    batch_size: int | None = None,
) -> Result:
    """Return what `run` returns for the first of the tile sides for which memory suffices.

    Args:
        run: takes a side and how many tiles may go through a network at a time (see `Grid`).
        batch_size: of the first side's tiles; smaller ones go one by one, or as much memory would be taken again.

    Raises:
        MemoryError, RuntimeError: it does not suffice for the last of them either (torch's own error).
    """
    for i, side in enumerate(sides[:-1]):
        try:
            return run(side, 1 if i else batch_size)
        except (MemoryError, RuntimeError) as error:  # a GPU's torch.OutOfMemoryError is a RuntimeError
            text = str(error).lower()
            if not (
                isinstance(error, MemoryError)
                or "out of memory" in text
                or "can't allocate memory" in text
            ):
                raise
    return run(sides[-1], 1 if len(sides) > 1 else batch_size)
