"""Published models: their catalogue, downloads, and the cache folder."""
