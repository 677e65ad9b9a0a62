"""Pruned object detectors that run faster on a CPU, because the engine skips their zero weights.

>>> import sparsedet
>>> detector = sparsedet.Detector.load()
>>> for name, score, box in detector(sparsedet.read_image("street.jpg"), 0.5):
...     print(name, score, box)
"""

from .detections import Detections
from .detector import Detector
from .engine import available_isas
from .errors import InputError
from .images.read import read_image
from .model.config import ModelConfig
from .model.file import load_model, save_model
from .model.presets import PRESETS, preset
from .version import VERSION

__version__ = VERSION

__all__ = [
    "PRESETS",
    "Detections",
    "Detector",
    "InputError",
    "ModelConfig",
    "available_isas",
    "load_model",
    "preset",
    "read_image",
    "save_model",
]
