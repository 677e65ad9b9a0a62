"""Exporters of models to files of other runtimes, one file for each format."""
