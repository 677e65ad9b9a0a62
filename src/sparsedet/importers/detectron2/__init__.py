"""Detectron2's trained detectors (.pkl of its model zoo, .pth of its checkpointer)."""

from .c4 import layer_name, load_detectron2
from .config_yaml import Detectron2Settings, read_config_file

__all__ = ["Detectron2Settings", "layer_name", "load_detectron2", "read_config_file"]
