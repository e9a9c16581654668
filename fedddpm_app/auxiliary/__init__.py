"""FedDDPM's phase before the rounds: pretraining, then generation of the auxiliary set by the pretrained models."""
