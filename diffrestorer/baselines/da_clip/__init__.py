"""DA-CLIP: a controlled CLIP conditions a mean-reverting diffusion (IR-SDE) on an image's content and degradation.

Luo et al., "Controlling Vision-Language Models for Multi-Task Image Restoration", ICLR 2024, arXiv 2310.01018;
IR-SDE: Luo et al., "Image Restoration with Mean-Reverting Stochastic Differential Equations", ICML 2023, 2301.11699.
"""
