"""Pruned object detectors that run faster on a CPU, because the engine skips their zero weights.

>>> import sparsedet
>>> detector = sparsedet.Detector.load()
>>> for name, score, box in detector(sparsedet.read_image("street.jpg"), 0.5):
...     print(name, score, box)
"""

from .version import VERSION

TYPE_CHECKING = False  # typing's own would be imported before Ctrl-C can be silent

if TYPE_CHECKING:
    from .detections import Detections
    from .detector import Detector
    from .engine import available_isas
    from .errors import InputError
    from .images.read import read_image
    from .model.config import ModelConfig
    from .model.file import load_model, save_model
    from .model.presets import PRESETS, preset
    from .network import Model
    from .sinks import open_sink
    from .sources import open_source

__version__ = VERSION

__all__ = [
    "PRESETS",
    "Detections",
    "Detector",
    "InputError",
    "Model",
    "ModelConfig",
    "available_isas",
    "load_model",
    "open_sink",
    "open_source",
    "preset",
    "read_image",
    "save_model",
]

_MODULES = {
    "PRESETS": "model.presets",
    "Detections": "detections",
    "Detector": "detector",
    "InputError": "errors",
    "Model": "network",
    "ModelConfig": "model.config",
    "available_isas": "engine",
    "load_model": "model.file",
    "open_sink": "sinks",
    "open_source": "sources",
    "preset": "model.presets",
    "read_image": "images.read",
    "save_model": "model.file",
}
"""Public name -> its module, imported on first use: numpy and OpenCV take a third of a second."""


if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name):
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module 'sparsedet' has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
