"""Dimensions that follow from others by arithmetic: ``2*time``, ``(height - 1)//4 + 1``.

An output may have such a dimension; the sizes of a call give its value.  A text comes from a
manifest, so nothing but the arithmetic here is evaluated.  A name that no size has is of a
dimension that only the call itself tells, as of the places that are not zero.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

Number = int | Fraction

LONGEST = 2000  # letters of a dimension
LARGEST = 2**48
OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Div: lambda a, b: Fraction(a) / b,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "floor": math.floor,
    "ceiling": math.ceil,
}
"""As sympy writes them."""


@cache
def _parsed(text: str) -> ast.expr | None:
    """The tree of `text`, None where it is no arithmetic."""
    if len(text) > LONGEST:
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if all(_allowed(node) for node in ast.walk(tree)) else None


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATIONS
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        return named and not node.keywords and bool(node.args)
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    kinds = (ast.Name, ast.Load, ast.UnaryOp, ast.USub, ast.operator)
    return isinstance(node, kinds)


def symbols_of(dim: int | str) -> frozenset[str]:
    """The names that a dimension follows from: its own, where it is none of arithmetic."""
    if isinstance(dim, int):
        return frozenset()
    tree = _parsed(dim)
    if tree is None:
        return frozenset((dim,))
    calls = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return frozenset(node.id for node in names if id(node) not in calls)


def size_of(dim: int | str, sizes: Mapping[str, int]) -> int | None:
    """The value of a dimension; None where it follows from no size, or is no size."""
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    tree = _parsed(dim)
    if tree is None:
        return None
    try:
        value = _value(tree, sizes)
    except (KeyError, ZeroDivisionError, OverflowError, TypeError, RecursionError):
        return None
    return int(value) if value == int(value) and 0 <= value < LARGEST else None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Number:
    if isinstance(node, ast.Constant):
        return int(str(node.value))
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, sizes)
    if isinstance(node, ast.BinOp):
        found: Number = OPERATIONS[type(node.op)](
            _value(node.left, sizes), _value(node.right, sizes)
        )
        return found
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    value: Number = FUNCTIONS[node.func.id](*(_value(each, sizes) for each in node.args))
    return value
