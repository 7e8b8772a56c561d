"""Images normalised by channel: torchvision's numbers."""

import pytest
import torch
from torchvision.transforms.v2.functional import normalize

from diffrestorer.models.normalisation import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_numbers_are_torchvisions(dtype: torch.dtype) -> None:
    images = torch.rand(2, 3, 5, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    assert torch.equal(normalise(images, MEAN, STD), normalize(images, list(MEAN), list(STD)))
    assert torch.equal(images, before), "in a tensor of its own"


def test_gradients_pass_after_an_evaluation() -> None:
    """Constants made in inference mode could not take part in training."""
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    with torch.inference_mode():
        normalise(torch.zeros(1, 3, 2, 2), mean, std)
    images = torch.zeros(1, 3, 2, 2, requires_grad=True)
    normalise(images, mean, std).sum().backward()
    torch.testing.assert_close(images.grad, (1 / torch.tensor(std)).view(3, 1, 1).expand(1, 3, 2, 2))
