"""How many tokens a loop over chunks takes together, seen in a program of many tokens."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram

from .loop_streams import PartedError
from .terms import aten

LENGTHS = (24, 96, 384, 1536)  # tokens at which chunks are looked for, of at most half as many


def chunk_size(
    unrolled: Callable[[int], ExportedProgram],
    calls: Callable[[int], int],
    taken: Collection[int],
) -> int | None:
    """Tokens of a chunk; None where no loop over chunks is seen.

    Args:
        unrolled: gives the program of a number of tokens.
        calls: how many functions the source calls for a number of tokens.
        taken: sizes that are none of time.
    """
    for least in LENGTHS:
        time = next(n for n in range(least, 2 * least) if n not in taken)
        try:
            program = unrolled(time)
        except PartedError:
            return None
        found = list(_cuts(program, time, taken))
        if len({start for start, length in found if length == 1}) > time // 2:
            return None  # a loop over tokens
        starts: dict[int, set[int]] = defaultdict(set)
        for start, length in found:
            if 1 < length <= time // 2 and start % length == 0:
                starts[length].add(start)
        several = [length for length, each in starts.items() if len(each) > 1]
        if several:
            return max(several, key=lambda length: length * len(starts[length]))
        if least == LENGTHS[0] and _grows_with_each(unrolled, calls, program, time):
            return None
    return None


def _grows_with_each(
    unrolled: Callable[[int], ExportedProgram],
    calls: Callable[[int], int],
    program: ExportedProgram,
    time: int,
) -> bool:
    """Whether each token more makes the program longer, as chunks that are not seen yet do not.

    Longer programs of a loop over tokens would take minutes, also where nothing reads what it gives
    and the program does not have it.
    """
    made = [calls(time + more) for more in range(3)]
    if made[0] < made[1] < made[2]:
        return True
    try:
        longer = [unrolled(time + more) for more in (1, 2)]
    except PartedError:
        return True
    counts = [len(each.graph.nodes) for each in (program, *longer)]
    return counts[0] < counts[1] < counts[2]


def _cuts(program: ExportedProgram, time: int, taken: Collection[int]) -> Iterator[tuple[int, int]]:
    """Where sequences are cut, and how long the parts are."""
    for node in program.graph.nodes:
        given = node.args[0] if node.args else None
        value = given.meta.get("val") if isinstance(given, fx.Node) else None
        if node.op != "call_function" or not isinstance(value, Tensor):
            continue
        for axis, size in enumerate(value.shape):
            if isinstance(size, int) and time <= size < 2 * time and size not in taken:
                yield from _of(node, axis, size)


def _of(node: fx.Node, axis: int, size: int) -> Iterator[tuple[int, int]]:
    """What `node` cuts off `axis`."""
    args: tuple[Any, ...] = node.args
    rank = len(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
    along: Any = args[1] if len(args) > 1 else 0
    if node.target is aten.select.int and along % rank == axis:
        yield int(args[2]), 1
    elif node.target is aten.slice.Tensor and along % rank == axis and len(args) < 5:
        start, end, _ = slice(*args[2:4]).indices(size)
        yield start, end - start
    elif node.target is aten.split.Tensor and (args[2] if len(args) > 2 else 0) % rank == axis:
        yield from ((start, int(args[1])) for start in range(0, size, int(args[1])))
    elif node.target is aten.unbind.int and along % rank == axis:
        yield from ((start, 1) for start in range(size))
    elif node.target in (aten.view.default, aten.reshape.default):
        made = node.meta["val"].shape
        pair = made[axis : axis + 2]
        whole = len(pair) == 2 and all(isinstance(each, int) for each in pair)
        if whole and pair[0] * pair[1] == size:
            yield from ((start, int(pair[1])) for start in range(0, size, int(pair[1])))
