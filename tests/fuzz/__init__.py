"""Fuzzing of what reads strangers' files: `python -m tests.fuzz all` runs every target."""

NAMES = (
    *("model_v1", "model_v2", "packed", "openvino_ir", "onnx", "pickle", "zip", "npz"),
    *("images", "coco", "kserve", "settings"),
)
"""The targets of `targets.TARGETS`; who fuzzes must not import that before it is instrumented."""

NATIVE = ("fuzz_jpeg", "fuzz_unpack", "fuzz_packed")
"""Of the native readers: programs of the CMake preset `fuzz`, tests/native/NAME.cpp."""
