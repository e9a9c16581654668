"""Evaluation: measures of a model on data it was not trained on."""
