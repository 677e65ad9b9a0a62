"""Published models: catalogue, downloads, cache."""
