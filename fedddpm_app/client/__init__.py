"""The client: Flower's ClientApp for any task, its worker, and what it keeps between rounds."""
