"""Convolutions with a kernel that no data flows into, as systems with a state of fixed size.

A kernel that is a sum of exponentials of the lag (`exponentials`) is the response of

    x_m <- ratio_m x_m + u,    y = Re sum over m of weight_m x_m,

which needs no earlier token (Gu et al. 2022, arXiv:2206.11893, section 2).  Decays become the
operator `diagonal_ssm`; poles in the plane, and the matrices that realise a table of numbers
(`realisation`), a `scan` of what depends on the state.  There the change of a state is added to it,
x + (ratio - 1) x + u: ratios near 1 are the long memories, and their distance from 1 is what fp32
has to hold.  A kernel for which there is no such system is left as it is.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from intaglio.ops import DIAGONAL_SSM

from .causal_convolution import (
    ATEN,
    INVERSES,
    FourierConvolution,
)
from .exponentials import LagReader
from .fold_weights import hold, in_double, name_of_weight, weights_of, with_graph
from .kernel_forms import LagLine, LagTable, UnreadError
from .modules import named, path_of
from .program_nodes import is_fixed, mutates, name_outputs_anew, shape_of
from .realisation import Poles, realise

SCAN = torch.ops.higher_order.scan


@dataclass(frozen=True)
class KernelStates:
    """The program, the weights that were computed for it with what from, and what to tell."""

    program: ExportedProgram
    weights: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def carry_kernels(program: ExportedProgram) -> KernelStates:
    """Return `program` with a state for each causal convolution whose kernel allows one."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    found = [node for node in calls if node.target in INVERSES]
    if not found or any(mutates(node) for node in calls):
        return KernelStates(program, {}, ())
    made = _Made(program)
    for node in found:
        convolution = FourierConvolution.of(node)
        if convolution is None:
            continue
        for u, kernel in (convolution.factors, convolution.factors[::-1]):
            if made.carried(convolution, u, kernel):
                break
    return made.result()


Step = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _System:
    """Weights of the program, and the step that takes them; without one, decays."""

    step: Step | None
    weights: tuple[fx.Node, ...]


