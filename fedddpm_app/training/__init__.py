"""Training: the loop that every phase uses, the hooks of algorithms, and the task (model, loss, data). No Flower."""
