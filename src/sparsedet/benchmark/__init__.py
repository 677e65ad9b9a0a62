"""Measuring: the machine, the runtimes, and how they run in turn."""
