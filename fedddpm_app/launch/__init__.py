"""One run by the `flwr` command: started, followed, fetched."""
