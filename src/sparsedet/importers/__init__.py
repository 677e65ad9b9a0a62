"""Weights of other projects -> tensors of our layer table, one file for each foreign form."""
