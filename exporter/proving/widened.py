"""Run a module in float64 without a copy of it in float64.

`module.double()` on a copy triples the memory of the weights.  Here each parameter is widened when
an operation takes it, and dropped after that operation.  Buffers, which a module may write to and
read again, are widened once a run.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

FINFO, NARROW = torch.finfo, torch.float32
# What asks a tensor about itself and not for its numbers.
ABOUT = {
    *(getattr(Tensor, name).__get__ for name in "shape device ndim layout requires_grad".split()),
    *(getattr(Tensor, name) for name in "size dim numel stride is_contiguous".split()),
    Tensor.is_floating_point,
    Tensor.__len__,
}


def precision_of(values: Iterable[Tensor]) -> str:
    """What floating-point results of a source that was run in float64 say that it ran in."""
    dtypes = {value.dtype for value in values if value.is_floating_point()}
    return "float64" if dtypes <= {torch.float64} else "float32"


def cause(precision: str, raised: Exception | None) -> str:
    """Why a source that was tried in float64 ran in `precision`; empty where that is float64."""
    if raised is not None:
        said = str(raised).strip().partition("\n")[0]
        return f"in float64 it raised {type(raised).__name__}{': ' if said else ''}{said}"
    return "" if precision == "float64" else "it casts to float32 itself"


class Widened(TorchFunctionMode):
    """Inside, the floating-point parameters and buffers of `module` are float64 to all who ask."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        layers = (each for each in module.modules() if isinstance(each, nn.RNNBase))
        # Recurrent layers keep a list of their weights, which in a copy may be other tensors.
        flat = (w for each in layers for w in getattr(each, "_flat_weights", ()) if w is not None)
        tensors = (*module.parameters(), *module.buffers(), *flat)
        self._own = {id(tensor) for tensor in tensors if tensor.is_floating_point()}
        self._buffers = {id(tensor) for tensor in module.buffers()} & self._own
        self._held: dict[int, Tensor] = {}
        self._plain = ExitStack()

    def __enter__(self) -> Self:
        """Attention is as written, also within functions of PyTorch, where no mode looks.

        The fused kernels read a float32 mask beside float64 queries as if it were float64: from 16
        tokens on their results are wrong.  Limits of dtypes are those of float32, which the module
        runs in: what it adds or clamps so as not to divide by zero is a part of what it computes.
        """
        self._plain.enter_context(sdpa_kernel(SDPBackend.MATH))
        self._plain.enter_context(patch.object(torch, "finfo", _limits))
        self._held.clear()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._held.clear()
        self._plain.close()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func` with what is the module's own widened."""
        del types  # part of the protocol
        if func in ABOUT:
            return func(*args, **(kwargs or {}))
        wide_args, wide_kwargs = tree_map(self._widen, (args, dict(kwargs or {})))
        if func is F.scaled_dot_product_attention:
            return _plain(func, wide_args, wide_kwargs)
        if func is F.rms_norm:
            return _rms_norm(*wide_args, **wide_kwargs)
        return func(*wide_args, **wide_kwargs)

    def _widen(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) not in self._own:
            return value
        if id(value) not in self._buffers:
            return value.detach().to(torch.float64)
        if id(value) not in self._held:
            self._held[id(value)] = value.detach().to(torch.float64, copy=True)
        return self._held[id(value)]


def _limits(dtype: torch.dtype | None = None) -> torch.finfo:
    return FINFO() if dtype is None else FINFO(NARROW if dtype == torch.float64 else dtype)


def _rms_norm(
    input: Tensor,  # noqa: A002  its name in PyTorch
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """With the number that PyTorch takes for float32 where none is given."""
    eps = FINFO(NARROW).eps if eps is None else eps
    return F.rms_norm(input, normalized_shape, weight, eps)


def _plain(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Attention with a mask in the dtype of the queries, which it asks for."""
    query = args[0] if args else kwargs["query"]

    def widen(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(query.dtype) if floating and value.dtype != query.dtype else value

    return func(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})
