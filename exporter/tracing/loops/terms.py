"""An unrolled program as terms: equal computations are one, and views and writes are gone.

`torch.export` at a fixed number of tokens gives every iteration of a loop as code of its own.  In
terms, what two iterations share is the same object, and what an iteration reads is said in one
form: ``select(x, axis, t)`` for a token, whether it was sliced, unbound or iterated over; a list
that was stacked, joined, grown or written in place entry by entry is one ``stack``.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

INPUT, WEIGHT = "input", "weight"  # ops of terms that compute nothing; their leaf is a name
ALWAYS = -1  # `latest` of what depends on no token

aten = torch.ops.aten
FULL = aten.full.default


@dataclass(eq=False)
class Term:
    """One computation; `leaves` are its arguments, flattened as `spec` says: terms and constants.

    `value` is a tensor without contents.  `latest` is the last token that the term depends on,
    `ALWAYS` without one; `fed` tells whether it depends on an input at all.  `order` grows from
    arguments to what is computed from them.
    """

    op: Any
    leaves: tuple[Any, ...]
    spec: Any
    value: Any
    order: int
    latest: int = ALWAYS
    fed: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)  # metadata of the node it came from

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments."""
        args, kwargs = pytree.tree_unflatten(list(self.leaves), self.spec)
        return tuple(args), kwargs

    @property
    def shape(self) -> tuple[int | SymInt, ...]:
        """Shape of the value, which is one tensor."""
        return tuple(self.value.shape)


