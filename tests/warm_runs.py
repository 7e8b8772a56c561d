"""Imported once by the fork server of `training_runs`: forks find the constructors' arguments read already.

A script checks its keys against the source files of diffusers' classes, which takes a fifth of a tiny run.
"""

import gc

from diffrestorer.config.composition import load
from diffrestorer.config.schema import Stage1Config

for model in ("mini", "sd15"):
    load("train_stage1", Stage1Config, [f"model={model}"])

gc.freeze()  # garbage collection in the forks passes over what was imported here
