"""The walk over a graph: which operations run, in which order, and how long a value lives.

The torch model, exporters, calibration, pruning and the random test models all run a graph in this
way; each says only what an operation does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping, Sequence
from typing import Any, Generic, TypeVar

from .graph import Graph, Operation

Value = TypeVar("Value")


def walk(
    graph: Graph,
    given: Collection[str],
    wanted: Collection[str],
    keep: Collection[str] | None = None,
) -> Iterator[tuple[Operation, tuple[str, ...]]]:
    """The operations that lead from the given values to the wanted ones, in order.

    Args:
        graph: the graph.
        given: names of values that are known; their operations do not run.
        wanted: names of the values that are asked for.
        keep: values that do not die; default: `wanted`.

    Yields:
        An operation, and the values that die after it: no later operation reads them.

    Raises:
        KeyError: a value is unknown, or needs the image, which is not given.
    """
    keep = wanted if keep is None else keep
    needed: set[str] = set()
    open_values = [name for name in wanted if name not in given]
    while open_values:
        name = open_values.pop()
        if name not in needed:
            needed.add(name)
            open_values += [i for i in graph.by_name[name].inputs if i not in given]
    operations = [operation for operation in graph.operations if operation.name in needed]
    last: dict[str, int] = {name: -1 for name in given}
    for index, operation in enumerate(operations):
        last.update(dict.fromkeys((*operation.inputs, operation.name), index))
    for index, operation in enumerate(operations):
        dead = tuple(n for n, i in last.items() if i == index and n not in keep)
        yield operation, dead


class Interpreter(Generic[Value]):
    """Runs a graph. A subclass has a method for each kind of operation, named as the kind.

    A method takes the operation and the values of its inputs, and returns the operation's value.
    """

    def run(
        self, graph: Graph, values: MutableMapping[str, Value], wanted: Sequence[str]
    ) -> list[Value]:
        """The wanted values.

        Args:
            graph: the graph.
            values: given values by name. They are taken out as soon as no operation needs them.
            wanted: names of values.
        """
        for operation, dead in walk(graph, tuple(values), wanted):
            inputs = [values[name] for name in operation.inputs]
            values[operation.name] = self.execute(operation, inputs)
            del inputs
            for name in dead:
                values.pop(name, None)
        return [values[name] for name in wanted]

    def execute(self, operation: Operation, inputs: Sequence[Value]) -> Value:
        """The value of one operation."""
        method: Any = getattr(self, operation.kind)
        value: Value = method(operation, *inputs)
        return value
