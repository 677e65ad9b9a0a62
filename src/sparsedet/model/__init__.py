"""What a model is: its configuration, its network, its file."""
