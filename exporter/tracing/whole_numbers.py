"""Sizes that `int`, `len` and roots of `math` are taken of stay free while a module is captured.

Sizes are symbols then, and both of Python's functions return numbers alone, so that

    batch = int(windows.shape[0] / (height * width / side / side))

fixes the batch.  Functions of the modules' own files that call these call what stands here for as
long: the code is the same but for the name under which it looks it up.  A quotient of sizes is a
size where it is one for all sizes, at each division, so that no rounding is lost; of any other
PyTorch takes the whole part.  What has to be a number, as the end of a `range`, becomes one.
"""

import contextlib
import dis
import math
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import sympy
import torch
from torch import SymFloat, SymInt, Tensor, nn
from torch.utils._sympy.functions import FloatTrueDiv, IntTrueDiv, ToFloat

LIBRARIES = {"intaglio", "numpy", "torch", "transformers", *sys.stdlib_module_names}
"""Whose functions stay: they know of tracers, or never see a size."""


def _int(*args: Any, **options: Any) -> Any:
    if len(args) == 1 and not options:
        if isinstance(args[0], SymInt):
            return args[0]
        if isinstance(args[0], SymFloat):
            return _whole(args[0])
        if isinstance(args[0], Tensor) and not args[0].dtype.is_floating_point:
            return args[0].item()  # a size that is known when it has been computed
    return int(*args, **options)


def _len(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)


class _Math(ModuleType):
    """Python's `math`, whose roots and logarithms of sizes stay free."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(math, name)
        return FUNCTIONS.get(name, function)


def _sized(name: str) -> Any:
    function, own = getattr(math, name), getattr(torch, name)

    def call(x: Any, *others: Any) -> Any:
        free = isinstance(x, SymInt | SymFloat) and not others
        if not free:
            return function(x, *others)
        return x**0.5 if name == "sqrt" else own(torch.scalar_tensor(x, dtype=torch.float64))

    return call


FUNCTIONS = {name: _sized(name) for name in ("sqrt", "log", "log2", "log10", "log1p", "exp")}
FREE = {"int": _int, "len": _len, "math": _Math("math")}


def _whole(value: SymFloat) -> Any:
    size = _size(value.node.expr)
    if size is None:
        return torch.sym_int(value)  # type: ignore[no-untyped-call]
    return value.node.shape_env.create_symintnode(size, hint=int(value.node.hint))


def _size(expression: Any) -> Any:
    """A polynomial of sizes with whole coefficients that `expression` is; None where none is."""
    if expression.is_Float and expression == int(expression):
        return sympy.Integer(int(expression))
    if expression.is_integer:
        return expression
    parts = [_size(part) for part in expression.args]
    if not parts or any(part is None for part in parts):
        return None
    if isinstance(expression, ToFloat):
        return parts[0]
    if isinstance(expression, FloatTrueDiv | IntTrueDiv):
        found = sympy.cancel(parts[0] / parts[1])
    elif expression.is_Add or expression.is_Mul:
        found = sympy.expand(expression.func(*parts))
    else:
        return None
    _, below = sympy.fraction(sympy.together(found))
    return found if below == 1 and found.is_integer else None


@contextlib.contextmanager
def free_sizes(module: nn.Module) -> Iterator[None]:
    """Let the functions of `module` take sizes by `int` and `len` as they are."""
    changed = {function: function.__code__ for function in _functions(module)}
    held = [function.__globals__ for function in changed]
    try:
        for function, code in changed.items():
            function.__code__ = _freed(code)
        for names in held:
            names.update({_name(name): call for name, call in FREE.items()})
        yield
    finally:
        for function, code in changed.items():
            function.__code__ = code
        for names in held:
            for name in FREE:
                names.pop(_name(name), None)


def _functions(module: nn.Module) -> Iterator[FunctionType]:
    """Those that the model's code may call, each once, in which something would change."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    owners: list[type | ModuleType] = [kind for kind in kinds if _is_own(kind.__module__)]
    files = {kind.__module__ for kind in kinds if _is_own(kind.__module__)}
    owners += [sys.modules[name] for name in files if name in sys.modules]
    seen = set[FunctionType]()
    for value in (value for owner in owners for value in list(vars(owner).values())):
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        names = function.__globals__
        others = {name for name in FREE if name in names and names[name] is not math}
        own = _is_own(function.__module__) and not others
        if own and _freed(function.__code__) != function.__code__:
            yield function


def _is_own(name: str | None) -> bool:
    return name is not None and name.partition(".")[0] not in LIBRARIES


def _freed(code: CodeType) -> CodeType:
    """The code with other names of the functions that it does nothing with but call them."""
    used = [each for each in dis.get_instructions(code) if each.opcode in dis.hasname]
    called = {
        name
        for name in FREE
        if all(each.opname == "LOAD_GLOBAL" and ((each.arg or 0) & 1 or name == "math")
               for each in used if each.argval == name)
    }  # fmt: skip
    return code.replace(
        co_names=tuple(_name(name) if name in called else name for name in code.co_names),
        co_consts=tuple(
            _freed(each) if isinstance(each, CodeType) else each for each in code.co_consts
        ),
    )


def _name(name: str) -> str:
    return f"intaglio.{name}"  # which no source can write
