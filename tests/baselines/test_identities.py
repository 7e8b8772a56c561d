"""What must hold of each method by its own equations."""

import copy

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import deform_conv2d
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor
from torchvision.transforms.functional import to_pil_image

from diffrestorer.baselines.airnet import AirNet, deformable_convolution
from diffrestorer.baselines.da_clip.controller import ControlledClip, clip_view, tower_blocks
from diffrestorer.baselines.da_clip.model import DaClip
from diffrestorer.baselines.da_clip.sde import IRSDE
from diffrestorer.baselines.da_clip.unet import ContentAttention
from diffrestorer.baselines.moco import KeyQueue, update_momentum
from diffrestorer.baselines.promptir import PromptIR
from diffrestorer.baselines.restormer import Restormer, TransposedAttention
from diffrestorer.baselines.transweather import TransWeather
from diffrestorer.baselines.transweather_layers import Attention, PatchEmbedding, PatchReduction
from diffrestorer.models.backbones import ImageEncoder
from diffrestorer.training.losses import psnr_loss

LAYOUT = {"dim": 6, "num_blocks": (1, 2, 1), "num_heads": (1, 3, 2), "num_refinement_blocks": 2}


def normal(*shape: int, seed: int = 0) -> Float[Tensor, "..."]:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_promptir_without_prompts_is_restormer() -> None:
    restormer, promptir = Restormer(**LAYOUT), PromptIR(**LAYOUT, num_prompts=0)
    promptir.load_state_dict(restormer.state_dict())
    lq = normal(1, 3, 16, 24).sigmoid()
    assert torch.equal(promptir(lq), restormer(lq))
    assert not torch.equal(restormer(lq), lq)


def test_equal_prompts_make_the_mixture_irrelevant() -> None:
    promptir = PromptIR(
        **LAYOUT, num_prompts=3, prompt_dims=(6, 4), prompt_sizes=(5, 3), prompt_heads=2
    )
    lq = normal(1, 3, 16, 24).sigmoid()
    with torch.no_grad():
        before = promptir(lq)
        for interaction in promptir.network.interactions:
            generation = interaction.generation
            generation.prompts.copy_(
                generation.prompts.mean(dim=0, keepdim=True).expand_as(generation.prompts)
            )
        equal = promptir(lq)
        for interaction in promptir.network.interactions:
            interaction.generation.mixture.weight.normal_()
    assert not torch.allclose(before, equal)
    torch.testing.assert_close(promptir(lq), equal)


def test_transposed_attention_by_hand() -> None:
    attention = TransposedAttention(4, num_heads=2)
    features = normal(1, 4, 3, 5)
    qkv = F.conv2d(attention.qkv(features), attention.qkv_depthwise.weight, padding=1, groups=12)[
        0
    ].flatten(1)
    heads = []
    for head in range(2):
        q, k, v = (qkv[4 * part + 2 * head : 4 * part + 2 * head + 2] for part in range(3))
        cosines = [(q[i] @ k[j]) / (q[i].norm() * k[j].norm()) for i in range(2) for j in range(2)]
        heads.append(torch.stack(cosines).view(2, 2).softmax(dim=1) @ v)
    expected = attention.project_out(torch.cat(heads).view(1, 4, 3, 5))
    torch.testing.assert_close(attention(features), expected)


def test_weather_queries_ask_the_same_of_every_image_and_tokens_do_not() -> None:
    attention = Attention(8, num_heads=2, reduction=1, num_queries=3)
    features = normal(2, 8, 2, 3)
    asked = attention(features)
    assert asked.shape == (2, 6, 8)
    torch.testing.assert_close(
        asked[:, 0], asked[:, 1]
    )  # two tokens in a row ask the same of the three queries' six
    assert not torch.allclose(asked[:, 1], asked[:, 2])
    shuffled = features.flatten(2)[:, :, torch.tensor([3, 1, 4, 0, 5, 2])].view_as(features)
    torch.testing.assert_close(
        attention(shuffled), asked
    )  # queries don't know where the answer comes from


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (1, 3)])
def test_the_deformable_convolution_is_torchvisions(size: tuple[int, int]) -> None:
    features, weight = normal(2, 3, *size).requires_grad_(), normal(4, 3, 3, 3, seed=1).requires_grad_()
    offset, mask = (
        (2 * normal(2, 18, *size, seed=2)).requires_grad_(),
        normal(2, 9, *size, seed=3).requires_grad_(),
    )
    ours = deformable_convolution(features, offset, mask, weight)
    theirs = deform_conv2d(features, offset, weight, padding=1, mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), (features, offset, mask, weight)) for o in (ours, theirs)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    plain = deformable_convolution(features, torch.zeros_like(offset), torch.ones_like(mask), weight)
    torch.testing.assert_close(plain, F.conv2d(features, weight, padding=1), rtol=1e-4, atol=1e-4)


