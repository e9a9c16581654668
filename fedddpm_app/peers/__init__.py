"""What peers without a server need: scores of samples on private data, the choice of a model, a ledger."""
