"""Colours of 8-bit pictures as RGB, through their ICC profile where they carry a sound one."""

import io

import numpy as np
from PIL import Image, ImageCms

from diffrestorer.data.formats.photo import ImageError

_MODES = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
)
_DEVICE_SPACES = {"CMYK": b"CMYK", "L": b"GRAY"}


def to_rgb(
    image: Image.Image, profile: bytes | None
) -> tuple[np.ndarray, np.ndarray | None, bytes | None]:
    """Convert a picture of 8-bit samples.

    Args:
        image: of any mode that Pillow gives such pictures.
        profile: the ICC profile of its colours, if any.

    Returns:
        RGB (h, w, 3), alpha (h, w) if the picture has any, and the profile that the RGB is in.

    Raises:
        ImageError: the samples are 32-bit, or the colours are in a space that has no plain conversion.
    """
    if image.mode in ("I", "F"):
        raise ImageError("its pixels are 32-bit numbers; only 8-bit and 16-bit images are supported")
    if image.mode not in _MODES:
        raise ImageError(f"its colours are in the space {image.mode}; convert it to RGB first")
    alpha = None
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        image = image.convert("L" if image.mode in ("L", "LA") else "RGB")

    # Grey and CMYK become sRGB by their own profile; a broken one is left out.
    if profile is not None and profile[16:20] == _DEVICE_SPACES.get(image.mode):
        converted = _apply_profile(image, profile)
        if converted is not None:
            return converted, alpha, None
    return np.asarray(image.convert("RGB")), alpha, rgb_profile(profile)


def rgb_profile(profile: bytes | None) -> bytes | None:
    """Return the profile if it is a sound one of RGB, else None."""
    if profile is None or profile[16:20] != b"RGB " or profile[36:40] != b"acsp":
        return None
    return profile


def _apply_profile(image: Image.Image, profile: bytes) -> np.ndarray | None:
    """Return sRGB (h, w, 3); None if the profile is damaged or for other devices."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    return None if converted is None else np.asarray(converted)