class _Made:
    """Collects what convolutions become, and the weights that this takes."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._values: dict[str, Tensor] = {}
        self._holders: dict[str, fx.Node] = {}
        self._weights: dict[str, tuple[str, ...]] = {}
        self._notes: list[str] = []
        self._systems: dict[tuple[fx.Node, int], _System | None] = {}

    def result(self) -> KernelStates:
        """What has become of the program."""
        if not self._values:
            return KernelStates(self._program, {}, ())
        graph = self._program.graph
        for node in list(graph.nodes):
            if node.target is ATEN._assert_tensor_metadata.default:  # noqa: SLF001  keeps its input
                graph.erase_node(node)
        name_outputs_anew(self._program)
        graph.eliminate_dead_code()
        made = with_graph(self._program, graph, self._values, self._holders)
        return KernelStates(made, self._weights, tuple(self._notes))

    def carried(self, convolution: FourierConvolution, u: fx.Node, kernel: fx.Node) -> bool:
        """Whether `kernel` is one with a state, which its convolution with `u` then has."""
        if is_fixed(self._program, kernel):
            return False
        key = (kernel, convolution.axis)
        if key not in self._systems:
            self._systems[key] = self._system(kernel, convolution)
        system = self._systems[key]
        if system is None:
            return False
        for place in convolution.results:
            place.replace_all_uses_with(emitted(system, place, u, convolution.axis))
        return True

    def _system(self, kernel: fx.Node, convolution: FourierConvolution) -> _System | None:
        def number(node: fx.Node) -> Tensor:
            return in_double(self._program, node)

        reader = LagReader(self._program, convolution.length, number)
        try:
            read = reader.of(kernel)
        except UnreadError:
            return None
        if read.axis != convolution.axis or isinstance(read, LagLine):
            return None
        if isinstance(read, LagTable):
            found = self._realised(kernel, read)
            if found is None:
                self._tabled(kernel, read, reader.end)
            return found
        weight, ratio = (
            x.squeeze(read.axis - 1).to(torch.complex128)
            for x in (read.weight + 0 * read.ratio, read.ratio + 0 * read.weight)
        )
        return self._poles(kernel, Poles(weight, ratio))

    def _tabled(self, kernel: fx.Node, table: LagTable, end: Any) -> None:
        """Let a kernel that tables were made into be the first entries of a table itself."""
        if kernel.target is ATEN.slice.Tensor:
            return
        holder = self._weight(kernel, "kernel", table.values)
        with self._program.graph.inserting_before(kernel):
            axis = table.axis + table.values.dim()
            first = self._program.graph.call_function(ATEN.slice.Tensor, (holder, axis, 0, end))
        first.meta = dict(kernel.meta)
        kernel.replace_all_uses_with(first)

    def _realised(self, kernel: fx.Node, table: LagTable) -> _System | None:
        found = realise(table.values.real.movedim(table.axis, -1))
        if found is None:
            return None
        self._notes.append(
            f"The kernel of {found.length} positions in {named(path_of(kernel))} is carried as "
            f"{found.states} numbers a channel, {found.form}: the values that it then has are off "
            f"by at most {found.error:.1e} of the kernel's, summed over all positions."
        )
        if isinstance(found.system, Poles):
            return self._poles(kernel, found.system)
        change = found.system.matrix - torch.eye(found.system.matrix.shape[-1])
        return self._held(
            kernel, _mix, matrix=change, entry=found.system.entry, read=found.system.read
        )

    def _poles(self, kernel: fx.Node, poles: Poles) -> _System:
        weight, ratio = poles.weight, poles.ratio
        if bool((ratio.imag == 0).all()):
            ratio, weight = ratio.real, weight.real
            if bool(((ratio > 0) & (ratio < 1)).all()) and _one_row(ratio):
                return self._held(
                    kernel, None, decay=ratio.log(), entry=torch.ones_like(weight), read=weight
                )
            return self._held(kernel, _scale, change=ratio - 1, read=weight)
        grown, turn = ratio.real - 1, ratio.imag
        return self._held(
            kernel,
            _turn,
            change=torch.cat((grown, grown), -1),
            turn=torch.cat((-turn, turn), -1),
            entry=torch.cat((torch.ones_like(turn), torch.zeros_like(turn)), -1),
            read=torch.cat((weight.real, -weight.imag), -1),
        )

    def _held(self, kernel: fx.Node, step: Step | None, **weights: Tensor) -> _System:
        """A system whose numbers are weights of the program, in fp32."""
        held = [self._weight(kernel, stem, value) for stem, value in weights.items()]
        return _System(step, tuple(held))

    def _weight(self, kernel: fx.Node, stem: str, value: Tensor) -> fx.Node:
        """A weight of the program, computed from those of `kernel`, in fp32."""
        program, mode = self._program, kernel.meta["val"].fake_mode
        taken = {*program.state_dict, *program.constants, *self._values}
        name = name_of_weight(kernel, stem, taken)
        value = value.to(torch.float32).contiguous()
        fake = mode.from_tensor(value, static_shapes=True)
        holder = hold(program.graph, {name: value}, {name: {**kernel.meta, "val": fake}})
        self._values = {name: value, **self._values}  # holders stand in front of earlier ones
        self._holders |= holder
        self._weights[name] = tuple(sorted(weights_of(program, kernel)))
        return holder[name]


def _one_row(ratio: Tensor) -> bool:
    """Whether channels lie along one axis."""
    return all(size == 1 for size in ratio.shape[:-2])


def _scale(state: Tensor, u: Tensor, change: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    state = state + (change * state + u.unsqueeze(-1))
    return state, (read * state).sum(-1)


def _turn(
    state: Tensor, u: Tensor, change: Tensor, turn: Tensor, entry: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    """Real parts stand in front of imaginary ones."""
    half = state.shape[-1] // 2
    turned = torch.cat((state[..., half:], state[..., :half]), -1)
    state = state + (change * state + turn * turned + entry * u.unsqueeze(-1))
    return state, (read * state).sum(-1)


def _mix(
    state: Tensor, u: Tensor, matrix: Tensor, entry: Tensor, read: Tensor
) -> tuple[Tensor, Tensor]:
    mixed = torch.matmul(matrix, state.unsqueeze(-1)).squeeze(-1)
    state = state + (mixed + entry * u.unsqueeze(-1))
    return state, (read * state).sum(-1)


def emitted(system: _System, place: fx.Node, u: fx.Node, axis: int) -> fx.Node:
    """The value of `place`, computed with a state from `u`, whose tokens lie along `axis`."""
    emit = _Emitter(place)
    kind = place.meta["val"].dtype
    with place.graph.inserting_before(place):
        u = emit(ATEN.to.dtype, u, torch.float32)
        if system.step is None:
            y = _decayed(emit, system.weights, u, axis)
        else:
            y = _scanned(emit, system.step, system.weights, u, axis)
        return emit(ATEN.to.dtype, y, kind)


def _decayed(emit: "_Emitter", weights: tuple[fx.Node, ...], u: fx.Node, axis: int) -> fx.Node:
    """Of u [.., tokens, .., D], with everything in front of channels as rows."""
    decay, entry, read = weights
    if len(shape_of(u)) != 3 or axis == -3:
        change = emit(ATEN.sub.Tensor, emit(ATEN.exp.default, decay), 1.0)
        return _scanned(emit, _scale, (change, read), u, axis)
    along = emit(ATEN.movedim.int, u, axis, 1)
    shape = [shape_of(along)[-1], shape_of(read)[-1]]
    decay, entry, read = (
        x if list(shape_of(x)) == shape else emit(ATEN.expand.default, _flat(emit, x), shape)
        for x in weights
    )
    given = (along, decay, entry, read, None, None)
    found = emit(DIAGONAL_SSM.torch_op, *given, discretization="none", lti=True)
    return emit(ATEN.movedim.int, emit.part(found, 0), 1, axis)


def _flat(emit: "_Emitter", weight: fx.Node) -> fx.Node:
    return emit(ATEN.reshape.default, weight, [-1, shape_of(weight)[-1]])


def _scanned(
    emit: "_Emitter", step: Step, weights: tuple[fx.Node, ...], u: fx.Node, axis: int
) -> fx.Node:
    over = emit(ATEN.movedim.int, u, axis, 0)
    channels = shape_of(weights[-1])[:-1]
    for _ in range(len(channels) - len(shape_of(over)[1:])):  # axes that u lacks
        over = emit(ATEN.unsqueeze.default, over, 1)
    rank = len(shape_of(over)) - 1
    wide = (*[1] * (rank - len(channels)), *channels)
    sizes = [n if n != 1 else emit.size(over, 1 + dim) for dim, n in enumerate(wide)]
    start = emit(ATEN.zeros.default, [*sizes, shape_of(weights[-1])[-1]], dtype=torch.float32)
    found = emit.scan(step, start, over, weights)
    return emit(ATEN.movedim.int, emit.part(found, 1), 0, axis)


class _Emitter:
    """Emits nodes in the module of `place`, in front of it."""

    def __init__(self, place: fx.Node) -> None:
        self._place, self._graph = place, place.graph
        self._mode = place.meta["val"].fake_mode

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        known = fx.map_arg((args, kwargs), lambda each: each.meta["val"])
        with self._mode:
            value = target(*known[0], **known[1])
        return self._made(target, args, kwargs, value)

    def _made(self, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        new = self._graph.call_function(target, args, kwargs)
        new.meta = {**self._place.meta, "val": value}
        return new

    def part(self, node: fx.Node, index: int) -> fx.Node:
        """One of several results."""
        return self._made(operator.getitem, (node, index), {}, node.meta["val"][index])

    def size(self, node: fx.Node, dim: int) -> Any:
        """A size as a number, or a node where it is free."""
        found: Any = shape_of(node)[dim]
        if isinstance(found, int):
            return found
        return self._made(ATEN.sym_size.int, (node, dim), {}, found)

    def scan(
        self, step: Step, start: fx.Node, over: fx.Node, weights: tuple[fx.Node, ...]
    ) -> fx.Node:
        """`step` for each entry of `over` along its first axis: the last state, and the results."""
        first, along, *others = (node.meta["val"] for node in (start, over, *weights))
        with self._mode:
            body = make_fx(step)(first, along.select(0, 0), *others)
            state, y = step(first, along.select(0, 0), *others)
            results = y.new_empty((along.shape[0], *y.shape))
        module: Any = getattr(self._graph, "owning_module")  # noqa: B009  typed as None
        name = next(n for i in count() if not hasattr(module, n := f"carried_kernel_{i}"))
        module.add_submodule(name, body)
        called = self._graph.get_attr(name)
        called.meta = {"nn_module_stack": self._place.meta.get("nn_module_stack", {})}
        return self._made(SCAN, (called, [start], [over], weights), {}, (state, results))
