"""What runs the networks: PyTorch."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from diffrestorer.models.denoiser import ControlledUNet, Denoiser
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.models.restorer import Conditioning, Restorer


class Engine:
    """Runs a restorer's networks in PyTorch.

    Args:
        restorer: the networks, where and in the precision that they run in.
        compiler: of the denoising step; None: it runs as it is.
    """

    def __init__(self, restorer: Restorer, compiler: Callable[[nn.Module], Callable[..., Any]] | None = None) -> None:
        self.restorer = restorer
        self.network = ControlledUNet(restorer)
        self.step = compiler(self.network) if compiler else self.network

    def read_prompts(self, lq: Float[Tensor, "b 3 h w"]) -> VisualPrompts:
        """See `Restorer.read_prompts`."""
        return self.restorer.read_prompts(lq)

    def condition(self, lq: Float[Tensor, "b 3 h w"], prompts: VisualPrompts) -> Conditioning:
        """See `Restorer.condition`."""
        return self.restorer.condition(lq, prompts)

    def denoiser(self, semantic_embedding: Float[Tensor, "b t s"], timesteps: Int[Tensor, " n"]) -> Denoiser:
        """See `Denoiser`."""
        return Denoiser(self.network, semantic_embedding, timesteps, self.step)

    def decode(
        self, latents: Float[Tensor, "b l h8 w8"], condition: Conditioning, refined: bool, fidelity: float
    ) -> Float[Tensor, "b 3 h w"]:
        """See `Restorer.decode`."""
        return self.restorer.decode(latents, condition, refined, fidelity)
