"""Training: losses, data and the loop. Everything here needs torch (`pip install sparsedet[train]`)."""
