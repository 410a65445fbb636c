"""What the code of a module calls the values that it returns: ``return self.head(y), h, c``."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence

from torch import nn


def returned_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the entries of the one tuple that `forward` returns, "" for what has none.

    Nothing where the code is not at hand, or returns in several places.  The name of a tuple
    stands for itself; that of its entries is for `entry_names`.
    """
    forward = getattr(type(module), "forward", None)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError, IndentationError):
        return ()
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef):
        return ()
    returns = list(_returns(function.body))
    if len(returns) != 1 or returns[0].value is None:
        return ()
    value = returns[0].value
    return tuple(_names(value.elts if isinstance(value, ast.Tuple | ast.List) else [value]))


def _names(entries: Sequence[ast.expr]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, ast.Tuple | ast.List):
            yield from _names(entry.elts)
        else:
            yield entry.id if isinstance(entry, ast.Name) else ""


def _returns(body: Sequence[ast.stmt]) -> Iterator[ast.Return]:
    """The return statements of a function, not those of functions within it."""
    for statement in body:
        if isinstance(statement, ast.Return):
            yield statement
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _returns(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from _returns(handler.body)
