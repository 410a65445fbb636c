"""How an operator is declared: what it takes and gives, what it carries along time, what it costs.

Every axis of every input and output has a name, as in the signatures of numpy's generalized
universal functions (https://numpy.org/doc/stable/reference/c-api/generalized-ufuncs.html):
``"batch time heads*K"``.  From names all else follows: which axis is time, how large a state is,
how many operations a node computes.  The declarations themselves are in `operators.py`.  Nothing
here needs PyTorch or onnx, so that whoever runs a bundle reads what whoever makes it does.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intaglio.state import BATCH, CAPACITY, PAST, TIME, Layout

DOMAIN = "intaglio"
ACTIVATIONS = "T"  # dtype of whatever follows the activations, fp16 included
SYMBOLS = (BATCH, CAPACITY, PAST, TIME)  # sizes that are not known before a step is taken

Dim = int | str
Shape = Sequence[Dim]


class UnknownSizeError(Exception):
    """A size does not follow from what is known."""


@dataclass(frozen=True)
class Formal:
    """An input or an output.

    Attributes:
        name: that of the operator's standard and of its arguments in PyTorch.
        dims: a term for each axis; ``|`` stands between shapes that it may have, and a first name
            with a star is all axes before the others.  None: it has no shape that others tell.
        dtype: `ACTIVATIONS`, or the one that it always has.
        optional: whether it may be left out.
        when: other `dims`, by an attribute that asks for them when it is not 0.
        absent: the number that fills it where it is left out, None where none does.
    """

    name: str
    dims: str | None = None
    dtype: str = ACTIVATIONS
    optional: bool = field(default=False, kw_only=True)
    when: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    absent: float | None = field(default=None, kw_only=True)

    def shapes(self, attributes: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
        """Each shape that it may have, as terms; none where it has no `dims`."""
        dims = next((dims for name, dims in self.when.items() if attributes.get(name)), self.dims)
        return () if dims is None else tuple(tuple(each.split()) for each in dims.split("|"))

    def time(self, attributes: Mapping[str, Any]) -> int | None:
        """The axis that is time, None where it is the same for all tokens."""
        return next((s.index(TIME) for s in self.shapes(attributes) if TIME in s), None)


@dataclass(frozen=True, kw_only=True)
class CarriedPort:
    """What an operator carries from call to call.

    Attributes:
        past: the input that holds it before the tokens of a call.
        present: the output that holds it after them.
        port: which of the operator's states it is, as states are named in a step graph.
        layout: how a session stores it; None for a cache, whose layout an export chooses.
        axis: the axis of a cache along which it holds tokens.
        initial: what fills it before the first token.
    """

    past: str
    present: str
    port: str
    layout: Layout | None
    axis: int | None = None
    initial: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Signature:
    """An operator of the ONNX standard (`domain` is empty) or of ours.

    Attributes:
        name: of its file, its tests, its kernels.
        ort_domain: where ONNX Runtime has a kernel for the same inputs and outputs, if anywhere.
        attributes: those that are integers or strings of an operator of our own.
        kinds: sizes that follow from the value of an attribute.
        operations: what is computed, as a term of sizes: always (""), and for each input given.
        tabled: inputs of which a call reads those of `rows` rows out of N alone.
        amplifies: whether steps may enlarge what was rounded, so that all is kept in fp32.
    """

    name: str
    onnx_type: str
    domain: str = ""
    ort_domain: str | None = None
    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    states: tuple[CarriedPort, ...] = ()
    attributes: Mapping[str, type] = field(default_factory=dict)
    kinds: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    operations: Mapping[str, str] = field(default_factory=dict)
    tabled: tuple[str, ...] = ()
    amplifies: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs, in their order."""
        return tuple(formal.name for formal in self.inputs)

    @property
    def recurrent(self) -> bool:
        """Whether it carries states, each stored in one way alone: not a cache."""
        return bool(self.states) and all(state.layout for state in self.states)

    @property
    def pasts(self) -> Mapping[str, CarriedPort]:
        """States by the input that holds each."""
        return {state.past: state for state in self.states}

    @property
    def presents(self) -> Mapping[str, CarriedPort]:
        """States by the output that holds each."""
        return {state.present: state for state in self.states}

    def formal(self, name: str) -> Formal:
        """The input or output called `name`."""
        return next(each for each in (*self.inputs, *self.outputs) if each.name == name)

    def carried(self, state: CarriedPort) -> str:
        """A state as tables tell it: port, shape, and dtype unless it follows the activations."""
        past = self.formal(state.past)
        sizes = ", ".join((past.dims or "").split())
        return f"{state.port} [{sizes}]" + f" {past.dtype}" * (past.dtype != ACTIVATIONS)

    def bind(
        self, shapes: Mapping[str, Shape | None], attributes: Mapping[str, Any]
    ) -> dict[str, int]:
        """Sizes by name, as far as attributes and the shapes of inputs and outputs tell them."""
        sizes = {name: value for name, value in attributes.items() if isinstance(value, int)}
        for name, kinds in self.kinds.items():
            sizes |= kinds.get(str(attributes.get(name)), {})
        pairs = [
            pair
            for formal in (*self.inputs, *self.outputs)
            for pair in _paired(formal.shapes(attributes), shapes.get(formal.name))
        ]
        pairs.sort(key=lambda pair: not pair[0].isidentifier())  # what needs no other size first
        known = -1
        while known < len(sizes):
            known = len(sizes)
            for term, dim in pairs:
                _solve(term, dim, sizes)
        return sizes

    def shape(
        self, name: str, sizes: Mapping[str, int], attributes: Mapping[str, Any]
    ) -> tuple[Dim, ...]:
        """The shape of an input or output; `SYMBOLS` that have no size stay as they are.

        Raises:
            UnknownSizeError: if another size is not known.
        """
        (terms, *_) = self.formal(name).shapes(attributes)
        return tuple(
            term if term in SYMBOLS and term not in sizes else evaluate(term, sizes)
            for term in terms
        )

    def work(self, sizes: Mapping[str, int], given: Sequence[str]) -> int:
        """Operations that a call with the inputs `given` computes.

        Raises:
            UnknownSizeError: if a size is not known.
        """
        terms = (term for name, term in self.operations.items() if not name or name in given)
        return sum(evaluate(term, sizes) for term in terms)


