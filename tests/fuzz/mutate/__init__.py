"""Mutators that know a format: what they make still opens, and is wrong further inside.

Bytes that are flipped at random fail at the first check of a reader. Each mutator here takes a file
apart, changes one of its parts and puts it together again, with its lengths and checksums right;
one time in eight it damages the bytes of the whole instead.
"""

from .base import Mutator
from .pieces import archive, pickle, picture, settings
from .protobuf import protobuf
from .trees import json_text, packed, request, safetensors, xml

__all__ = [
    "Mutator",
    "archive",
    "json_text",
    "packed",
    "pickle",
    "picture",
    "protobuf",
    "request",
    "safetensors",
    "settings",
    "xml",
]
