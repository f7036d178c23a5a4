"""Metrics, readiness and memory."""
