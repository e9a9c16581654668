"""Start, follow and fetch one run with the `flwr` command."""
