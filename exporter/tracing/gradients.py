"""Gradients that a module takes within its forward pass become operators like any other.

PyTorch captures neither `torch.func.grad`, `vjp`, `jvp` and what is made of them nor
`torch.autograd.grad` and `backward`.  A pass of the module over tensors without contents records
what they compute: the derivatives of the operators, in the operators of PyTorch.  The record is a
module with the weights of the source under their names, and is captured and compared with it like
any other.
"""

import functools
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import default_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from intaglio.errors import TraceError
from intaglio.exporter.sources.axes import Span
from intaglio.exporter.sources.source import Source
from intaglio.quiet import quiet, summary
from intaglio.state import TIME

from .conditions import Condition, of_zero_or_one
from .forward_mode import forwards_by_backwards
from .plain_choices import CHOICES, is_batched
from .spellings import Spellings
from .whole_numbers import free_sizes


class FixedTimeError(TraceError):
    """What is recorded holds for one number of tokens, as a loop over them makes it."""


def differentiates(source: Source) -> bool:
    """Whether the module takes gradients in its forward pass; whether it runs is not asked here."""
    with _counted() as calls, torch.no_grad(), quiet(), suppress(Exception):
        source.module(**source.inputs)
    return bool(calls)


@contextmanager
def _counted() -> Iterator[list[str]]:
    """The calls of autograd while the context is open; `torch.func` ends in them as well."""
    calls: list[str] = []
    kept = {
        (owner, name): getattr(owner, name)
        for owner, name in (
            (torch.autograd, "grad"),
            (torch.autograd, "backward"),
            (forward_ad, "make_dual"),
        )
    }

    def counting(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for (owner, name), function in kept.items():
        setattr(owner, name, counting(function))
    try:
        yield calls
    finally:
        for (owner, name), function in kept.items():
            setattr(owner, name, function)


def carried_out(
    source: Source, examples: Mapping[str, Tensor], free: Mapping[str, Collection[int]]
) -> nn.Module:
    """The module of `source` as one graph in which derivatives are operators.

    It is recorded at the sizes of `examples`, but for the axes that are `free` of each.

    Raises:
        TraceError: if what it computes is recorded for some sizes of its free axes only.
    """
    module = source.module
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    try:
        record = _recorded(module, weights, examples, free, marked=False)
    except TraceError:  # gradients of weights may be asked for, as of a loss on examples
        if not any(value.requires_grad for value in weights.values()):
            raise
        record = _recorded(module, weights, examples, free, marked=True)
    assumed = _assumed(source, record.environment, record.inputs, free)
    made = _with_weights(module, record.graph, list(weights), list(examples))
    for condition in assumed:
        if free is not source.dynamic or not _holds_beyond(source, made, condition):
            raise TraceError(
                "The model takes gradients, and what it computes depends on a condition of its "
                f"sizes, {condition}. {MEND}"
            )
    return made


class _Record(NamedTuple):
    """What a module computes, the inputs without contents that it ran on, and what was assumed."""

    graph: fx.GraphModule
    inputs: Mapping[str, Tensor]
    environment: ShapeEnv


def _recorded(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    examples: Mapping[str, Tensor],
    free: Mapping[str, Collection[int]],
    *,
    marked: bool,
) -> _Record:
    """The record of `module`; weights are `marked` as its author has them, or not at all.

    Where they are not, `backward` leaves no gradients in them, which no record could hold.
    """
    environment = ShapeEnv()
    fake = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True)
    inputs = {
        name: fake.from_tensor(value, symbolic_context=_sizes(value, free.get(name, ())))
        for name, value in examples.items()
    }
    given: dict[str, Any] = {
        name: fake.from_tensor(value.detach(), static_shapes=True)
        for name, value in weights.items()
    }
    if marked:
        given = {n: x.requires_grad_(weights[n].requires_grad) for n, x in given.items()}

    def flat(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> list[Any]:
        result = torch.func.functional_call(module, weights, (), inputs)
        return pytree.tree_leaves(result)

    # Fused attention has no derivative in operators; what it computes has.
    try:
        with (
            fake,
            enable_python_dispatcher(),
            _Plain(),
            Spellings(),  # what it writes is written out in its turn
            forwards_by_backwards(),
            free_sizes(module),
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
            quiet(),
        ):
            recorded = make_fx(flat, decomposition_table=_derivatives())(given, inputs)
            recorded = make_fx(functionalize(recorded), decomposition_table=WRITTEN)(given, inputs)
    except TraceError:
        raise
    except Exception as error:
        if UNRECORDED in str(error):
            raise TraceError(
                "The model takes gradients of what it computes where PyTorch records nothing to "
                "take them of, as under torch.no_grad(), in which engines are compared with it. "
                "Open `with torch.enable_grad():` in forward around what is differentiated."
            ) from error
        raise TraceError(
            f"The model takes gradients, and these cannot be recorded: {summary(error)}"
        ) from error
    return _Record(recorded, inputs, environment)


class _Plain(TorchFunctionMode):
    """Writes out the functions that fix free sizes where a derivative wraps their arguments."""

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in CHOICES and any(map(is_batched, args)):
            function = CHOICES[function]
        return PLAIN.get(function, function)(*args, **(kwargs or {}))


def _linear(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = value @ weight.mT
    return product if bias is None else product + bias


def _layer_norm(
    value: Tensor,
    shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = list(range(-len(shape), 0))
    centred = value - value.mean(axes, keepdim=True)
    normal = centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


def _prod(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Along an axis of few factors by multiplying them: the derivative has no running products."""
    dim, keepdim = (kwargs.get(name, value) for name, value in (("dim", None), ("keepdim", False)))
    dim, keepdim = (*args, *(dim, keepdim)[len(args) :])[:2]
    size: Any = value.shape[dim] if isinstance(dim, int) else None
    if not isinstance(size, int) or not 0 < size <= MOST_FACTORS or "dtype" in kwargs:
        return torch.prod(value, *args, **kwargs)
    found = functools.reduce(torch.mul, value.unbind(dim))
    return found.unsqueeze(dim) if keepdim else found


MOST_FACTORS = 16
PLAIN = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.prod: _prod,
    Tensor.prod: _prod,
}


def _sizes(value: Tensor, free: Collection[int]) -> StatelessSymbolicContext[Any, Any]:
    kinds = [
        DimDynamic.DYNAMIC if axis in free else DimDynamic.STATIC for axis in range(value.dim())
    ]
    return StatelessSymbolicContext(dynamic_sizes=kinds)


def _assumed(
    source: Source,
    environment: ShapeEnv,
    inputs: Mapping[str, Tensor],
    free: Mapping[str, Collection[int]],
) -> list[Condition]:
    """Conditions of sizes that the record was made under: nothing else would show them.

    Raises:
        TraceError: if a free size became a number.
    """
    names: dict[Any, str] = {}
    alike: dict[Any, Any] = {}  # symbols of an axis that several inputs have, and the first one
    for name, value in inputs.items():
        for axis in free.get(name, ()):
            size: Any = value.shape[axis]
            symbol = source.dynamic[name][axis]
            own = size.node._expr  # noqa: SLF001  before it was found to be another one
            alike[own] = next((e for e, s in names.items() if s == symbol), own)
            names[own] = symbol
            if isinstance(size, int) or environment.simplify(size.node.expr).is_number:
                raise (FixedTimeError if symbol == TIME else TraceError)(
                    f"The model takes gradients, and turns the {symbol} of {name!r} into a "
                    f"constant. {MEND}"
                )
    found = []
    for guard in environment.guards:
        said = guard.expr.xreplace(alike)
        if said.free_symbols and not of_zero_or_one(said) and CHOICE not in str(guard.sloc):
            found.append(Condition(said, {s: names[s] for s in said.free_symbols if s in names}))
    return found


def _holds_beyond(source: Source, made: nn.Module, condition: Condition) -> bool:
    """Whether the record gives what the module gives at sizes that break its condition.

    So it is where the module fails there, and where no sizes near the example's break it.
    """
    spans = {symbol: source.spans.get(symbol, Span()) for symbol in source.symbols}
    sizes = condition.broken(source.sizes, spans)
    if sizes is None:
        return True
    inputs = source.draw(sizes, 1)
    with torch.no_grad(), quiet():
        try:
            expected = pytree.tree_leaves(source.module(**inputs))
        except Exception:  # noqa: BLE001  modules raise whatever they like
            return True
        try:
            found = made(**inputs)
        except Exception:  # noqa: BLE001  the record is of other sizes
            return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().amax()))
        for a, b in zip(found, expected, strict=True)
        if isinstance(b, Tensor) and b.numel()
    )


UNRECORDED = "does not require grad and does not have a grad_fn"  # PyTorch's own words
CHOICE = "fake_impls.py"  # where PyTorch asks which library would compute a convolution
MEND = "Write what depends on sizes with tensor operations, or keep the axis at one size."


def _with_weights(
    module: nn.Module, recorded: fx.GraphModule, weights: list[str], inputs: list[str]
) -> nn.Module:
    """The record as a module: its first placeholders are weights, the others are named inputs."""
    graph = recorded.graph
    holders = [node for node in graph.nodes if node.op == "placeholder"]
    owned: dict[str, Any] = {
        str(node.target): getattr(recorded, str(node.target))
        for node in graph.nodes
        if node.op == "get_attr"
    }
    for node, name in zip(holders[: len(weights)], weights, strict=True):
        with graph.inserting_before(node):
            read = graph.create_node("get_attr", name)
        read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
        graph.erase_node(node)
        owned[name] = _at(module, name)
    for node, name in zip(holders[len(weights) :], inputs, strict=True):
        node.target = name
    graph.set_codegen(fx.graph.CodeGen())
    made = fx.GraphModule(owned, graph)
    made.graph.eliminate_dead_code()  # gradients of weights, which `backward` takes as well
    made.recompile()
    return made


def _at(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _convolution_backward(
    grad: Tensor,
    value: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> Any:
    """The gradient of a convolution by its input: a transposed one, and the other way round."""
    if not mask[0]:
        return NotImplemented
    missing = [0] * len(stride)
    if transposed and any(more >= step for more, step in zip(output_padding, stride, strict=True)):
        return NotImplemented  # the convolution would have entries more
    if not transposed:
        missing = [
            size - ((out - 1) * step - 2 * pad + reach * (taps - 1) + 1)
            for size, out, step, pad, reach, taps in zip(
                value.shape[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:],
                strict=True,
            )
        ]  # fmt: skip
    back = torch.ops.aten.convolution(
        grad, weight, None, stride, padding, dilation, not transposed, missing, groups
    )  # fmt: skip
    others = torch.ops.aten.convolution_backward(
        grad, value, weight, bias_sizes, stride, padding, dilation, transposed, output_padding,
        groups, [False, *mask[1:]],
    )  # fmt: skip
    return back, *others[1:]


def _avg_pool2d_backward(
    grad: Tensor,
    value: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    ceil: bool,
    include_padding: bool,
    divisor: int | None,
) -> Any:
    """The gradient of means of windows: each entry's share of every window that it is in."""
    if ceil or (any(padding) and not include_padding):
        return NotImplemented  # windows at the ends have divisors of their own
    steps, channels = stride or kernel, value.shape[-3]
    if not isinstance(channels, int) or value.dim() != 4:
        return NotImplemented
    missing = [
        size - ((out - 1) * step - 2 * pad + taps)
        for size, out, step, pad, taps in zip(
            value.shape[2:], grad.shape[2:], steps, padding, kernel, strict=True
        )
    ]
    share = grad.new_full((channels, 1, *kernel), 1 / (divisor or math.prod(kernel)))
    return torch.ops.aten.convolution(
        grad, share, None, steps, padding, [1, 1], True, missing, channels
    )


def _diagonal_scatter(
    value: Tensor, diagonal: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Any:
    """A matrix with another diagonal, as bases of Jacobians are made; above or below the main."""
    last = value.movedim((dim1, dim2), (-2, -1))
    row, column = (torch.arange(size, device=value.device) for size in last.shape[-2:])
    entry = (row + min(offset, 0)).clamp(0, diagonal.shape[-1] - 1)
    there = column - row[:, None] == offset
    spread = diagonal.index_select(-1, entry).unsqueeze(-1)
    return torch.where(there, spread, last).movedim((-2, -1), (dim1, dim2))


WRITTEN = {torch.ops.aten.diagonal_scatter.default: _diagonal_scatter}


def _derivatives() -> dict[Any, Any]:
    """Derivatives of operators in operators that ONNX has."""
    table: Mapping[Any, Any] = default_decompositions()
    known = {
        op: rule for op, rule in table.items() if op.name().partition(".")[0].endswith("_backward")
    }
    return {
        **known,
        torch.ops.aten.avg_pool2d_backward.default: _avg_pool2d_backward,
        torch.ops.aten.convolution_backward.default: _convolution_backward,
    }
