"""The same parameter in two graphs in different forms, and how far one is from the other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intaglio.runtime.bundle import Bundle
from intaglio.runtime.onnx_graph import OnnxGraph
from intaglio.runtime.weight_forms import Array, Form, forms_of

_AT_ONCE = 1 << 22  # elements that are compared in float64 at once


@dataclass(frozen=True, kw_only=True)
class WeightPair:
    """A parameter that two bundles hold in other forms; `a` and `b` say which.

    Attributes:
        error: |a - b| / |a| in the Frobenius norm, `b` in place of `a` below where it is the form
            of more bits; None if there are numbers that are not finite.
        largest: max|a - b|, in the unit of the weight; None as above.
    """

    name: str
    a: str
    b: str
    error: float | None
    largest: float | None

    @property
    def rank(self) -> float:
        """What sorts the worst first: what is not finite before all others."""
        return -math.inf if self.error is None else -self.error

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dict(vars(self))


def pair_weights(
    a: Bundle, b: Bundle, left: OnnxGraph, right: OnnxGraph
) -> tuple[list[WeightPair], frozenset[str]]:
    """Pair what both graphs hold of a parameter, where that is not a float of one dtype in both.

    Returns:
        The pairs, the worst first, and names of the initializers that they tell all of.
    """
    one, other = forms_of(a, left), forms_of(b, right)
    used: dict[str, set[str]] = {}  # parameters that each initializer is for
    for forms in (one, other):
        for name, known in forms.items():
            for tensor in {tensor for form in known for tensor in form.tensors}:
                used.setdefault(tensor, set()).add(name)
    found: dict[WeightPair, None] = {}
    told: set[tuple[str, str]] = set()
    for name in one.keys() & other.keys():
        kept = {t for f in one[name] for g in other[name] if _alike(f, g) for t in f.tensors}
        for first, second in _matches(one[name], other[name]):
            pair = _compared(name, first, second, (a, b), (left, right))
            if pair is None:
                continue
            if pair.a != pair.b or pair.error != 0:
                found[pair] = None
            tensors = first.tensors | second.tensors
            if first.floats or second.floats:
                tensors -= kept  # floats of one name on both sides, which are compared by name
            factors = first.factors | second.factors
            told |= {(each, tensor) for tensor in tensors for each in (name, *factors)}
    return sorted(found, key=lambda pair: (pair.rank, pair.name)), _whole(used, told)


def _matches(left: Sequence[Form], right: Sequence[Form]) -> Iterator[tuple[Form, Form]]:
    """Forms to compare: those alike with each other, others with the most exact."""
    alike = [(f, g) for f in left for g in right if _alike(f, g)]
    yield from ((f, g) for f, g in alike if not f.floats)
    best, other = (max(forms, key=lambda form: form.bits) for forms in (left, right))
    lone = [g for g in right if all(g is not known for _, known in alike)]
    yield from ((best, g) for g in lone)
    for f in left:
        told = f is best and any(g is other for g in lone)
        if not told and all(f is not known for known, _ in alike):
            yield f, other


def _alike(f: Form, g: Form) -> bool:
    return f.tensors == g.tensors and f.kind == g.kind


def _equal(
    f: Form, g: Form, bundles: tuple[Bundle, Bundle], graphs: tuple[OnnxGraph, OnnxGraph]
) -> bool:
    """Whether both are the same bytes under the same names."""
    if not _alike(f, g):
        return False
    for name in f.tensors:
        one, other = (
            graph.tensors[name].content(bundle)
            for graph, bundle in zip(graphs, bundles, strict=True)
        )
        if one is None or other is None or not np.array_equal(one, other):
            return False
    return True


def _compared(
    name: str,
    f: Form,
    g: Form,
    bundles: tuple[Bundle, Bundle],
    graphs: tuple[OnnxGraph, OnnxGraph],
) -> WeightPair | None:
    """None where one cannot be written out, or they are the same bytes or not of one shape."""
    if _equal(f, g, bundles, graphs):
        return None
    a, b = f.write(), g.write()
    if a is None or b is None or a.shape != b.shape or not a.size:
        return None
    error, largest = _errors(*((b, a) if g.bits > f.bits else (a, b)))
    return WeightPair(name=name, a=f.kind, b=g.kind, error=error, largest=largest)


def _errors(exact: Array, other: Array) -> tuple[float | None, float | None]:
    """|exact - other| / |exact| and max|exact - other|; None if a number is not finite."""
    exact, other = np.atleast_1d(exact), np.atleast_1d(other)
    norm = wrong = largest = 0.0
    step = max(1, _AT_ONCE * exact.shape[0] // exact.size)
    for start in range(0, exact.shape[0], step):
        x = exact[start : start + step].astype(np.float64)
        distance = np.abs(x - other[start : start + step])
        if not (np.isfinite(x).all() and np.isfinite(distance).all()):
            return None, None
        norm, wrong = norm + float(np.sum(x * x)), wrong + float(np.sum(distance**2))
        largest = max(largest, float(distance.max()))
    return math.sqrt(wrong / norm if norm else wrong), largest


def _whole(used: Mapping[str, set[str]], told: set[tuple[str, str]]) -> frozenset[str]:
    """The initializers all of whose parameters are told."""
    return frozenset(
        tensor for tensor, names in used.items() if all((name, tensor) in told for name in names)
    )