class Terms:
    """The terms of one program, which was captured for `time` tokens."""

    def __init__(
        self,
        program: ExportedProgram,
        time: int,
        sizes: Mapping[str, Mapping[int, str]],
        rules: Mapping[Any, Callable[..., Term | None]],
        chunk: int = 1,
    ) -> None:
        """Read a program.

        Args:
            program: in functional form.
            time: the number of tokens, or of chunks of tokens, that it was captured at.
            sizes: names of the free axes of its inputs, by the names of all of them, in order.
            rules: what brings a term into its plainest form, by operator.
            chunk: tokens that an iteration takes together.
        """
        self.program, self.time, self.chunk = program, time, chunk
        self.tokens = time * chunk
        self._rules = rules
        self._known: dict[Any, Term] = {}
        self._sizes: dict[Any, Term] = {}
        self._source: Mapping[str, Any] = {}
        # by placeholder, whose name a capital or a keyword of Python makes another than the input's
        self._given = dict(zip(program.graph_signature.user_inputs, sizes.items(), strict=True))
        held = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
        self._mode = detect_fake_mode([value for value in held if isinstance(value, Tensor)])
        self.outputs = self._read()

    def __call__(self, op: Any, *args: Any, value: Any = None, **kwargs: Any) -> Term:
        """The term that applies `op`, in its plainest form; `value` is what is known to result."""
        rule = self._rules.get(op)
        found = None if rule is None else rule(self, *args, **kwargs)
        term = self.plain(op, *args, value=value, **kwargs) if found is None else found
        return self._folded(term)

    def _folded(self, term: Term) -> Term:
        """A counter that Python could have kept as a number is one."""
        parts = [leaf for leaf in term.leaves if isinstance(leaf, Term)]
        pointwise = isinstance(term.op, OpOverload) and torch.Tag.pointwise in term.op.tags
        if not pointwise or not parts or any(part.op is not FULL for part in parts):
            return term
        if any(not is_size(dim, 1) for part in (term, *parts) for dim in part.shape):
            return term
        given = [
            torch.full([], leaf.leaves[-2], dtype=leaf.value.dtype) if leaf in parts else leaf
            for leaf in term.leaves
        ]
        args, kwargs = pytree.tree_unflatten(given, term.spec)
        return self.filled(term.shape, term.op(*args, **kwargs).item(), term.value)

    def plain(self, op: Any, *args: Any, value: Any = None, **kwargs: Any) -> Term:
        """The term that applies `op` to just these arguments."""
        leaves, spec = pytree.tree_flatten(([*args], kwargs))
        key = (op, spec, tuple(map(_key, leaves)))
        if key not in self._known:
            if value is None:
                given = [leaf.value if isinstance(leaf, Term) else leaf for leaf in leaves]
                positional, named = pytree.tree_unflatten(given, spec)
                value = self.run(op, *positional, **named)
            parts = [leaf for leaf in leaves if isinstance(leaf, Term)]
            self._known[key] = Term(
                op,
                tuple(leaves),
                spec,
                value,
                order=len(self._known),
                latest=self._latest(op, leaves, parts),
                fed=any(part.fed for part in parts),
                source=self._source,
            )
        return self._known[key]

    def run(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """What `op` gives, without contents; what is free stays free."""
        with self._mode or contextlib.nullcontext(), enable_python_dispatcher():
            return op(*args, **kwargs)

    def _latest(self, op: Any, leaves: Sequence[Any], parts: Sequence[Term]) -> int:
        base = parts[0] if parts else None
        if base is not None and base.fed and op in (aten.select.int, aten.slice.Tensor):
            axis = leaves[1]
            if is_size(base.shape[axis], self.time) and len(parts) == 1:
                return int(leaves[2] if op is aten.select.int else leaves[3] - 1)
        return max((part.latest for part in parts), default=ALWAYS)

    def filled(self, shape: Sequence[Any], number: Any, like: Tensor) -> Term:
        """A tensor of one number, of the dtype of `like`."""
        sizes = [self.size(dim) for dim in shape]
        return self.plain(aten.full.default, sizes, number, dtype=like.dtype)

    def size(self, dim: Any) -> Any:
        """A dimension as an argument: a number, or a term for one that is free."""
        if isinstance(dim, int | Term):
            return dim
        expression = dim.node.expr
        if expression in self._sizes:
            return self._sizes[expression]
        factor, symbol = expression.as_coeff_Mul()
        if symbol not in self._sizes:
            raise UnreadableError(f"a dimension of {expression}")
        return self.plain(operator.mul, self._sizes[symbol], int(factor))

    def _read(self) -> list[Term]:
        """Read all nodes; the terms of the outputs."""
        made: dict[fx.Node, Any] = {}
        signature = self.program.graph_signature
        specs = iter(signature.input_specs)
        for node in self.program.graph.nodes:
            self._source = node.meta
            if node.op == "placeholder":
                made[node] = self._placeholder(next(specs), node)
            elif node.op == "call_function":
                args, kwargs = map_arg((node.args, node.kwargs), made.__getitem__)
                made[node] = self._function(node, args, kwargs)
            elif node.op != "output":
                raise UnreadableError(f"a node {node.op} {node.target}")
        results = next(iter(reversed(self.program.graph.nodes))).args[0]
        return [
            made[node]
            for node, spec in zip(results, signature.output_specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node)
        ]

    def _placeholder(self, spec: Any, node: fx.Node) -> Any:
        value, name = node.meta.get("val"), spec.target or spec.arg.name
        if not isinstance(value, Tensor):
            return value
        if spec.kind is InputKind.USER_INPUT:
            name, free = self._given[name]
            term = self.plain(INPUT, name, value=value)
            axes = [axis for axis, dim in enumerate(value.shape) if is_size(dim, self.tokens)]
            term.fed, term.latest = True, self.time - 1 if axes else ALWAYS
            for axis in free:
                dim: Any = value.shape[axis]
                if isinstance(dim, SymInt):
                    size = self.plain(aten.sym_size.int, term, axis, value=dim)
                    size.fed, size.latest = False, ALWAYS
                    self._sizes.setdefault(dim.node.expr, size)
            return term
        constant = self.program.constants.get(name)
        if spec.kind is InputKind.CONSTANT_TENSOR and constant is not None:
            if constant.numel() == 1 and not constant.is_complex():
                return self.filled(constant.shape, constant.item(), constant)
            return self.plain(WEIGHT, constant, value=value)
        return self.plain(WEIGHT, name, value=value)

    def _function(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = node.meta.get("val")
        if isinstance(value, SymInt):
            return self.size(value)
        if isinstance(value, int | float | bool):
            return value
        if value is None:
            return None  # an assertion
        if (number := FILLS.get(node.target)) is not None:
            return self.filled(value.shape, number(*args, **kwargs), value)
        return self(node.target, *args, value=value, **kwargs)


def is_size(dim: Any, number: int) -> bool:
    """Whether a dimension is `number`; asking a free one would fix it."""
    return isinstance(dim, int) and dim == number


class UnreadableError(Exception):
    """A program cannot be read as terms; says what it holds."""


def _key(leaf: Any) -> Any:
    if isinstance(leaf, Term):
        return id(leaf)
    if isinstance(leaf, Tensor):
        return (leaf.dtype, tuple(leaf.shape), leaf.detach().numpy().tobytes())
    return (type(leaf), leaf)


def ancestors(roots: Sequence[Term]) -> Iterator[Term]:
    """`roots` and all that they are computed from."""
    seen, waiting = set(roots), list(roots)
    while waiting:
        term = waiting.pop()
        yield term
        for leaf in term.leaves:
            if isinstance(leaf, Term) and leaf not in seen:
                seen.add(leaf)
                waiting.append(leaf)


def _zero(*_args: Any, **_kwargs: Any) -> float:
    return 0


def _one(*_args: Any, **_kwargs: Any) -> float:
    return 1


FILLS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            aten.zeros.default,
            aten.zeros_like.default,
            aten.new_zeros.default,
            aten.empty.memory_format,
            aten.empty_like.default,
            aten.new_empty.default,
        ),
        _zero,
    ),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), _one),
    aten.full.default: lambda _size, number, **_: number,
    aten.full_like.default: lambda _like, number, **_: number,
    aten.new_full.default: lambda _like, _size, number, **_: number,
    aten.scalar_tensor.default: lambda number, **_: number,
}
"""What makes a tensor of one number; memory that was not set is never read, so it may be zeros."""
