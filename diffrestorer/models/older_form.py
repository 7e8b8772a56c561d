"""Configurations of components as earlier versions saved them."""

from typing import Any


def current_form(config: dict[str, Any]) -> dict[str, Any]:
    """Return a component's configuration as today's classes take it.

    Before `models.mini` existed, mini's additions were arguments of the paper's own classes.
    """
    config = dict(config)
    if config.get("_class_name") == "DegradationAwareDecoder" and "patch_shortcut" in config:
        detail = config.pop("detail", False)
        if config.pop("patch_shortcut"):
            config |= {"_class_name": "MiniDecoder", "detail": detail}
    if config.get("_class_name") == "ControlEncoder" and "latent_channels" in config:
        if config["latent_channels"] is None:
            del config["latent_channels"]
        else:
            config["_class_name"] = "MiniControlEncoder"
    return config
