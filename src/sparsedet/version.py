"""The package's version: a module of its own because packed weights in a file depend on it."""

VERSION = "0.1.0"
