"""What a step is given, checked against the manifest before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array
from intaglio.runtime.dims import size_of, symbols_of
from intaglio.runtime.graph_entry import Below, Limits, SizeRange, TensorSpec
from intaglio.spelling import perhaps
from intaglio.state import BATCH, TIME, entries_of

Sizes = Mapping[str, int]
UNBOUNDED = int(np.iinfo(np.uint64).max)  # the limit of columns that pick nothing


def as_arrays(inputs: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The inputs of a step as arrays of the right rank, those that may be left out filled.

    Raises:
        InputError: if one is missing, unknown or of another rank or dtype.
    """
    names = [spec.name for spec in specs]
    for spec in specs:
        if spec.name not in inputs and spec.default is None:
            raise InputError(f"The input {spec.name!r} is missing. A step takes: {list_of(names)}.")
    for name in inputs:
        if name not in names:
            raise InputError(
                f"There is no input {name!r}{perhaps(name, names)}. A step takes: "
                f"{list_of(names)}; the session itself carries states and positions."
            )
    arrays = {s.name: as_array(inputs[s.name], s) for s in specs if s.name in inputs}
    sizes = {
        dim: size
        for spec in specs
        if spec.name in arrays
        for dim, size in zip(spec.shape, arrays[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return {s.name: arrays[s.name] if s.name in arrays else _filled(s, sizes) for s in specs}


def require_no_conditions(
    inputs: Mapping[str, Any], conditions: Sequence[TensorSpec], once: str
) -> None:
    """Refuse conditions among the inputs of a step.

    Args:
        inputs: of the step, by name.
        conditions: that the graph takes.
        once: the call that takes them, with a gap for what it is given, as ``condition({})``.

    Raises:
        InputError: if one is there.
    """
    for spec in conditions:
        if spec.name in inputs:
            raise InputError(
                f"{spec.name!r} is a condition, which holds for the whole sequence: give it once, "
                f"{once.format(f'{{{spec.name!r}: ...}}')}, and not to each step."
            )


def _filled(spec: TensorSpec, sizes: Sizes) -> Array:
    if not all(isinstance(dim, int) or dim in sizes for dim in spec.shape):
        raise InputError(f"The input {spec.name!r} is missing: its size follows from no other.")
    return np.full(shape_of(spec, sizes), spec.default, spec.dtype)


def as_array(value: Any, spec: TensorSpec, what: str = "input") -> Array:
    """`value` as an array of the rank and dtype of `spec`; errors call it a `what`.

    Raises:
        InputError: if it is of others.
    """
    array = np.asarray(value)
    if array.ndim != len(spec.shape):
        raise InputError(
            f"The {what} {spec.name!r} has the shape {array.shape}, should be {_words(spec.shape)}."
        )
    if not np.can_cast(array.dtype, spec.dtype, "safe"):
        raise InputError(
            f"The {what} {spec.name!r} is {array.dtype}, should be {spec.dtype}. "
            f"Convert it with astype({spec.dtype!r})."
        )
    return array


def sizes_of(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], limits: Limits) -> Sizes:
    """Sizes of the symbolic dimensions of `specs`; batch and time always among them.

    Raises:
        InputError: if a dimension is not as the bundle or another input has it, or time is 0.
    """
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = arrays[spec.name].shape
        for axis, (size, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
            each = entries_of(wanted)
            if each is not None and each > 1:
                sizes.setdefault(TIME, _tokens(spec, shape, size, each))
                expected = each * sizes[TIME]
            else:
                expected = wanted if isinstance(wanted, int) else sizes.setdefault(wanted, size)
            if size != expected:
                free = f" with {wanted} = {expected}" if isinstance(wanted, str) else ""
                raise InputError(
                    f"The input {spec.name!r} has the shape {shape}, should be "
                    f"{_words(spec.shape)}{free}: its axis {axis} is {size}, not {expected}."
                )
    if sizes.setdefault(TIME, 1) == 0:
        raise InputError("The step has 0 tokens (time = 0), needs at least 1. Leave it out.")
    if sizes.setdefault(BATCH, limits.batch or 1) == 0:
        raise InputError("The step has 0 rows (batch = 0), needs at least 1.")
    for symbol, span in limits.sizes.items():
        if symbol in sizes and not _holds(span, sizes[symbol]):
            raise InputError(_out_of_range(symbol, span, sizes[symbol], specs))
    if limits.batch not in (None, sizes[BATCH]):
        raise InputError(
            f"The step has {sizes[BATCH]} rows, but the bundle was exported for a batch of exactly "
            f"{limits.batch}. Export it with a free batch, or give {limits.batch} rows."
        )
    return sizes


def require_ends(ends: Sequence[int], past: npt.NDArray[np.int64], tokens: int) -> None:
    """Refuse a step that takes a part of a block, whose tokens see each other.

    Raises:
        InputError: if a row ends elsewhere than after one of `ends` tokens.
    """
    for row, begin in enumerate(past.tolist()):
        if begin + tokens in ends:
            continue
        following = [end - begin for end in ends if end > begin]
        if not following:
            return  # the context ends, which is told where room is made
        raise InputError(
            f"The step has {tokens} tokens, and row {row} has had {begin}: its tokens see each "
            f"other in blocks, which a step takes whole. Give {following[0]} tokens"
            f"{f', or {following[1]} for two blocks' if len(following) > 1 else ''}."
        )


def _tokens(spec: TensorSpec, shape: tuple[int, ...], size: int, each: int) -> int:
    """How many tokens `size` entries along time are, each of `each` entries."""
    if size % each:
        raise InputError(
            f"The input {spec.name!r} has the shape {shape}: along time it has {size} entries, and "
            f"a step takes a multiple of {each}. Keep the last {size % each} for the next step, or "
            "pad the end of the stream."
        )
    return size // each


def _holds(span: SizeRange, size: int) -> bool:
    least, most, step, _ = span
    return size >= least and (most is None or size <= most) and (size - least) % step == 0


def _out_of_range(symbol: str, span: SizeRange, size: int, specs: Sequence[TensorSpec]) -> str:
    least, most, step, _ = span
    owner = next(spec.name for spec in specs if symbol in spec.shape)
    words = f"{least} or more" if most is None else f"{least} to {most}"
    steps = f", in steps of {step}" if step > 1 else ""
    return (
        f"The input {owner!r} has {symbol} = {size}; the bundle was exported for {words}{steps}. "
        f"Export it for others with --axes, as {symbol}=LEAST..MOST:STEP."
    )


def shape_of(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """Shape of a tensor, its symbols replaced by their sizes.

    Raises:
        InputError: if a dimension follows from none of them, or is none at these sizes.
    """
    found = [size_of(dim, sizes) for dim in spec.shape]
    for dim, size in zip(spec.shape, found, strict=True):
        if size is None:
            told = ", ".join(f"{symbol} = {n}" for symbol, n in sizes.items())
            raise InputError(f"{spec.name!r} has the dimension {dim}, which is no size at {told}.")
    return tuple(size for size in found if size is not None)


def follows(spec: TensorSpec, sizes: Sizes) -> bool:
    """Whether the shape of a tensor is known before a call, by sizes alone."""
    return all(symbols_of(dim) <= sizes.keys() for dim in spec.shape)


def check_out(out: Mapping[str, Any], outputs: Iterable[tuple[str, tuple[int, ...], Any]]) -> None:
    """Require the arrays `out`, given by the caller, to hold outputs of these shapes and dtypes.

    Raises:
        InputError: if one does not, or is no output.
    """
    expected = {name: (shape, dtype) for name, shape, dtype in outputs}
    for name, array in out.items():
        if name not in expected:
            raise InputError(f"out names {name!r}, but a step gives: {list_of(expected)}.")
        shape, dtype = expected[name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"out[{name!r}] is a {type(array).__name__}, should be a numpy array.")
        if array.shape != shape or array.dtype != dtype:
            raise InputError(
                f"out[{name!r}] is {array.dtype} {array.shape}, should be {dtype} {shape}."
            )
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise InputError(
                f"out[{name!r}] must be writeable and contiguous. Give a fresh array, as of "
                "numpy.empty, rather than a slice of one."
            )


def lengths_of(lengths: Any, sizes: Sizes) -> npt.NDArray[np.int64]:
    """`lengths` as int64 [batch], each between 0 and time.

    Raises:
        InputError: if they are not.
    """
    array = np.asarray(lengths)
    batch, time = sizes[BATCH], sizes[TIME]
    fits = array.shape == (batch,) and np.issubdtype(array.dtype, np.integer)
    if not fits or array.min() < 0 or array.max() > time:
        raise InputError(
            f"lengths is {lengths!r}, should be {batch} integers from 0 to {time}: the tokens of "
            "each row that count."
        )
    return array.astype(np.int64)


def limit_of(spec: TensorSpec, sizes: Sizes) -> int | Array:
    """Below what the values of a bounded input stay: a number, or one for each column or row.

    It is `UNBOUNDED` for those that pick nothing.
    """
    return limit_in(spec.below, sizes)


def limit_in(below: Below | None, sizes: Sizes) -> int | Array:
    """Of a bound, what `limit_of` gives."""
    if isinstance(below, tuple):
        return np.array([limit_in(each, sizes) for each in below], np.uint64)
    if below is None:
        return UNBOUNDED
    return sizes[below] if isinstance(below, str) else below


def strays_of(ids: Array, limit: Array) -> Array:
    """Which of `ids` are not below their limit, or negative where there is one."""
    found: Array = ((ids < 0) | (ids >= limit)) & (limit != UNBOUNDED)
    return found


def require_within(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], sizes: Sizes) -> None:
    """Refuse values that their table does not have.

    Raises:
        InputError: if there are any.
    """
    for spec in specs:
        array = arrays[spec.name]
        if spec.below is not None and array.dtype.kind in "iu" and array.size:
            limit = limit_of(spec, sizes)
            if not _is_within(array, limit):
                raise InputError(stray(spec, limit, array))


def _is_within(array: Array, limit: int | Array) -> bool:
    if not isinstance(limit, int):
        return not np.any(strays_of(array, limit))
    if array.size == 1:  # a token: without the cost of numpy's reductions
        return 0 <= int(array.item()) < limit
    return int(array.min()) >= 0 and int(array.max()) < limit


def stray(spec: TensorSpec, limit: int | Array, ids: Array, what: str = "input") -> str:
    """Say which of `ids` is not below `limit`, and where it stands in the `what`."""
    limits = np.broadcast_to(np.asarray(limit, np.uint64), ids.shape)
    place = tuple(np.argwhere(strays_of(ids, limits))[0].tolist())
    hint = " Is this the tokenizer of this model?" if isinstance(spec.below, int) else ""
    return (
        f"The {what} {spec.name!r} has {ids[place]} at {list(place)}; it should be from 0 to "
        f"{int(limits[place]) - 1}.{hint}"
    )


def _words(shape: Iterable[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def list_of(names: Iterable[int | str]) -> str:
    """`names` in a sentence."""
    return ", ".join(map(str, names))
