"""Train mini's base from a folder of photos: VAE, image encoder, UNet. See configs/train_base.yaml."""

from diffrestorer.cli.commands import run_command

if __name__ == "__main__":
    run_command("train base")
