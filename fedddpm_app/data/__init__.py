"""Data: sources, partitioning and tensors, without Flower apps and models."""

import datasets

datasets.disable_progress_bars()
