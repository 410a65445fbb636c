"""The calls of operators that mix time, caught while a module runs: what its states follow from.

Keys and values of attention, the arguments of recurrent operators, the inputs of causal
convolutions, what is summed up.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from intaglio.errors import ParityError
from intaglio.exporter.sources.given_once import is_of_conditions_alone
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.tracing.modules import ModuleStack
from intaglio.exporter.tracing.running import as_written
from intaglio.ops import OPS
from intaglio.ops.op import Op
from intaglio.state import Layout, StateSpec

Key = tuple[str, str, int]  # module path, operator, which call of it within the module


class CaughtCall(Protocol):
    """One call of an operator that mixes time, as it was caught."""

    def state(self, spec: StateSpec, tokens: int) -> Tensor | None:
        """The state after `tokens` tokens in the layout of `spec`, None where it has no such."""


def recorded(
    module: nn.Module, inputs: Mapping[str, Tensor], tokens: int | None
) -> tuple[dict[str, Tensor], dict[Key, CaughtCall]]:
    """Outputs of a run over `tokens` tokens, and the calls that it made."""
    stack = ModuleStack(module)
    recorder = _Recorder(stack, tokens)
    with as_written(), stack, recorder:
        outputs = name_outputs(module, module(**inputs), inputs)
    return outputs, recorder.calls


class _Recorder(TorchFunctionMode):
    """Catches the calls of `CATCHES` with the module that made them."""

    def __init__(self, stack: ModuleStack, tokens: int | None) -> None:
        super().__init__()
        self.calls: dict[Key, CaughtCall] = {}
        self._tokens = tokens
        self._stack = stack
        self._counts: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types  # part of the protocol
        if func in CATCHES and not is_of_conditions_alone():
            op, catch = CATCHES[func]
            place = (self._stack.current, op)
            call = catch(*args, **(kwargs or {}))
            if isinstance(call, _Attention | _Convolution):
                call = replace(call, tokens=self._tokens)
            if isinstance(call, _Recurrence):
                call.tokens = self._tokens
            if not isinstance(call, _Sum) or call.along(self._tokens):
                self.calls[*place, self._counts[place]] = call
                self._counts[place] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Attention:
    """Keys and values [batch, heads, time, size], positions already in the keys."""

    key: Tensor
    value: Tensor
    tokens: int | None = None

    @classmethod
    def catch(cls, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> "_Attention":
        del query
        return cls(key.detach(), value.detach())

    def state(self, spec: StateSpec, tokens: int) -> Tensor | None:
        entries = {"key": self.key, "value": self.value}.get(spec.port)
        if entries is None or entries.ndim != 4 or len(spec.shape) != 4 or not spec.shape[1]:
            return None
        if entries.shape[2] < tokens:  # one of several calls, of a loop over tokens
            return None
        rest = entries.shape[2] % self.tokens if self.tokens else 1
        each = 1 if rest or not self.tokens else entries.shape[2] // self.tokens
        kept = _fold_heads(entries, spec)[:, :, : tokens * each]
        if spec.layout is not Layout.WINDOW:  # entries of one token beside each other
            return kept.reshape(*kept.shape[:2], tokens, -1)
        tokens *= each
        width = (spec.window or 1) - 1
        return F.pad(kept, (0, 0, max(width - tokens, 0), 0))[:, :, -width:]


def _fold_heads(entries: Tensor, spec: StateSpec) -> Tensor:
    """Undo the repetition of key-value heads that a module did before attention."""
    heads = int(spec.shape[1])
    if heads % entries.shape[1] == 0:  # traced with repeated heads that it shares when it runs
        return entries.repeat_interleave(heads // entries.shape[1], 1)
    repeats = entries.shape[1] // heads
    folded = entries[:, ::repeats] if entries.shape[1] == heads * repeats else entries
    if not torch.equal(folded.repeat_interleave(repeats, 1), entries):
        raise ParityError(
            f"The state {spec.input!r} holds {heads} heads, but the {entries.shape[1]} heads of "
            f"module {spec.module!r} are not {heads} heads repeated."
        )
    return folded


class _Recurrence:
    """The arguments of one call of an operator; its states, computed token by token in float64."""

    def __init__(self, op: Op, arguments: dict[str, Any]) -> None:
        """Take the arguments by name; the operator's signature tells which are of each token."""
        wide = {
            name: value.detach().double()
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in arguments.items()
        }
        self._op = op
        self._states: dict[int, dict[str, Tensor | None]] = {
            0: {past: wide.pop(past, None) for past in op.signature.pasts}
        }
        axes = {
            formal.name: formal.time(wide)
            for formal in op.signature.inputs
            if wide.get(formal.name) is not None
        }
        self._axes = {name: axis for name, axis in axes.items() if axis is not None}
        self._arguments = wide
        self.tokens: int | None = None

    @classmethod
    def catch(cls, op: Op) -> "Callable[..., _Recurrence]":
        """What makes one of the arguments of a call of `op`."""
        signature = inspect.signature(op.reference)

        def catch(*args: Any, **kwargs: Any) -> _Recurrence:
            return cls(op, dict(signature.bind(*args, **kwargs).arguments))

        return catch

    def state(self, spec: StateSpec, tokens: int) -> Tensor | None:
        signature = self._op.signature
        name, axis = next(iter(self._axes.items()))
        entries = self._arguments[name].shape[axis]
        if self.tokens and entries % self.tokens:
            return None
        tokens *= entries // self.tokens if self.tokens else 1  # of a sequence of another rate
        start = max(n for n in self._states if n <= tokens)
        if start < tokens:
            part = {
                name: self._arguments[name].narrow(axis, start, tokens - start)
                for name, axis in self._axes.items()
            }
            results = self._op.reference(**{**self._arguments, **part, **self._states[start]})
            names = (formal.name for formal in signature.outputs)
            made = dict(zip(names, results, strict=True))
            self._states[tokens] = {state.past: made[state.present] for state in signature.states}
        past = next((state.past for state in signature.states if state.port == spec.port), None)
        return None if past is None else self._states[tokens][past]


