"""Export of a completed run: a pipeline of diffusers with a model card, and its push to the Hugging Face hub."""
