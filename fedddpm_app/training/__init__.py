"""Training: the one loop that every phase uses, what algorithms add to it, and what it trains on. No Flower."""
