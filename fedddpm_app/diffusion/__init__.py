"""Diffusion models on diffusers: model factory, images as tensors, objective, sampling. No Flower and no data sets."""