def _paired(options: Sequence[Sequence[str]], shape: Shape | None) -> list[tuple[str, Dim]]:
    """Terms with the dimensions that they stand for, where there is one reading alone."""
    if shape is None or len(options) != 1:
        return []
    (terms,) = options
    if terms and terms[0].startswith("*"):
        before = shape[: len(shape) - len(terms) + 1]
        whole = [dim for dim in before if isinstance(dim, int)]
        rows: Dim = math.prod(whole) if len(whole) == len(before) else "*".join(map(str, before))
        terms, shape = [terms[0][1:], *terms[1:]], [rows, *shape[len(before) :]]
    return list(zip(terms, shape, strict=True)) if len(terms) == len(shape) else []


def _solve(term: str, dim: Dim, sizes: dict[str, int]) -> None:
    """Learn the one size of a product that is not known, if there is one."""
    factors = term.split("*")
    missing = [factor for factor in factors if factor.isidentifier() and factor not in sizes]
    if not isinstance(dim, int) or len(missing) != 1:
        return
    others = [factor for factor in factors if factor != missing[0]]
    if all(factor.isidentifier() or factor.isdigit() for factor in others):
        known = evaluate("*".join(others) or "1", sizes)
        if known and dim % known == 0:
            sizes[missing[0]] = dim // known


_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(term: str, sizes: Mapping[str, int]) -> int:
    """A term of numbers and names: itself, sums, differences and products.

    Raises:
        UnknownSizeError: if it is no such term, or a name in it has no size.
    """
    try:
        return _evaluated(ast.parse(term, mode="eval").body, sizes)
    except (SyntaxError, KeyError, ValueError):
        raise UnknownSizeError(term) from None


def _evaluated(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_evaluated(left, sizes), _evaluated(right, sizes))
    raise ValueError(node)
