"""The decoded photo that every reader returns and every writer takes."""

from dataclasses import dataclass

import numpy as np


class ImageError(ValueError):
    """An image file that cannot be read or written. The message is one sentence and leaves the path to the caller."""


@dataclass(frozen=True)
class Photo:
    """A decoded photo, upright.

    Attributes:
        pixels: RGB (h, w, 3), uint8 or uint16, full range.
        alpha: opacity (h, w) of the same type, or None if the file has none.
        icc_profile: the RGB profile that `pixels` are in; None stands for sRGB.
        exif: the EXIF block (camera, date, GPS), beginning with its TIFF header, orientation 1; or None.
        xmp: the XMP packet, orientation 1; or None.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    def __post_init__(self) -> None:
        if (
            self.pixels.ndim != 3
            or self.pixels.shape[2] != 3
            or self.pixels.dtype not in (np.uint8, np.uint16)
        ):
            raise ValueError(
                f"pixels are uint8 or uint16 (h, w, 3), got {self.pixels.dtype} {self.pixels.shape}"
            )
        alpha = self.alpha
        if alpha is not None and (
            alpha.shape != self.pixels.shape[:2] or alpha.dtype != self.pixels.dtype
        ):
            raise ValueError(
                f"alpha has the size and type of the pixels, got {alpha.dtype} {alpha.shape}"
            )


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture whose header claims no pixels or too many, before anything is decoded.

    Raises:
        ImageError: width x height is zero or above `max_pixels`.
    """
    if width * height < 1:
        raise ImageError("it has no pixels")
    if width * height > max_pixels:
        raise ImageError(f"it claims {width}x{height} pixels, more than the limit of {max_pixels}")
