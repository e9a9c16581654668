"""Data: sources, partitioning, tensors. No Flower apps, no models."""

import datasets

datasets.disable_progress_bars()
