"""The ablations of Tables II-V: the model that each one needs, its mark in the weights, its decoder.

Rows of Tables II-IV use the VAE's own decoder and compare with Ours_S, so that no decoder is retrained for them.
"""

from dataclasses import dataclass
from typing import Literal

Decoder = Literal["refined", "sd", "consistency"]


@dataclass(frozen=True)
class Ablation:
    """One row.

    Attributes:
        title: as the paper prints it.
        stage: the stage that trains it (`diffrestorer train STAGE ablation=...`).
        decoder: the decoder of its latents.
        component, key, value: the setting of a model trained so; empty where the weights do not show it.
    """

    title: str
    stage: str = "stage1"
    decoder: Decoder = "sd"
    component: str = ""
    key: str = ""
    value: bool = False

    def command(self, name: str, folder: str) -> str:
        """Return the command that trains it where evaluation looks for it."""
        stage1 = " stage1=OUTPUT_DIR" if self.stage == "decoder" else ""
        launch = f"accelerate launch -m diffrestorer train {self.stage}"
        return f"{launch} ablation={name}{stage1} output_dir={folder}/{name}"


ABLATIONS: dict[str, Ablation] = {
    "no_semantic": Ablation("w/o B_s", component="prompt_processor", key="semantic"),
    "no_degradation": Ablation("w/o P_D", component="prompt_processor", key="degradation"),
    "no_dmb_cd": Ablation("w/o DMB + CD", component="control_encoder", key="modulate"),
    "no_dmb": Ablation("w/o DMB", component="control_encoder", key="modulate"),
    "no_cd": Ablation("w/o CD"),
    "no_aux_loss": Ablation("w/o L_deg + L_rec"),
    "no_deg_loss": Ablation("w/o L_deg"),
    "consistency_decoder": Ablation("Consistency Decoder", decoder="consistency"),
    "no_drb": Ablation("Ours decoder w/o DRB", "decoder", "refined", "decoder", "refine"),
}
"""Name, as in `ablation=NAME` -> ablation."""
