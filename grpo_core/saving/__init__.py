"""The model file, and what of a model is in it."""
