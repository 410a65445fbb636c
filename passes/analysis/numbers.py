"""Numbers at which a step graph may behave otherwise: of positions, and of the values of inputs.

A window, a chunk, a period or an end shows once positions pass it, and a token that separates
documents shows once it occurs.  What runs a graph to compare it asks here how far it has to go and
what it has to draw.  These are hints for a trial, never a proof.
"""

from collections.abc import Iterable, Iterator
from itertools import permutations

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import constant
from intaglio.state import PAST_LENGTH

BREAKS = frozenset(
    "Abs Cast Ceil Clip Equal Floor Gather GatherND Greater GreaterOrEqual Less LessOrEqual Max "
    "Min Mod Relu Round Sign Slice Where".split()
)
"""Operators that do something else from some number on."""

COMPARE = frozenset("Equal Greater GreaterOrEqual Less LessOrEqual".split())
SAME = frozenset("Cast Expand Identity Reshape Squeeze Transpose Unsqueeze".split())
SHAPED = frozenset("Expand Reshape Squeeze Unsqueeze".split())  # whose further inputs are shapes
LARGEST = 2**24
FEW = 8  # numbers of one place of which products and quotients are taken


def position_numbers(graph: ir.Graph) -> set[int]:
    """Whole numbers above 1 that positions are computed or compared with, as far as they show.

    Where a place has several, as 1.2 and 0.002, the quotient and the product count as well.
    """
    positional = _positional(graph)
    found: set[int] = set()
    for node in graph.all_nodes():
        if node.op_type in BREAKS and any(value in positional for value in node.inputs):
            numbers = set(_constants(node, positional))
            found |= {*combined(numbers, pairs=len(numbers) <= FEW)}
    return found


def compared_values(graph: ir.Graph) -> dict[str, set[int]]:
    """Whole numbers that the entries of integer inputs are compared with, by input."""
    origins = {
        value: str(value.name)
        for value in graph.inputs
        if value.dtype is not None and value.dtype.is_integer() and value.name != PAST_LENGTH
    }
    found: dict[str, set[int]] = {name: set() for name in origins.values()}
    for node in graph:
        given = next((origins[v] for v in node.inputs if v is not None and v in origins), None)
        if given is None:
            continue
        if node.op_type in SAME:
            origins[node.outputs[0]] = given
        elif node.op_type in COMPARE:
            for number in _numbers(node.inputs):
                if number.is_integer():
                    found[given] |= {int(number) + near for near in (-1, 0, 1)}
    return {name: numbers for name, numbers in found.items() if numbers}


def _positional(graph: ir.Graph) -> set[ir.Value]:
    """What is computed from past lengths and sizes alone."""
    found = {value for value in graph.inputs if value.name == PAST_LENGTH}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        free = [value for value in inputs if constant(value) is None]
        if node.op_type == "Shape" or (free and all(value in found for value in free)):
            found.update(node.outputs)
    return found


def _constants(node: ir.Node, positional: set[ir.Value]) -> Iterator[float]:
    """The numbers in whatever positions pass through on their way to `node`."""
    seen, waiting = {node}, [node]
    while waiting:
        here = waiting.pop()
        yield from _numbers(here.inputs[:1] if here.op_type in SHAPED else here.inputs)
        for value in here.inputs:
            maker = None if value is None or value not in positional else value.producer()
            if maker is not None and maker not in seen and maker.op_type != "Shape":
                seen.add(maker)
                waiting.append(maker)


def _numbers(values: Iterable[ir.Value | None]) -> Iterator[float]:
    for array in map(constant, values):
        if array is not None and array.dtype.kind in "iuf" and array.size == 1:
            number = float(array.reshape(()).astype(np.float64))
            if np.isfinite(number) and number:
                yield abs(number)


def combined(numbers: set[float], *, pairs: bool = True) -> Iterator[int]:
    """Whole numbers above 1 among `numbers` and what they divide; of `pairs` what two make."""
    found = {*numbers, *(1 / number for number in numbers)}
    if pairs:
        found |= {x for a, b in permutations(numbers, 2) for x in (a / b, a * b)}
    yield from (round(number) for number in found if 1 < number < LARGEST)
