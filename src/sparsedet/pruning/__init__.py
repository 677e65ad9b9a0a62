"""Pruning: which weights become zero, and when."""
