"""FedDDPM's phase, before the rounds or later: the clients' own models, then the auxiliary set that these generate."""