def test_the_queue_is_first_in_first_out() -> None:
    queue = KeyQueue(6, 2)
    at_first = queue.keys.clone()
    batches = [torch.full((2, 2), float(i)) for i in range(1, 5)]
    for batch in batches[:2]:
        queue.push(batch)
    assert torch.equal(queue.keys, torch.cat([*batches[:2], at_first[4:]]))
    for batch in batches[2:]:
        queue.push(batch)
    assert torch.equal(queue.keys, torch.cat([batches[3], *batches[1:3]])), "the oldest two gave way"
    with pytest.raises(ValueError, match="make it a multiple"):
        queue.push(torch.zeros(4, 2))


def test_the_queues_logits_are_mocos() -> None:
    queue = KeyQueue(4, 3)
    query, key = F.normalize(normal(2, 3), dim=1), F.normalize(normal(2, 3, seed=1), dim=1)
    logits = queue.logits(query, key, temperature=0.5)
    for i in range(2):
        expected = [query[i] @ key[i], *(query[i] @ negative for negative in queue.keys)]
        torch.testing.assert_close(logits[i], torch.stack(expected) / 0.5)


def test_the_key_encoder_follows_with_momentum() -> None:
    torch.manual_seed(0)
    model = AirNet(num_features=3, num_groups=1, num_blocks=1, embedding_dim=4)
    for key, query in zip(model.key_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(key, query), "it starts as a copy"
        assert not key.requires_grad
    before = copy.deepcopy(model.key_encoder)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.normal_()
    update_momentum(model.key_encoder, model.encoder, 0.9)
    for key, old, query in zip(
        *(m.parameters() for m in (model.key_encoder, before, model.encoder)), strict=True
    ):
        torch.testing.assert_close(key, 0.9 * old + 0.1 * query)


def test_psnr_loss_is_minus_the_mean_psnr() -> None:
    gt = torch.zeros(2, 3, 4, 4)
    restored = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert psnr_loss(restored, gt).item() == pytest.approx(-30, abs=1e-3)


VIT = {
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "embed_dim": 12,
}
SDE = IRSDE(num_steps=40, max_sigma=50.0)
CLEAN, MU = normal(1, 3, 4, 4).sigmoid().double(), normal(1, 3, 4, 4, seed=1).sigmoid().double()


def step(t: int) -> torch.Tensor:
    return torch.tensor([t])


def test_ir_sde_goes_from_the_clean_image_to_the_degraded_one_and_noise() -> None:
    assert torch.equal(SDE.mean(CLEAN, MU, step(0)), CLEAN)
    assert SDE.deviation(step(0), CLEAN).item() == 0
    torch.testing.assert_close(SDE.mean(CLEAN, MU, step(40)) - MU, 0.005 * (CLEAN - MU))
    assert SDE.deviation(step(40), CLEAN).item() == pytest.approx(50 / 255, rel=1e-4)
    assert (SDE.rates()[1:] > 0).all()


def test_ir_sdes_posterior_steps_undo_its_forward_in_closed_form() -> None:
    """For a known x_0 every x_t is normal: mean and variance of the reverse chain are those of the forward process."""
    mean, variance = SDE.mean(CLEAN, MU, step(40)), SDE.deviation(step(40), CLEAN).square()
    for t in range(40, 0, -1):
        # previous_mean is affine in the state: slope a and its value at the mean give the next mean and variance
        a = SDE.previous_mean(mean + 1, CLEAN, MU, step(t)) - SDE.previous_mean(
            mean, CLEAN, MU, step(t)
        )
        mean = SDE.previous_mean(mean, CLEAN, MU, step(t))
        variance = a.square() * variance + SDE.previous_deviation(step(t), CLEAN).square()
        torch.testing.assert_close(mean, SDE.mean(CLEAN, MU, step(t - 1)))
        wanted = SDE.deviation(step(t - 1), CLEAN).square().expand(variance.shape)
        torch.testing.assert_close(variance, wanted, atol=1e-12, rtol=1e-7)
    torch.testing.assert_close(mean, CLEAN)


def test_a_perfect_noise_prediction_brings_back_the_clean_image() -> None:
    noise = normal(1, 3, 4, 4, seed=2).double()
    for t in (1, 20, 40):
        state = SDE.mean(CLEAN, MU, step(t)) + SDE.deviation(step(t), CLEAN) * noise
        torch.testing.assert_close(SDE.clean_image(state, MU, noise, step(t)), CLEAN)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "tolerance"), [("posterior", 3, 1e-6), ("sde", 1000, 1e-4)]
)
def test_da_clips_step_from_the_true_noise_is_the_best_one(
    sampler: str, num_steps: int, tolerance: float
) -> None:
    """So training asks for the noise and nothing else; Euler's steps reach the best ones as they become small."""
    tiny = {"image_encoder": VIT, "features": 8, "multipliers": [1, 2], "attention_level": 1}
    model = DaClip(**tiny, num_steps=num_steps, sampler=sampler)
    clean, mu, noise = CLEAN.float(), MU.float(), normal(1, 3, 4, 4, seed=2)
    for t in (1, num_steps // 2 + 1, num_steps):
        state = model.sde.mean(clean, mu, step(t)) + model.sde.deviation(step(t), clean) * noise
        best = model.sde.previous_mean(state, clean, mu, step(t))
        for clamp in (False, True):
            found = model.step_mean(state, mu, noise, step(t), clamp)
            torch.testing.assert_close(found, best, rtol=0, atol=tolerance)


def test_a_wrong_prediction_can_not_leave_the_range_of_images() -> None:
    model = DaClip(
        {**VIT}, features=8, multipliers=[1, 2], attention_level=1, num_steps=3, sampler="posterior"
    )
    mu, wrong = MU.float(), 100 * normal(1, 3, 4, 4)
    assert model.step_mean(mu, mu, wrong, step(1)).abs().max() > 2
    last = model.step_mean(mu, mu, wrong, step(1), clamp=True)
    assert last.aminmax().min >= 0
    assert last.aminmax().max <= 1


def test_the_reverse_sde_of_many_steps_ends_at_the_clean_image() -> None:
    """Euler's steps with the true score agree with the closed form as the steps become small."""
    errors = []
    for num_steps in (20, 160):
        sde = IRSDE(num_steps, 50.0)
        state = sde.mean(CLEAN, MU, step(num_steps)) + sde.deviation(step(num_steps), CLEAN) * normal(
            1, 3, 4, 4, seed=3
        )
        for t in range(num_steps, 0, -1):
            noise = (state - sde.mean(CLEAN, MU, step(t))) / sde.deviation(step(t), CLEAN)
            state = sde.reverse_mean(state, MU, noise, step(t))
            if t > 1:
                state = state + sde.reverse_deviation(step(t), CLEAN) * normal(1, 3, 4, 4, seed=t)
        errors.append((state - CLEAN).abs().mean().item())
    assert errors[1] < errors[0]
    assert errors[1] < 0.03


REGNET = {
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "regnetx_002",
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "embed_dim": 12,
}


@pytest.mark.parametrize("tower", [VIT, REGNET], ids=["vit", "regnet"])
def test_the_controller_starts_as_clip_itself(tower: dict) -> None:
    torch.manual_seed(0)
    clip = ImageEncoder(**tower).eval()
    controlled = ControlledClip(copy.deepcopy(clip), 12, num_classes=3)
    images = normal(2, 3, 32, 32).sigmoid()
    with torch.no_grad():
        content, degradation = controlled(images)
        own = clip(images)
        assert torch.equal(content, own), "and not normalised"
        assert (own.norm(dim=1) - 1).abs().min() > 0.1
        assert torch.equal(controlled.clip_embedding(images), own)
        assert torch.equal(degradation, own)
        for zero in controlled.zeros:
            zero.linear.bias.normal_()
        assert not torch.allclose(controlled(images)[0], own)
        assert torch.equal(controlled(images)[1], own), (
            "the control reads the image, not the controlled tower"
        )
    assert len(controlled.zeros) == len(tower_blocks(clip))
    assert not any(block._forward_hooks for encoder in (controlled.clip, controlled.control)
                   for block, _ in tower_blocks(encoder)), "hooks are gone after a call"  # fmt: skip


def test_one_content_token_is_the_same_for_every_pixel() -> None:
    torch.manual_seed(0)
    attention = ContentAttention(16, 5)
    content = normal(2, 5)
    k, v = attention.content_k(content[:, None]), attention.content_v(content[:, None])
    attended = attention.attend(normal(2, 9, 16), k, v)
    torch.testing.assert_close(attended, v.expand(2, 9, 16))


def test_attention_to_the_content_starts_at_its_skip() -> None:
    """The authors set project_out to zero: what is left is the features and the norm around the block."""
    torch.manual_seed(0)
    attention = ContentAttention(16, 5)
    features = normal(2, 16, 3, 4)
    assert not any(parameter.any() for parameter in attention.project_out.parameters())
    centred = features - features.mean(dim=1, keepdim=True)
    normed = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(attention(features, normal(2, 5)), features + normed)


@pytest.mark.parametrize("layer", range(3))
def test_a_vits_controls_are_added_in_reverse_order(layer: int) -> None:
    """Whatever the control of one block adds, the mirrored block of the frozen tower passes on."""
    torch.manual_seed(0)
    vision = {**VIT["vision_cfg"], "layers": 3}
    clip = ImageEncoder(vision, embed_dim=12, quick_gelu=False).eval()
    controlled = ControlledClip(copy.deepcopy(clip), 12, num_classes=3)
    shift = normal(32)
    with torch.no_grad():
        controlled.zeros[layer].linear.bias.copy_(shift)
    images = normal(2, 3, 32, 32).sigmoid()
    block = clip.visual.transformer.resblocks[2 - layer]
    handle = block.register_forward_hook(lambda _, inputs, output: output + shift)
    with torch.no_grad():
        expected = clip(images)
        torch.testing.assert_close(controlled(images)[0], expected)
        handle.remove()
        assert not torch.allclose(clip(images), expected, atol=1e-3)


def test_each_stage_of_a_timm_tower_gets_its_own_control() -> None:
    torch.manual_seed(0)
    controlled = ControlledClip(ImageEncoder(**REGNET).eval(), 12, num_classes=3)
    widths = [width for _, width in tower_blocks(controlled.clip)]
    assert len(set(widths)) > 1, "in reverse order they would not fit"
    assert [zero.linear.in_features for zero in controlled.zeros] == widths
    with torch.no_grad():
        for zero in controlled.zeros:
            zero.linear.weight.normal_(std=0.1)
    content, _ = controlled(normal(2, 3, 32, 32).sigmoid())
    assert content.shape == (2, 12)


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (39, 100)])
def test_clip_sees_the_middle_of_an_image_that_is_no_square(size: tuple[int, int]) -> None:
    """torchvision's Resize of the short side and CenterCrop, which the authors' preprocessing is, on PIL images."""
    images = F.interpolate(normal(1, 3, 8, 8).sigmoid(), size, mode="bicubic").clamp(0, 1)
    pixels = images.mul(255).round().byte()
    theirs = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor()])(
        to_pil_image(pixels[0])
    )
    torch.testing.assert_close(clip_view(pixels / 255, 32)[0], theirs, rtol=0, atol=1.01 / 255)
    square = images[..., :30, :30]
    assert torch.equal(clip_view(square, 32), square)


