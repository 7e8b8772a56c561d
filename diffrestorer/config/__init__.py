"""Configuration of the scripts: its fields, its composition by Hydra, and its checks."""
