"""Photographs: read from files, brought into the network input, drawn on."""