def test_transweathers_heads_and_epsilons_are_the_published_ones() -> None:
    """Heads 1, 2, 4, 4 of the stages and 1, 2, 2 inside the patches; the norms of patches have PyTorch's epsilon."""
    with torch.device("meta"):
        model = TransWeather()
    assert [stage.blocks[0].attention.num_heads for stage in model.stages] == [1, 2, 4, 4]
    assert [stage.blocks[0].attention.num_heads for stage in model.inner_stages] == [1, 2, 2]
    assert {block.attention.num_heads for block in model.query_decoder.blocks} == {8}
    patches = [m for m in model.modules() if isinstance(m, PatchEmbedding | PatchReduction)]
    norms = {id(module.norm): module.norm.eps for module in patches}
    assert len(norms) == 8 + 9
    assert set(norms.values()) == {1e-5}
    others = [
        m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm) and id(m) not in norms
    ]
    assert set(others) == {1e-6}


def test_transweathers_first_weights_are_distributed_as_published() -> None:
    """Linear: deviation 0.02; convolutions: sqrt(2 / fan-out); biases 0; the tail of the decoder as PyTorch has it."""
    torch.manual_seed(0)
    model = TransWeather()
    tail = ("double", "residual", "output")
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.startswith(tail) or not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            continue
        wanted = 0.02
        if isinstance(module, torch.nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            wanted = (2 * module.groups / (kernel * module.out_channels)) ** 0.5
        spread = (
            4 / (2 * weight.numel()) ** 0.5
        )  # four standard errors of a deviation, over the deviation
        assert weight.std().item() == pytest.approx(wanted, rel=spread), name
        assert abs(weight.mean().item()) < 4 * wanted / weight.numel() ** 0.5, name
        assert not module.bias.any(), name
    assert model.output.bias.any()
    assert model.residuals[0].conv1.weight.abs().max() < (320 * 9) ** -0.5 * 1.001, (
        "uniform within 1 / sqrt(fan-in)"
    )
    queries = model.query_decoder.blocks[0].attention.queries
    assert queries.std().item() == pytest.approx(1, abs=0.02)
