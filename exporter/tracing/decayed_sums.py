"""Sums in which earlier tokens decay, written with cumulative sums of logarithms that overflow.

With C the cumulative sum of g along time,

    e^C cumsum(b e^-C)  and  e^(C + logcumsumexp(log b - C))

are both h_t = e^(g_t) h_(t-1) + b_t (Heinsen 2023, arXiv:2311.06281, equations 3 to 7), in which
nothing grows with the number of tokens.  Where C and log b are led by an entry of their own, zero
and the logarithm of h_0 (`torch.cat`, `pad`), that is where the recurrence starts (Feng et al.
2024, arXiv:2410.01201, appendix B.2).  What each tensor was computed from is noted while a module
is captured, so that the same C is the same tensor; an operation in place ends what is known.
"""

from typing import Any

import torch
from torch import SymInt, Tensor
from torch._higher_order_ops.scan import scan
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

ALIASES = {
    "__mul__": "mul",
    "__rmul__": "mul",
    "multiply": "mul",
    "__add__": "add",
    "__radd__": "add",
    "__sub__": "sub",
    "__neg__": "neg",
    "negative": "neg",
    "__truediv__": "div",
    "divide": "div",
    "concat": "cat",
    "concatenate": "cat",
}
KNOWN = frozenset("mul add sub neg div exp cumsum logcumsumexp cat pad __getitem__ slice".split())

Made = tuple[str, tuple[Any, ...]]


class TensorOrigins:
    """What tensors were computed from, by the few operations that matter here."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Tensor, Made]] = {}

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Note one call, and return what stands for its result: itself, or a decayed sum."""
        name = getattr(func, "__name__", "")
        name = ALIASES.get(name, name)
        if _writes(name, kwargs):
            self._made.clear()
        if name == "pad" and _pads_by_zeros(args[2:], kwargs):
            args, kwargs = args[:2], {}
        if name not in KNOWN or not isinstance(result, Tensor) or kwargs.keys() - {"dim"}:
            return result
        if not result.dtype.is_floating_point:
            return result
        args = (*args, *kwargs.values())
        self._made[id(result)] = (result, (name, args))  # kept, so that no other has its id
        found = self._sum_of(name, args)
        return result if found is None else found

    def _of(self, value: Any, name: str) -> tuple[Any, ...] | None:
        """The arguments of the call `name` that gave `value`."""
        kept = self._made.get(id(value))
        return kept[1][1] if kept is not None and kept[1][0] == name else None

    def _sum_of(self, name: str, args: tuple[Any, ...]) -> Tensor | None:
        if name == "mul":
            return self._product(args)
        if name == "exp":
            return self._exponential(args[0])
        if name == "__getitem__" and isinstance(args[1], tuple):
            cuts = [at for at, each in enumerate(args[1]) if each != slice(None)]
            cut = args[1][cuts[0]] if len(cuts) == 1 else None
            if isinstance(cut, slice) and cut.stop is None and cut.step in (None, 1):
                return self._without_first(args[0], cuts[0], cut.start)
        if name == "slice" and args[3:] in ((), (None,), (None, 1)):  # as exports call it
            return self._without_first(*args[:3])
        return None

    def _led(self, value: Any, dim: int) -> tuple[Tensor | None, Tensor] | None:
        """The first entry of `value` along `dim`, None for zero, and the tensor of the others."""
        joined, padded = self._of(value, "cat"), self._of(value, "pad")
        if joined is not None and len(joined[0]) == 2:
            first, rest = joined[0]
            axis = joined[1] if len(joined) > 1 else 0
            return (first, rest) if axis % value.dim() == dim and first.shape[dim] == 1 else None
        if padded is not None and len(padded) == 2:
            pads = [0] * (2 * value.dim())
            pads[2 * (value.dim() - 1 - dim)] = 1
            given = [*padded[1], *[0] * (len(pads) - len(padded[1]))]
            return (None, padded[0]) if given == pads else None
        return None

    def _without_first(self, value: Any, dim: int, start: Any) -> Tensor | None:
        """All entries but the first of what was led by one, by the place where they begin."""
        found = self._led(value, dim) if isinstance(start, int | SymInt) else None
        if found is None:
            return None
        from_front = isinstance(start, int) and start >= 0
        place = start if from_front else value.shape[dim] + start
        return found[1] if statically_known_true(place == 1) else None

    def _product(self, args: tuple[Any, ...]) -> Tensor | None:
        """``e^C cumsum(b e^-C)`` among the factors of a product."""
        factors = [factor for each in args for factor in self._factors(each)]
        for place, factor in enumerate(factors):
            total = self._of(factor, "exp")
            grown = None if total is None else self._of(total[0], "cumsum")
            if total is None or grown is None:
                continue
            for at, other in enumerate(factors):
                summed = self._of(other, "cumsum")
                if at == place or summed is None or _axis(other, summed) != _axis(total[0], grown):
                    continue
                parts = self._without_decay(summed[0], total[0])
                if parts is not None:
                    rest = [f for i, f in enumerate(factors) if i not in (place, at)]
                    found = _decayed(grown[0], _times(parts), _axis(total[0], grown))
                    product: Tensor = _times([found, *rest])
                    return product
        return None

    def _exponential(self, value: Tensor) -> Tensor | None:
        """``e^(C + logcumsumexp(log b - C))``."""
        terms = self._of(value, "add")
        for total, logarithm in (terms[:2], terms[1::-1]) if terms and len(terms) == 2 else ():
            grown, summed = self._sum(total), self._of(logarithm, "logcumsumexp")
            less = None if summed is None else self._of(summed[0], "sub")
            if grown is None or summed is None or less is None or len(less) != 2:
                continue
            if less[1] is total and _axis(total, grown) == _axis(logarithm, summed):
                return self._led_or_not(grown[0], less[0], _axis(total, grown))
        return None

    def _led_or_not(self, logarithm: Tensor, added: Tensor, dim: int) -> Tensor:
        """The recurrence of e^added; where a first entry leads that of both, from there."""
        decays, terms = self._led(logarithm, dim), self._led(added, dim)
        if decays is None or decays[0] is not None or terms is None or terms[0] is None:
            return _decayed(logarithm, torch.exp(added), dim)
        first = torch.exp(terms[0])
        rest = _decayed(decays[1], torch.exp(terms[1]), dim, first.select(dim, 0))
        first = first.expand(*rest.shape[:dim], 1, *rest.shape[dim + 1 :])
        result = torch.cat([first, rest], dim)
        self._made[id(result)] = (result, ("cat", ([first, rest], dim)))
        return result

    def _sum(self, value: Any) -> tuple[Any, ...] | None:
        """What `value` is the cumulative sum of; of what is padded by zero, if that is a sum."""
        padded = self._of(value, "pad")
        inner = None if padded is None else self._of(padded[0], "cumsum")
        if padded is None or inner is None:
            return self._of(value, "cumsum")
        wide = F.pad(inner[0], *padded[1:])
        self._made[id(wide)] = (wide, ("pad", (inner[0], *padded[1:])))
        return wide, *inner[1:]

    def _factors(self, value: Any) -> list[Any]:
        given = self._of(value, "mul")
        return [value] if given is None else [f for each in given for f in self._factors(each)]

    def _without_decay(self, value: Any, total: Tensor) -> list[Any] | None:
        """The factors of `value` but ``e^-total``, which is to be one of them."""
        ratio = self._of(value, "div")
        if ratio is not None and len(ratio) == 2:
            exponent = self._of(ratio[1], "exp")
            return [ratio[0]] if exponent is not None and exponent[0] is total else None
        factors = self._factors(value)
        for place, factor in enumerate(factors):
            exponent = self._of(factor, "exp")
            negated = None if exponent is None else self._of(exponent[0], "neg")
            if negated is not None and negated[0] is total:
                return [*factors[:place], *factors[place + 1 :]]
        return None


