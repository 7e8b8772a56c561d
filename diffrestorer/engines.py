"""What runs the networks."""

from jaxtyping import Float, Int
from torch import Tensor

from diffrestorer.models.denoiser import ControlledUNet, Denoiser
from diffrestorer.models.prompt_processor import VisualPrompts
from diffrestorer.models.restorer import Conditioning, Restorer


class Engine:
    """Runs a restorer's networks in PyTorch, as they are."""

    def __init__(self, restorer: Restorer) -> None:
        self.restorer = restorer
        self.network = ControlledUNet(restorer)

    def condition(self, lq: Float[Tensor, "b 3 h w"], prompts: VisualPrompts) -> Conditioning:
        """See `Restorer.condition`."""
        return self.restorer.condition(lq, prompts)

    def denoiser(self, semantic_embedding: Float[Tensor, "b t s"], timesteps: Int[Tensor, " n"]) -> Denoiser:
        """See `Denoiser`."""
        return Denoiser(self.network, semantic_embedding, timesteps)

    def decode(
        self, latents: Float[Tensor, "b l h8 w8"], condition: Conditioning, refined: bool, fidelity: float
    ) -> Float[Tensor, "b 3 h w"]:
        """See `Restorer.decode`."""
        return self.restorer.decode(latents, condition, refined, fidelity)
