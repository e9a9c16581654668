"""Evaluation: metrics of a model on data that it was not trained on."""
