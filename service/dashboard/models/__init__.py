"""The pages of all models, of one, and of two side by side."""
