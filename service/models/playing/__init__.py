"""Evaluations and films of saved models."""
