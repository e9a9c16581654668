"""What a run leaks: known attacks on its models and its auxiliary set, where the training images are at hand."""