@dataclass(frozen=True)
class _Convolution:
    """The inputs [batch, channels, time] of a causal convolution, `reach` zeros before them."""

    inputs: Tensor
    reach: int
    stride: int
    tokens: int | None = None

    @classmethod
    def catch(
        cls,
        input: Tensor,  # noqa: A002  the names are PyTorch's
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> "_Convolution":
        del bias, groups
        # Zeros that the module itself put before the inputs are part of them already.
        zeros = 0 if isinstance(padding, str) else _single(padding)
        reach = (weight.shape[-1] - 1) * _single(dilation)
        return cls(F.pad(input.detach(), (zeros, 0)), reach, _single(stride))

    def state(self, spec: StateSpec, tokens: int) -> Tensor | None:
        if spec.port != "conv":  # there is one state, and it has one layout
            return None
        more = self.inputs.shape[-1] - (self.tokens or 0)
        if self.stride != 1 or more != self.reach:  # of another rate, or padded for others too
            return None
        return self.inputs[..., tokens : tokens + self.reach]


@dataclass(frozen=True)
class _Sum:
    """What is summed up along an axis."""

    summed: Tensor
    axis: int

    @classmethod
    def catch(cls, input: Tensor, dim: int, **_: Any) -> "_Sum":  # noqa: A002
        return cls(input.detach(), dim)

    def along(self, tokens: int | None) -> bool:
        """Whether it is along time: no state belongs to a sum over anything else.

        Nor does one to a sum over the keys, of what there is of each pair of tokens.
        """
        keys = self.axis % self.summed.ndim == self.summed.ndim - 1
        return self.summed.shape[self.axis] == tokens and not (keys and self._of_pairs())

    def state(self, spec: StateSpec, tokens: int) -> Tensor | None:
        """None for a sum over pairs: of these, sums of single tokens are carried."""
        if spec.port != "sum" or self._of_pairs():
            return None
        return self.summed.narrow(self.axis, 0, tokens).sum(self.axis)

    def _of_pairs(self) -> bool:
        tokens = self.summed.shape[self.axis]
        return self.summed.shape[-2:] == (tokens, tokens)


def _single(value: Any) -> int:
    return int(value[0] if isinstance(value, tuple | list) else value)


CATCHES: dict[Any, tuple[str, Callable[..., CaughtCall]]] = {
    F.scaled_dot_product_attention: ("attention", _Attention.catch),
    F.conv1d: ("causal_conv", _Convolution.catch),
    torch.cumsum: ("cumulative_sum", _Sum.catch),
    Tensor.cumsum: ("cumulative_sum", _Sum.catch),
}
for _op in (op for op in OPS if op.torch_op is not None and op.signature.states):
    # It may be called by its packet of overloads or by its one overload.
    for _name in (_op.torch_op, _op.torch_op.overloadpacket):
        CATCHES[_name] = (_op.name, _Recurrence.catch(_op))
