"""Training: data, losses and the loop. Needs torch (`pip install sparsedet[train]`)."""
