"""The format of each value: which operations run on bytes or bfloat16, and where values change.

An operation runs in the precision that is asked for where it has a form of it, else in float32.
Where a value is read in another format than it is made in, a conversion stands between; a value has
at most one of each format. In int8, values that share memory or pass through unchanged (joins,
slices, poolings of the largest value, resizes) share one quantization: the union of their ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import InputError
from ..model.graph import (
    Attention,
    Conv,
    Graph,
    MaxPool,
    Mean,
    Normalise,
    Operation,
    Resize,
    RoiAlign,
    Slice,
)
from ..model.int8_ranges import ClippingThreshold, Range
from ..model.record import Record
from ..model.rewrite import HOISTED, is_predictor
from .elements import CHANNELS, PASSING, image_values, in_pairs, is_depthwise, keeps_elements
from .precision import Format
from .quantization import Quantization, negative_values, quantization_of, symmetric, union


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Planned(Record):
    """An operation of the native engine.

    Attributes:
        operation: its inputs are names of values in the formats that it reads; of a conversion,
            the operation whose value it converts, under the conversion's name.
        type: of the output.
        reads: the format of the first input.
        quantization: of the output, if that is int8.
        conversion: whether it is one; also a slice that begins inside a packed element.
    """

    operation: Operation
    type: Format
    reads: Format
    quantization: Quantization | None = None
    conversion: bool = False


def plan_formats(
    graph: Graph, precision: Format, ranges: Mapping[str, ClippingThreshold]
) -> list[Planned]:
    """The operations of a lowered graph with their formats, and the conversions between them.

    Args:
        graph: from `lower.lowered`.
        precision: "f32", "bf16" or "int8".
        ranges: for int8, the range of each value that is stored as bytes: [low, high], or the
            clipping threshold t, which is [0, t], or [-t, t] of values that may be negative.

    Raises:
        InputError: a value has no range.
    """
    return _Planner(graph, precision, ranges).run()


class _Planner:
    def __init__(
        self,
        graph: Graph,
        precision: Format,
        ranges: Mapping[str, ClippingThreshold],
    ) -> None:
        self.graph, self.precision, self.ranges = graph, precision, ranges
        self.negative = negative_values(graph)
        self.images = image_values(graph)
        self.runs: dict[str, Format] = {}  # by operation: the format of the first input
        self.made: dict[str, Format] = {}  # by value: the format in which it is made
        self.wanted: dict[str, set[Format]] = {name: set() for name in graph.shapes}
        self.planned: list[Planned] = []
        # Of values that are there already.
        self.names: dict[tuple[str, Format, Quantization | None], str] = {}
        self.taken = set(graph.shapes)  # names
        self.quantizations: dict[str, Quantization] = {}
        self.unfused: set[str] = set()  # poolings that read bytes after all
        self.found: dict[str, Range | None] = {}  # ranges by value

    def run(self) -> list[Planned]:
        if self.precision == "int8":
            for operation in self.graph.operations:  # in order: a range depends on those before it
                if self._counts(operation.name):
                    self._range(operation.name)
        for operation in reversed(self.graph.operations):
            self._choose(operation)
        if self.precision == "int8":
            self._quantise()
        for operation in self.graph.operations:
            self._emit(operation)
        return self.planned

    # ------------------------------------------------------------------ which format, backwards

    def _counts(self, name: str) -> bool:
        """Whether a value has a format: it is a map or RoIs."""
        shape = self.graph.shapes[name]
        return shape.domain == "map" or shape.per_roi

    def _choose(self, operation: Operation) -> None:
        """Choose the formats of an operation whose readers are known."""
        name, wanted = operation.name, self.wanted[operation.name]
        run = self.runs[name] = self._format_of(operation)
        made: Format = run
        if isinstance(operation.attributes, Conv) and run != "f32":
            made = self._made_by_convolution(operation)
        elif isinstance(operation.attributes, Mean) and self.graph.shapes[name].per_roi:
            made = "f32"
        elif isinstance(operation.attributes, RoiAlign):
            made = "f32" if wanted == {"f32"} or not self._known(name) else self.precision
            run = self.runs[name] = "f32" if made == "f32" else run
        self.made[name] = made
        for i, source in enumerate(operation.inputs):
            if self._counts(source):
                residual = isinstance(operation.attributes, Conv) and i > 0
                size_alone = isinstance(operation.attributes, Resize) and i > 0
                if not size_alone:
                    self.wanted[source].add(made if residual else run)

    def _format_of(self, operation: Operation) -> Format:
        """The format that an operation reads."""
        attributes, low = operation.attributes, self.precision
        makes_others = not self._counts(operation.name)  # detections and the like
        if makes_others or low == "f32" or isinstance(attributes, Attention):
            return "f32"
        if isinstance(attributes, Normalise):
            return low if low == "bf16" and in_pairs(self.graph, operation.name) else "f32"
        if isinstance(attributes, Conv):
            return self._format_of_convolution(operation)
        passing = isinstance(attributes, PASSING)
        if passing and not self._low_wanted(operation.name):
            return "f32"
        whole = keeps_elements(self.graph, operation, CHANNELS[low])
        if passing and not (whole and self._known(operation.name)):
            return "f32"
        if low == "bf16" or passing:
            return low
        if isinstance(attributes, Mean):
            return low if self.graph.shapes[operation.name].per_roi else "f32"
        if isinstance(attributes, RoiAlign):
            maps = operation.inputs[:-1]
            byte_zero = all(self._known(n) and not self._may_be_negative(n) for n in maps)
            return low if byte_zero else "f32"
        return "f32"

    def _format_of_convolution(self, operation: Operation) -> Format:
        low, source = self.precision, operation.inputs[0]
        if source in self.images:
            normalised = isinstance(self.graph.by_name[source].attributes, Normalise)
            paired = low == "bf16" and normalised and in_pairs(self.graph, source)
            return "bf16" if paired else "f32"
        if low == "bf16":
            mean = isinstance(self.graph.by_name[source].attributes, Mean)
            pooled = mean and self.graph.shapes[source].per_roi
            return "f32" if pooled else low  # pooled values are float32 as they are made
        if is_depthwise(self.graph, operation):
            return "f32"
        attributes, shape = operation.attributes, self.graph.shapes[source]
        assert isinstance(attributes, Conv)
        last = is_predictor(self.graph, operation.name) or not self.graph.readers[operation.name]
        if len(operation.inputs) > 1 and (last or not self._known(operation.name)):
            return "f32"  # its output is float32, to which bytes cannot be added
        if not self._known(source):
            return "f32"
        padded = shape.per_roi and max(attributes.padding) > 0
        return "f32" if padded and self._may_be_negative(source) else low

    def _made_by_convolution(self, operation: Operation) -> Format:
        """The format of the output of a convolution that does not run in float32."""
        name, low = operation.name, self.precision
        readers = self.graph.readers[name]
        if is_predictor(self.graph, name) or (not readers and low == "int8"):
            return "f32"
        if not self._known(name):
            return "f32"
        if is_depthwise(self.graph, operation):
            return low
        added = len(operation.inputs) > 1
        return "f32" if "f32" in self.wanted[name] and not added else low

    def _known(self, name: str) -> bool:
        """Whether bytes can hold a value; what has no range stays float32."""
        return self.precision != "int8" or self._range(name) is not None

    def _low_wanted(self, name: str) -> bool:
        """Whether a value that is only moved is moved in low precision.

        Float32 readers get what was never rounded: bytes for the others are made of that.
        """
        wanted = self.wanted[name]
        if self.precision == "bf16":
            return "bf16" in wanted or not wanted
        return wanted == {"int8"}

    def _may_be_negative(self, name: str) -> bool:
        """Whether a value, or one that shares its quantization, may be negative."""
        seen, open_names = {name}, [name]
        while open_names:
            current = open_names.pop()
            low, _ = self._range(current) or (0.0, 0.0)
            if low < 0:
                return True
            readers = self.graph.readers[current]
            linked = [r.name for r in readers if isinstance(r.attributes, PASSING)]
            if isinstance(self.graph.by_name[current].attributes, PASSING):
                linked += self.graph.by_name[current].inputs
            open_names += [n for n in linked if n not in seen]
            seen.update(linked)
        return False

    # ------------------------------------------------------------------------- quantization

    def _range(self, name: str) -> Range | None:
        """The range of a value; None: it is not known."""
        if name not in self.found:
            self.found[name] = self._find_range(name)
        return self.found[name]

    def _find_range(self, name: str) -> Range | None:
        given = self._given(name)
        if isinstance(given, tuple | list):
            return float(given[0]), float(given[1])
        if given is not None:
            return (-float(given) if name in self.negative else 0.0), float(given)
        operation = self.graph.by_name[name]
        if not isinstance(operation.attributes, (*PASSING, RoiAlign)):
            return None
        found = [self._range(source) for source in self._sources(operation)]
        known = [r for r in found if r is not None]
        return union(known) if known and len(known) == len(found) else None

    def _given(self, name: str) -> ClippingThreshold | None:
        """What the file says of a value, or of the layer that makes it."""
        conv = self.graph.by_name[name].attributes
        if isinstance(conv, Conv) and not conv.bias:
            return None  # hoisted: the range is that of the RoIAlign after it
        given = self.ranges.get(name.removeprefix(HOISTED))
        if given is None and isinstance(conv, Conv):
            return self.ranges.get(conv.layers[0])
        return given

    def _sources(self, operation: Operation) -> list[str]:
        """The inputs whose values an operation passes on."""
        if isinstance(operation.attributes, Resize):
            return list(operation.inputs[:1])
        return [name for name in operation.inputs if self._counts(name)]

    def _fused(self, operation: Operation) -> bool:
        """Whether a pooling makes bytes of float32 itself."""
        pool, source = operation.attributes, operation.inputs[0]
        return (
            isinstance(pool, MaxPool)
            and (pool.kernel, pool.stride) == (3, 2)
            and self.runs[operation.name] == "int8"
            and self.made[source] == "f32"
            and source not in self.negative
            and operation.name not in self.unfused
        )

    def _passes_bytes(self, operation: Operation) -> bool:
        """Whether the bytes of an output are those of the inputs."""
        passing = isinstance(operation.attributes, (*PASSING, RoiAlign))
        if not passing or self.runs[operation.name] != "int8":
            return False
        return not self._fused(operation) and not self._requantises(operation)

    def _requantises(self, operation: Operation) -> bool:
        """Whether an operation that moves bytes has a range of its own."""
        passing = isinstance(operation.attributes, PASSING)
        if not passing or self.runs[operation.name] != "int8" or self._fused(operation):
            return False
        return self._given(operation.name) is not None

    def _has_bytes(self, name: str) -> bool:
        """Whether a value is made in bytes, or converted to them."""
        if self.made[name] == "int8":
            return True
        for reader in self.graph.readers[name]:
            form = self.runs[reader.name]
            if isinstance(reader.attributes, Conv) and name in reader.inputs[1:]:
                form = "int8" if "int8" in (form, self.made[reader.name]) else form
            if isinstance(reader.attributes, Resize) and name != reader.inputs[0]:
                continue
            if form == "int8" and not self._fused(reader) and not self._requantises(reader):
                return True
        return False

    def _quantise(self) -> None:
        """One quantization for values that share memory or bytes."""
        group: dict[str, str] = {name: name for name in self.graph.shapes}

        def root(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        for operation in self.graph.operations:
            if self._passes_bytes(operation):
                for source in self._sources(operation):
                    group[root(source)] = root(operation.name)
        members: dict[str, list[str]] = {}
        for operation in self.graph.operations:
            if self._counts(operation.name) and self._has_bytes(operation.name):
                members.setdefault(root(operation.name), []).append(operation.name)
        for names in members.values():
            self.quantizations |= dict.fromkeys(names, self._quantization_of(names))
        wrong = {
            operation.name
            for operation in self.graph.operations
            if self._fused(operation) and self.quantizations[operation.name].zero_point
        }
        if wrong:  # such a pooling makes values that are not negative alone
            self.unfused |= wrong
            self._quantise()

    def _quantization_of(self, names: list[str]) -> Quantization:
        operations = [self.graph.by_name[name] for name in names]
        makers = [o.name for o in operations if not self._passes_bytes(o)]
        found = {name: self._range(name) for name in makers}
        if missing := [name for name, given in found.items() if given is None]:
            raise InputError(
                f"precision 'int8': the range of {missing[0]!r} is not known; "
                "make a file with all ranges by 'sparsedet quantize'"
            )
        low, high = union([given for given in found.values() if given is not None])
        if low < 0 and all(isinstance(self._given(name), int | float) for name in makers):
            return symmetric(high)
        return quantization_of(low, high)

    # ----------------------------------------------------------------------------- operations

    def _emit(self, operation: Operation) -> None:
        """Plan an operation, after the conversions of its inputs."""
        name, run, made = operation.name, self.runs[operation.name], self.made[operation.name]
        attributes, quantization = operation.attributes, self.quantizations.get(operation.name)
        moves = self._passes_bytes(operation) or self._requantises(operation)
        inside = False
        inputs = []
        for i, source in enumerate(operation.inputs):
            if not self._counts(source):
                inputs.append(source)
                continue
            form, stored = run, self.quantizations.get(source)
            if isinstance(attributes, Conv) and i > 0:
                form = made
            elif isinstance(attributes, Resize) and i > 0:
                form = self.made[source]
            elif self._fused(operation):
                form = "f32"
            elif isinstance(attributes, Slice):
                other = moves and stored != quantization
                inside = other or attributes.first % CHANNELS[made] != 0
                form = self.made[source] if other else form
            elif moves:
                stored = quantization
            inputs.append(self._in(source, form, stored if form == "int8" else None))
        same = tuple(inputs) == operation.inputs
        changed = operation if same else replace(operation, inputs=tuple(inputs))
        quantization = quantization if made == "int8" else None
        self.planned.append(Planned(changed, made, run, quantization, inside))
        self.names[name, made, quantization] = name

    def _in(self, source: str, form: Format, quantization: Quantization | None) -> str:
        """The name of a value in a format; it is converted if it is not there yet."""
        key = source, form, quantization
        if key not in self.names:
            name = f"{source} as {form}"
            while name in self.taken:
                name += "+"
            self.taken.add(name)
            origin = Operation(name, (source,), self.graph.by_name[source].attributes)
            self.planned.append(Planned(origin, form, self.made[source], quantization, True))
            self.names[key] = name
        return self.names[key]
