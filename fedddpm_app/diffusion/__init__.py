"""Diffusion models on diffusers: model factory, images as tensors, objective, sampling. No Flower, no data sets."""
