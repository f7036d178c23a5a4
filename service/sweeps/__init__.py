"""Sweeps: groups of jobs that try several settings, and which of them did best."""
