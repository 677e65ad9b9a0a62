"""Training: losses, data and the loop, which need torch (`pip install sparsedet[train]`)."""
