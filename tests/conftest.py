"""What every test gets: shape checks in the package, no network, a few real photos."""

import os
from pathlib import Path

import jaxtyping
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

# From here on every annotated function of the package refuses tensors of another shape or type than it states.
jaxtyping.install_import_hook("diffrestorer", "beartype.beartype")

PHOTO_SIDE = 160


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four real photos, 160 x 160 RGB PNG: what scikit-image carries in its wheel."""
    import skimage.data
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        top, left = ((size - PHOTO_SIDE) // 2 for size in photo.shape[:2])
        Image.fromarray(photo[top : top + PHOTO_SIDE, left : left + PHOTO_SIDE]).save(folder / f"{name}.png")
    return folder
