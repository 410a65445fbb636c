"""The forms in which a graph holds a parameter: float, of few bits, or as a product of factors.

Which initializers make up which parameter is told by operators, by the suffixes of derived weights
(docs/names.md) and by metadata.  Each form writes its parameter out, in the parameter's own layout,
so that forms of two graphs can be compared.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.graph_keys import LOW_BIT, MADE_OF, PARTS, ROWS
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.low_bit_codes import CodeSizes, values_of, write_blocks, write_codes
from intaglio.runtime.onnx_graph import Node, OnnxGraph, Tensor

Array = npt.NDArray[Any]

_CODES = re.compile(r"(.+?)(\.T)?\.codes$")
_SECOND = re.compile(r"(.+)\.second\.weight$")
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_OWN = ("intaglio::AffineLowBitMatMul", "intaglio::AffineLowBitGather")
_BLOCKS = {
    "com.microsoft::MatMulNBits": (1, 2, 3),
    "com.microsoft::GatherBlockQuantized": (0, 2, 3),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of a parameter.

    Attributes:
        kind: what it is, in words: ``float32``, ``4 bits, groups of 32``, ``rank 8``.
        tensors: the initializers that it reads; several parameters may share one.
        bits: of an element, by which the more exact of two forms is known.
        made_of: the parameters that it was computed from.
        floats: whether it is a float initializer, or rows of one.
        factors: names of the factors, which are parameters of their own.
        write: writes it out, [N, K] or whatever shape the parameter has; None where numbers are
            missing or do not fit each other.
    """

    kind: str
    tensors: frozenset[str]
    bits: float
    made_of: frozenset[str]
    write: Callable[[], Array | None]
    floats: bool = False
    factors: frozenset[str] = frozenset()


def forms_of(bundle: Bundle, graph: OnnxGraph) -> dict[str, list[Form]]:
    """The forms of each parameter that `graph`, one of `bundle`, holds, by the parameter's name."""
    found: dict[str, list[Form]] = {}
    packed = [*_low_bit(bundle, graph), *_in_blocks(bundle, graph)]
    parts = {tensor for _, form in packed for tensor in form.tensors}  # scales are no parameters
    for name, form in (*_floats(bundle, graph, parts), *packed):
        known = found.setdefault(name, [])
        if all(form.tensors != each.tensors for each in known):
            known.append(form)
    for name, form in list(_products(found)):
        found.setdefault(name, []).append(form)
    return found


def _floats(
    bundle: Bundle, graph: OnnxGraph, others: Collection[str]
) -> Iterator[tuple[str, Form]]:
    """Float initializers, and those that several of them were put one above the other in."""
    for tensor in graph.tensors.values():
        if tensor.dtype not in _FLOATS or tensor.name in others:
            continue
        parts = _named(graph, tensor.name, PARTS)
        rows = _told(graph, tensor.name, ROWS)
        bits = 8.0 * tensor.nbytes / tensor.size if tensor.size else 0.0
        for name, place in _places(tensor, parts, rows):
            yield (
                name,
                Form(
                    kind=tensor.dtype,
                    tensors=frozenset([tensor.name]),
                    bits=bits,
                    made_of=_sources(graph, tensor.name, name),
                    write=partial(_cut, bundle, tensor, place),
                    floats=True,
                ),
            )


def _places(tensor: Tensor, parts: Sequence[str], rows: Any) -> Iterator[tuple[str, slice | None]]:
    """The weights in an initializer, and the rows that each has of it; None is all."""
    if not parts:
        yield tensor.name, None
        return
    fits = isinstance(rows, list) and len(rows) == len(parts) and bool(tensor.shape)
    if not fits or not all(type(n) is int and n >= 0 for n in rows):
        return
    if sum(rows) != tensor.shape[0]:
        return
    start = 0
    for name, count in zip(parts, rows, strict=True):
        yield name, slice(start, start + count)
        start += count


def _cut(bundle: Bundle, tensor: Tensor, place: slice | None) -> Array | None:
    values = values_of(bundle, tensor)
    return values if values is None or place is None else values[place]


def _low_bit(bundle: Bundle, graph: OnnxGraph) -> Iterator[tuple[str, Form]]:
    """NAME.codes, NAME.scale and NAME.offset, which one of our own operators reads."""
    for node in graph.nodes:
        sizes = CodeSizes.of(node.integers)
        tensors = _inputs(node, graph, (1, 2, 3)) if node.op in _OWN else None
        if sizes is None or tensors is None:
            continue
        codes, scale, offset = tensors
        for name, turned in _stands_for(graph, codes.name, [codes.name]):
            yield (
                name,
                Form(
                    kind=sizes.words,
                    tensors=frozenset(each.name for each in tensors if each is not None),
                    bits=sizes.bits,
                    made_of=_sources(graph, codes.name, name),
                    write=partial(write_codes, bundle, codes, scale, offset, sizes, turned=turned),
                ),
            )