def _writes(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call may write to a tensor that is known, as ``add_``, ``+=`` and ``out=`` do."""
    inside = name == "__setitem__" or name.startswith("__i") or name.rstrip("_") + "_" == name
    return inside or kwargs.get("out") is not None or bool(kwargs.get("inplace"))


def _pads_by_zeros(further: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of `pad` puts zeros beside the entries, by what follows its lengths."""
    said = {**dict(zip(("mode", "value"), further, strict=False)), **kwargs}
    return said.get("mode", "constant") == "constant" and not said.get("value")


def _axis(result: Tensor, args: tuple[Any, ...]) -> int:
    """Along which axis a cumulative sum runs; -1 where that is not told."""
    dim = args[1] if len(args) == 2 else None
    return dim % result.dim() if isinstance(dim, int) else -1


def _times(factors: list[Any]) -> Any:
    product: Any = factors[0] if factors else 1.0
    for factor in factors[1:]:
        product = product * factor
    return product


def _decayed(logarithm: Tensor, added: Any, dim: int, start: Tensor | None = None) -> Tensor:
    """h_t = e^(logarithm_t) h_(t-1) + added_t along `dim`, from `start`, or from zero."""
    added = torch.as_tensor(added, dtype=logarithm.dtype)
    shape = (logarithm + added).shape
    factor, added = torch.exp(logarithm).expand(shape), added.expand(shape)
    over = (factor.movedim(dim, 0), added.movedim(dim, 0))

    def step(h: Tensor, entry: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        now = entry[0] * h + entry[1]
        return now, now.clone()

    first = torch.zeros_like(over[1][0]) if start is None else start.expand(over[1][0].shape)
    result: Tensor = scan(step, first.clone(), over, dim=0)[1]
    return result.movedim(0, dim)
