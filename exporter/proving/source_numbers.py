"""Numbers at which a source may behave otherwise, from the source itself, not from its bundle.

What a pass overlooked is not in the graph that it made.  So the module is watched while it runs:
what it compares with, divides by, counts to and looks up, and how long its tables are.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from intaglio.exporter.sources.source import Source
from intaglio.passes.analysis.numbers import combined, compared_values, position_numbers
from intaglio.quiet import quiet

SIZES = (2, 7, 0)  # rows, tokens and seed of the run that is watched
BREAKS = frozenset(
    "eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ floor_divide __floordiv__ "
    "remainder __mod__ fmod div true_divide __truediv__ mul __mul__ __rmul__ sub __sub__ add "
    "__add__ clamp clamp_min clamp_max clip min max tril triu minimum maximum bucketize arange "
    "roll pow rsub __rsub__ narrow".split()
)
EQUAL = frozenset("eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__".split())
LOOK_UP = frozenset("__getitem__ index index_select slice select take gather embedding".split())
MOST = 24  # numbers of which products and quotients are taken


@dataclass(frozen=True)
class SourceNumbers:
    """Whole numbers that positions may be held to, and that integers are compared with."""

    positions: frozenset[int]
    values: Mapping[str, frozenset[int]]


def source_numbers(source: Source) -> SourceNumbers:
    """The numbers of `source`, more rather than fewer; none of a module that does not run so."""
    if isinstance(source.body, ir.Model):
        graph = source.body.graph
        values = {name: frozenset(found) for name, found in compared_values(graph).items()}
        return SourceNumbers(frozenset(position_numbers(graph)), values)
    inputs = source.random_inputs(*SIZES)
    calls = _watched(source.module, inputs)
    numbers: set[float] = set()
    equal: set[int] = set()
    tables: set[float] = set()
    for name, found in calls:
        new = {abs(number) for number in found if abs(number) not in (0, *SIZES)}
        if name in LOOK_UP:
            tables |= new
        else:
            numbers |= new
        if name in EQUAL:
            equal |= {int(number) for number in found if float(number).is_integer()}
    few = set(sorted(numbers)[:MOST])
    near = frozenset(number + by for number in equal for by in (-1, 0, 1))
    return SourceNumbers(
        frozenset({*combined(few), *combined(numbers | tables, pairs=False)}),
        {name: near for name, value in inputs.items() if _is_integer(value)},
    )


Call = tuple[str, list[float]]


def _watched(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[Call]:
    """The calls of `BREAKS` with what is no floating-point data, with the numbers in them."""
    calls: list[Call] = []
    try:
        with torch.no_grad(), quiet():
            if isinstance(module, fx.GraphModule):
                _Nodes(module, calls).run(*inputs.values())
            else:
                with _Functions(inputs, calls):
                    module(**inputs)
    except Exception:  # noqa: BLE001  another trial tells
        return calls
    return calls


class _Data:
    """Which tensors data flowed into; they are kept, so that no other one takes their identity."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        self._kept = {id(value): value for value in inputs.values()}

    def flows(self, name: str, arguments: Any, result: Any, calls: list[Call]) -> None:
        """Note a call, and what it gives."""
        leaves = tree_leaves(arguments)
        given = [x for x in leaves if isinstance(x, Tensor) and id(x) in self._kept]
        if name in BREAKS and all(_is_integer(value) for value in given):
            calls.append((name, list(_numbers(leaves))))
        if not given and name in LOOK_UP:
            sizes = {size for x in leaves if isinstance(x, Tensor) for size in x.shape}
            calls.append((name, [float(size) for size in sizes]))
        if given:
            self._kept |= {id(x): x for x in tree_leaves(result) if isinstance(x, Tensor)}


class _Functions(TorchFunctionMode):
    """Follows data through the functions of a module in Python."""

    def __init__(self, inputs: Mapping[str, Tensor], calls: list[Call]) -> None:
        super().__init__()
        self._data, self._calls = _Data(inputs), calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types  # part of the protocol
        given = dict(kwargs or {})
        result = func(*args, **given)
        self._data.flows(getattr(func, "__name__", ""), (args, given), result, self._calls)
        return result


class _Nodes(fx.Interpreter):
    """Follows data through the nodes of a program."""

    def __init__(self, module: fx.GraphModule, calls: list[Call]) -> None:
        super().__init__(module)
        self._data, self._calls = _Data({}), calls

    def run(self, *args: Any, **given: Any) -> Any:
        self._data = _Data({str(i): x for i, x in enumerate(args) if isinstance(x, Tensor)})
        return super().run(*args, **given)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_function(target, args, kwargs)
        name = getattr(getattr(target, "overloadpacket", target), "__name__", "")
        self._data.flows(name, (args, kwargs), result, self._calls)
        return result


def _is_integer(value: Tensor) -> bool:
    return not value.is_floating_point() and value.dtype is not torch.bool


def _numbers(leaves: list[Any]) -> Iterator[float]:
    """Plain numbers among arguments, and what tensors of one entry hold."""
    for leaf in leaves:
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            yield leaf
        elif isinstance(leaf, Tensor) and leaf.dim() == 0 and leaf.dtype is not torch.bool:
            yield float(leaf)