def _in_blocks(bundle: Bundle, graph: OnnxGraph) -> Iterator[tuple[str, Form]]:
    """The blocks that ONNX Runtime's kernels read; metadata tells what they were."""
    for node in graph.nodes:
        places = _BLOCKS.get(node.op)
        tensors = None if places is None else _inputs(node, graph, places)
        if tensors is None:
            continue
        data, scales, zeros = tensors
        told = _told(graph, data.name, LOW_BIT)
        bits, block = node.integers.get("bits", 4), node.integers.get("block_size", 0)
        if not isinstance(told, dict) or bits not in (2, 4, 8) or block < 1 or scales is None:
            continue
        offset = graph.tensors.get(str(told.get("offset")))
        if told.get("offset") is not None and offset is None:
            continue
        names = _named(graph, data.name, PARTS) or [data.name]
        stands_for = _stands_for(graph, data.name, names)
        rows = _told(graph, data.name, ROWS) if len(names) > 1 else list(data.shape[:1])
        each_bits = told.get("bits")
        if not isinstance(each_bits, list) or not len(each_bits) == len(names) == len(stands_for):
            continue
        read = (bundle, (data, scales, zeros, offset))
        used = frozenset(each.name for each in (*tensors, offset) if each is not None)
        for (name, turned), stored, (_, place) in zip(
            stands_for, each_bits, _places(data, names, rows), strict=False
        ):
            sizes = CodeSizes.of({**told, "bits": stored})
            if sizes is not None and place is not None:
                yield (
                    name,
                    Form(
                        kind=sizes.words,
                        tensors=used,
                        bits=sizes.bits,
                        made_of=_sources(graph, data.name, name),
                        write=partial(
                            _turned,
                            partial(write_blocks, *read, sizes, bits, block),
                            place,
                            turned=turned,
                        ),
                    ),
                )


def _stands_for(graph: OnnxGraph, name: str, codes: Sequence[str]) -> list[tuple[str, bool]]:
    """The parameter behind each of `codes`, which `name` holds, and whether it is turned."""
    told = _told(graph, name, LOW_BIT)
    if isinstance(told, dict):
        of, turned = told.get("of"), told.get("turned")
        if isinstance(of, list) and isinstance(turned, list):
            return [(str(each), bool(how)) for each, how in zip(of, turned, strict=False)]
    matches = [_CODES.match(each) for each in codes]
    return [(match[1], bool(match[2])) for match in matches if match is not None]


def _turned(read: Callable[[slice], Array | None], place: slice, *, turned: bool) -> Array | None:
    full = read(place)
    return full.T if turned and full is not None else full


def _products(found: Mapping[str, Sequence[Form]]) -> Iterator[tuple[str, Form]]:
    """X.weight, or X, as the product of what is called X.first.weight and X.second.weight.

    Layers that share their first factor are all among what that was made of.
    """
    firsts = [name for name in found if name.endswith(".first.weight")]
    for second, forms in found.items():
        match = _SECOND.match(second)
        if match is None:
            continue
        own = f"{match[1]}.first.weight"
        name = next((n for n in (f"{match[1]}.weight", match[1]) if n in forms[0].made_of), None)
        shared = [n for n in firsts if name in found[n][0].made_of]
        first = own if own in shared else shared[0] if len(shared) == 1 else None
        if name is None or first is None:
            continue
        left, right = forms[0], found[first][0]
        kinds = dict.fromkeys([left.kind, right.kind])
        yield (
            name,
            Form(
                kind=" and ".join(
                    ["two factors", *(k for k in kinds if not k.startswith("float"))]
                ),
                tensors=left.tensors | right.tensors,
                bits=0.0,
                made_of=frozenset([name]),
                write=partial(_multiply, right.write, left.write),
                factors=frozenset([first, second]),
            ),
        )


def _multiply(
    first: Callable[[], Array | None], second: Callable[[], Array | None]
) -> Array | None:
    """[N, r] [r, K] of a first [r, K] and a second [N, r], or the turned of both."""
    a, b = first(), second()
    if a is None or b is None or a.ndim != 2 or b.ndim != 2:
        return None
    a, b = a.astype(np.float32), b.astype(np.float32)
    pairs = [(b, a), (a, b)]
    fitting = [(x, y) for x, y in pairs if x.shape[1] == y.shape[0]]
    if not fitting:
        return None
    left, right = min(fitting, key=lambda pair: pair[0].shape[1])  # r is the short side
    product: Array = left @ right
    return product


def _inputs(
    node: Node, graph: OnnxGraph, places: Sequence[int]
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Three initializers that a node reads, the last two or none; None if it reads other values."""
    names = [node.inputs[place] if place < len(node.inputs) else "" for place in places]
    if any(name and name not in graph.tensors for name in names):
        return None
    first, second, third = (graph.tensors.get(name) for name in names)
    return None if first is None else (first, second, third)


def _told(graph: OnnxGraph, name: str, key: str) -> Any:
    """What metadata of an initializer says under `key`; None if nothing that can be read."""
    try:
        return json.loads(graph.metadata.get(name, {}).get(key, "null"))
    except ValueError:
        return None


def _named(graph: OnnxGraph, name: str, key: str) -> list[str]:
    told = _told(graph, name, key)
    fits = isinstance(told, list) and all(isinstance(each, str) for each in told)
    return told if fits else []


def _sources(graph: OnnxGraph, tensor: str, name: str) -> frozenset[str]:
    return frozenset(_named(graph, tensor, MADE_OF) or [name])
