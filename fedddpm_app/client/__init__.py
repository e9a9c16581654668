"""The client: Flower's ClientApp for any task, its worker, and its state between rounds."""
