"""``if mask.any():`` around what is done with the rows of a mask, and does nothing without any.

``if rows.shape[0] == 0: continue`` of the places of a mask asks the same, and so do ``len(rows)``,
``rows.numel()`` and the sizes of ``x[mask]``.
Mixtures of experts skip an expert that no row was sent to.  PyTorch captures no branch on values;
with the answer yes it captures what is done with rows, which `chosen_rows` then computes for all of
them.  That this is the module is shown by a second capture with the answer no: it asks the same
questions, none of which is within another then; without what each mask writes, the first program is
the second, operator by operator; and each write is behind the question of its own mask.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from .chosen_rows import Choice, compute_all_rows, same_rows

ATEN = torch.ops.aten
ASKED = "whether any row is chosen"  # marks the place of a question in a program
ANY = (torch.any, Tensor.any)
FOUND = (torch.where, torch.nonzero, Tensor.nonzero)
SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]
SIZED = (SHAPE, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.__len__)


class Answered(TorchFunctionMode):
    """Answers whether any entry is true, and how many are, whatever there is."""

    def __init__(self, *, yes: bool) -> None:
        super().__init__()
        self._yes = yes
        self._found: list[Tensor] = []  # kept, so that no other tensor takes their identity
        self._places: list[tuple[Tensor, Tensor]] = []  # of true entries, and whether there are any

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types  # part of the protocol
        if func is Tensor.__bool__ and any(args[0] is each for each in self._found):
            return self._answered(args[0])
        if func in SIZED and self._places:
            asked = [found for each, found in self._places if each is args[0]]
            if asked and not self._answered(asked[0]):
                return torch.Size((0, *args[0].shape[1:])) if func == SHAPE else 0
            if asked:
                torch._check(args[0].shape[0] > 0)  # type: ignore[no-untyped-call]  # noqa: SLF001
        result = func(*args, **(kwargs or {}))
        if func in ANY and len(args) == 1 and not kwargs:
            self._found.append(result)
        picks = func is Tensor.__getitem__ and _is_mask(args[1])
        if picks or (func in FOUND and len(args) == 1):
            parts = result if isinstance(result, tuple) else (result,)
            self._places += [(each, args[-1].any()) for each in parts]
        return result

    def _answered(self, found: Tensor) -> bool:
        torch._assert_async(found, ASKED)  # noqa: SLF001  an operator that stays where it is
        return self._yes


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype is torch.bool


def with_some_chosen(
    export: Callable[[TorchFunctionMode], ExportedProgram],
) -> ExportedProgram | None:
    """The program that computes all rows where the module asks whether any is chosen.

    Args:
        export: captures the module while it is answered.

    Returns:
        None where it is not shown that the module does nothing if none is.
    """
    some = export(Answered(yes=True))
    choices = _guarded(some, compute_all_rows(some))
    if not choices:
        return None
    none = export(Answered(yes=False))
    read = _Numbered(choices)
    if read.of(some) != read.of(none):
        return None
    for node in _questions(some):
        some.graph.erase_node(node)
    some.graph.eliminate_dead_code()
    some.graph_module.recompile()
    return some


def _questions(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if _asks(node)]


def _asks(node: fx.Node) -> bool:
    return node.target is ATEN._assert_async.msg and node.args[1] == ASKED  # noqa: SLF001


def _guarded(program: ExportedProgram, choices: list[Choice]) -> set[fx.Node]:
    """The nodes that choose rows behind the question of their own mask; none if one does not."""
    asked, masks = None, {choice.node: choice.mask for choice in choices}
    questions, found = set(_questions(program)), set()
    for node in program.graph.nodes:
        if node in questions:
            asked = node.args[0].args[0]
        if node in masks and asked is not None:
            if not same_rows(asked, masks[node]):
                return set()
            found.add(node)
    return found


class _Numbered:
    """What programs compute, as numbers: the same for what is computed in the same way.

    What `skipped` nodes choose is left out: they give what was there before.
    """

    def __init__(self, skipped: set[fx.Node]) -> None:
        self._skipped = skipped
        self._known: dict[fx.Node, int] = {}
        self._numbers: dict[Any, int] = {}

    def of(self, program: ExportedProgram) -> list[Any]:
        """What is asked and written in place, in its order, and what is returned."""
        found: list[Any] = []
        for node in program.graph.nodes:
            if node.op == "output":
                found.append(self._mapped(node.args))
                continue
            self._known[node] = number = self._number(node)
            if _asks(node):
                found.append(number)
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable and number != self._of(node.args[0]):
                found.append(number)
        return found

    def _of(self, node: Any) -> int:
        return self._known[node]

    def _number(self, node: Any) -> int:
        if node in self._skipped:
            return self._of(node.args[2])
        if node.target is ATEN.clone.default:
            return self._of(node.args[0])
        if node.target is ATEN.copy_.default and self._of(node.args[0]) == self._of(node.args[1]):
            return self._of(node.args[0])
        key = (node.op, str(node.target), self._mapped(node.args), self._mapped(node.kwargs))
        return self._numbers.setdefault(key, len(self._numbers))

    def _mapped(self, given: Any) -> str:
        return repr(fx.map_arg(given, lambda each: f"%{self._of(each)}"))
