"""The three blocks equal their formulas, and start where the paper's training starts."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from diffrestorer.models.blocks import (
    DegradationAwareRefinementBlock,
    DegradationGate,
    DegradationModulationBlock,
    ResBlock,
)

GROUPS = 2


def res_block(block: ResBlock, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """ResBlock by hand."""
    skip = (
        x
        if isinstance(block.skip, torch.nn.Identity)
        else F.conv2d(x, block.skip.weight, block.skip.bias, stride)
    )
    for norm, conv, step in ((block.norm1, block.conv1, stride), (block.norm2, block.conv2, 1)):
        x = F.group_norm(x, GROUPS, norm.weight, norm.bias, 1e-6)
        x = F.conv2d(x * torch.sigmoid(x), conv.weight, conv.bias, step, padding=1)
    return skip + x


def gate(layer: DegradationGate, p_d: torch.Tensor) -> torch.Tensor:
    """f = sigmoid(W P_D + b) by hand, one factor a channel."""
    return 1 / (1 + torch.exp(-(p_d @ layer.linear.weight.T + layer.linear.bias)))[:, :, None, None]


@pytest.fixture
def p_d() -> torch.Tensor:
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (4, 2), (6, 2)])
def test_dmb_equals_its_formula(
    out_channels: int, stride: int, features: torch.Tensor, p_d: torch.Tensor, randomised: Callable
) -> None:
    block = randomised(DegradationModulationBlock(4, out_channels, 5, stride, GROUPS))
    f_prime = res_block(block.block1, features, stride)
    expected = res_block(block.block2, f_prime * gate(block.gate, p_d))
    found = block(features, p_d)
    assert found.shape == (2, out_channels, 8 // stride, 6 // stride)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_drb_equals_its_formula(
    features: torch.Tensor, p_d: torch.Tensor, randomised: Callable
) -> None:
    block = randomised(DegradationAwareRefinementBlock(4, 6, 5, GROUPS))
    lq_features = torch.randn(2, 6, 8, 6)
    joined = torch.cat([features, lq_features], dim=1)
    z_prime = F.conv2d(joined, block.merge.weight, block.merge.bias, padding=1)
    expected = res_block(block.block, z_prime * gate(block.gate, p_d)) + features
    torch.testing.assert_close(block(features, lq_features, p_d), expected, rtol=1e-5, atol=1e-5)


def test_gate_lies_between_0_and_1(p_d: torch.Tensor, randomised: Callable) -> None:
    factors = randomised(DegradationGate(5, 7))(torch.ones(2, 7, 3, 3), p_d)
    assert ((factors > 0) & (factors < 1)).all()
    assert (factors == factors[:, :, :1, :1]).all(), "one factor a channel"
    assert len(factors[:, :, 0, 0].unique()) == 14, "every channel of every sample has its own"


def test_gate_matters(features: torch.Tensor, p_d: torch.Tensor, randomised: Callable) -> None:
    dmb = randomised(DegradationModulationBlock(4, 4, 5, num_groups=GROUPS))
    assert not torch.allclose(dmb(features, p_d), dmb(features, p_d + 1), atol=1e-3)
    drb = randomised(DegradationAwareRefinementBlock(4, 4, 5, GROUPS))
    assert not torch.allclose(drb(features, features, p_d), drb(features, features, p_d + 1), atol=1e-4)
    assert not torch.allclose(drb(features, features, p_d), drb(features, -features, p_d), atol=1e-4)


def test_without_modulation_there_is_no_gate(features: torch.Tensor, p_d: torch.Tensor) -> None:
    block = DegradationModulationBlock(4, 6, 5, 2, GROUPS, modulate=False)
    assert not [name for name, _ in block.named_parameters() if "gate" in name]
    assert torch.equal(block(features, p_d), block(features, -p_d))
    assert torch.equal(block(features, p_d), block.block2(block.block1(features)))


def test_drb_returns_its_input_at_step_0(features: torch.Tensor, p_d: torch.Tensor) -> None:
    block = DegradationAwareRefinementBlock(4, 6, 5, GROUPS)
    lq_features = torch.randn(2, 6, 8, 6)
    assert torch.equal(block(features, lq_features, p_d), features)


def test_drb_learns_from_step_0(features: torch.Tensor, p_d: torch.Tensor) -> None:
    """Two zero-initialised layers in a row would never move; the residual block's skip lets the first one."""
    block = DegradationAwareRefinementBlock(4, 4, 5, GROUPS)
    block(features, features, p_d).square().mean().backward()
    assert block.merge.weight.grad.abs().max() > 0


def test_fidelity_weighs_the_refinement(
    features: torch.Tensor, p_d: torch.Tensor, randomised: Callable
) -> None:
    block = randomised(DegradationAwareRefinementBlock(4, 4, 5, GROUPS))
    none, half, full = (block(features, features, p_d, fidelity) for fidelity in (0.0, 0.5, 1.0))
    assert torch.equal(none, features)
    assert not torch.allclose(full, features, atol=1e-3)
    torch.testing.assert_close(half, (none + full) / 2)
    assert torch.equal(full, block(features, features, p_d))


def test_res_block_starting_at_zero_is_its_skip(features: torch.Tensor) -> None:
    assert torch.equal(ResBlock(4, 4, num_groups=GROUPS, zero_init=True)(features), features)
    wider = ResBlock(4, 6, stride=2, num_groups=GROUPS, zero_init=True)
    assert torch.equal(wider(features), wider.skip(features))
