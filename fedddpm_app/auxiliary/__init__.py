"""FedDDPM's phase before the rounds: pretraining, and generating the auxiliary set from the pretrained models."""
