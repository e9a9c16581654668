"""Federated training of diffusion models on Flower: FedDDPM (arXiv 2503.06426)."""
