"""The model files and what can be asked of them."""
