"""Data: sources, partitioning, tensors. No Flower apps, no models."""
