"""The model files, the policies in them, and their evaluations and films."""
