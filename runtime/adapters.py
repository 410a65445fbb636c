"""Adapters: what a fine-tuned model adds to the weights of its base, as files and as conditions.

A file ``.npz`` holds, for each changed parameter [n, m], any of three kinds of addition:

    NAME/rows [k], NAME/row_delta [k, m]             to the rows of these numbers
    NAME/columns [k], NAME/column_delta [n, k]       to the columns of these numbers
    NAME/down [r, m], NAME/up [n, r]                 up @ down, as LoRA has it

or, for a parameter of any shape that was trained as a whole, NAME/value, which takes its place; and
``base``, the SHA-256 of the base as manifests give it.  Rows and columns are those of S2FT (Yang et
al. 2024, arXiv:2412.06289), down and up those of LoRA (Hu et al. 2021, arXiv:2106.09685).  A bundle
whose adapters are switched takes the additions as conditions: all of one size, filled up with what
adds nothing, and with the place of each row in `row_delta` instead of the rows.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array, read_npz
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.spelling import perhaps
from intaglio.whole_files import output

BASE = "base"
NUMBER = "adapter"  # the condition that says which adapter a row has, where many are held
PREFIX = "adapter_"  # of the conditions that hold one
FOLDER = "adapters"  # of a bundle
FUSED, SWITCHED, PARALLEL = "fused", "switched", "parallel"
ROWS, COLUMNS, LOW = ("rows", "row_delta"), ("columns", "column_delta"), ("down", "up")
KINDS = (ROWS, COLUMNS, LOW)
PLACES = "places"  # of rows, as a condition has them
VALUE = "value"  # of a whole parameter
FREE = {"row_delta": 0, "column_delta": 1, "columns": 0, "down": 0, "up": 1, "rows": 0}
"""Which axis of an array counts rows, columns or ranks."""

ONLY_FUSED = "no session can switch that. Export with it: --adapters fused."

Parts = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is added to the parameters of a base, by name and by the part of its addition.

    `base` is the SHA-256 of the base, empty where it is not known.
    """

    base: str
    parts: Mapping[str, Parts]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises:
            InputError: if it cannot be read, or an array is missing, of a wrong shape, or not
                finite.
        """
        arrays = read_npz(path)
        base = arrays.pop(BASE, None)
        if base is None or base.dtype.kind != "U" or base.ndim:
            raise InputError(
                f"{path} is no adapter: it does not say what base it belongs to. Make one of a "
                "tuned model: intaglio adapter BASE TUNED -o FILE.npz."
            )
        parts: dict[str, dict[str, Array]] = {}
        for name, array in arrays.items():
            parameter, _, part = name.rpartition("/")
            parts.setdefault(parameter, {})[part] = array
        for parameter, found in parts.items():
            _check(found, f"{path}: {parameter}")
        return cls(base=str(base), parts=parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `read` takes."""
        arrays = {f"{n}/{part}": x for n, found in self.parts.items() for part, x in found.items()}
        with output(path) as draft, draft.open("wb") as file:  # numpy would add an ending to a name
            np.savez(file, allow_pickle=False, **{BASE: np.array(self.base)}, **arrays)

    @property
    def bytes(self) -> int:
        """Size of its arrays."""
        return sum(x.nbytes for found in self.parts.values() for x in found.values())

    def kinds(self) -> dict[tuple[str, tuple[str, str]], int]:
        """How many rows, columns or ranks there are, by parameter and kind of addition."""
        return {
            (name, kind): len(found[kind[0]])
            for name, found in self.parts.items()
            for kind in KINDS
            if kind[0] in found
        }

    def delta(self, name: str, shape: tuple[int, ...]) -> Array:
        """All that is added to the parameter `name` of `shape`, as one array.

        Raises:
            InputError: if it does not fit that shape.
        """
        found, total = self.parts[name], np.zeros(shape, np.float32)
        if len(shape) != 2:
            raise InputError(f"{name} has {len(shape)} axes; adapters are for matrices.")
        require_fit(found, name, shape)
        if "rows" in found:
            total[found["rows"]] += found["row_delta"]
        if "columns" in found:
            total[:, found["columns"]] += found["column_delta"]
        if "down" in found:
            total += found["up"] @ found["down"]
        return total


def require_fit(found: Parts, name: str, shape: tuple[int, ...]) -> None:
    """Hold additions to the shape [n, m] of their parameter.

    Raises:
        InputError: if one does not fit; it is named.
    """
    rows, columns = shape
    sizes = {
        "row_delta": (None, columns),
        "column_delta": (rows, None),
        "down": (None, columns),
        "up": (rows, None),
    }
    for part, wanted in sizes.items():
        if part in found and any(
            w not in (None, s) for w, s in zip(wanted, found[part].shape, strict=True)
        ):
            raise InputError(
                f"The adapter's {name}/{part} has the shape {found[part].shape}, and the base's "
                f"{name} is {rows} x {columns}. It was made for another model."
            )
    for part, size in (("rows", rows), ("columns", columns)):
        if part in found and len(found[part]) and found[part].max() >= size:
            raise InputError(
                f"The adapter's {name}/{part} names {found[part].max()}, and the base has {size}."
            )


def condition_name(parameter: str, part: str) -> str:
    """What a graph calls the part of an addition: letters, digits and underlines."""
    plain = "".join(c if c.isalnum() else "_" for c in parameter)
    return f"{PREFIX}{plain}_{part}"


def conditions(adapter: Adapter | None, specs: Iterable[TensorSpec]) -> dict[str, Array]:
    """The arrays that switch a session to `adapter`, or back to its base; for `Session.condition`.

    Args:
        adapter: one of the bundle's base; None for the base itself.
        specs: the conditions of the bundle, `entry.conditions`; those that are of no adapter are
            left out.

    Raises:
        InputError: if it changes what the bundle has no place for, or is wider than that place.
    """
    taken = {spec.name: spec for spec in specs if spec.name.startswith(PREFIX)}
    given: dict[str, Array] = {}
    for parameter, parts in ({} if adapter is None else adapter.parts).items():
        for part, array in parts.items():
            if part == VALUE:
                raise InputError(f"The adapter takes the place of all of {parameter}: {ONLY_FUSED}")
            name = condition_name(parameter, PLACES if part == "rows" else part)
            if name not in taken:
                raise InputError(
                    f"The adapter has {parameter}/{part}, for which this bundle has no place. "
                    "Export with it: --adapter NAME=FILE --adapters switched."
                )
            room = int(taken[name].shape[0])
            if part == "rows" and len(array) and array.max() >= room:
                raise InputError(f"{parameter}/rows names {array.max()} of {room} rows.")
            given[name] = places(array, room) if part == "rows" else array
            _require_room(f"{parameter}/{part}", given[name], taken[name])
    return {name: filled(spec, given.get(name)) for name, spec in taken.items()}


def filled(spec: TensorSpec, array: Array | None) -> Array:
    """`array` with what adds nothing behind it, of the size of `spec`."""
    made = np.zeros([int(dim) for dim in spec.shape], spec.dtype)
    if array is not None:
        made[tuple(slice(0, size) for size in array.shape)] = array
    return made


def places(rows: Array, count: int) -> Array:
    """For each of `count` rows which row of its delta is added, plus one; 0 for none."""
    found = np.zeros(count, np.int64)
    found[rows] = 1 + np.arange(len(rows))
    return found


def chosen(graph: BundleGraph, name: str | None, rows: int = 1) -> dict[str, Array]:
    """The conditions under which rows of a graph have an adapter, for `Session.condition`.

    Args:
        graph: of a bundle whose adapters are switched or parallel.
        name: of an adapter that was exported with it; where they are switched, any file of an
            adapter as well; None for the base.
        rows: how many there are.

    Raises:
        InputError: if there is no such adapter, it is of another base, or the graph has no place
            for it.
    """
    specs, bundle = graph.entry.conditions, graph.bundle
    names = list(bundle.manifest.recipe.get("adapter", {}))
    if any(is_number(spec) for spec in specs):
        if name is not None and name not in names:
            raise InputError(
                f"The bundle holds no adapter {name!r}{perhaps(name, names)}; it has: "
                f"{', '.join(names)}."
            )
        return {NUMBER: np.full(rows, 0 if name is None else 1 + names.index(name))}
    if not any(spec.name.startswith(PREFIX) for spec in specs):
        if name is None:
            return {}
        raise InputError(
            "The bundle takes no adapters. Export it with them: --adapter NAME=FILE "
            "--adapters switched."
        )
    if name is None:
        return conditions(None, specs)
    own = f"{FOLDER}/{name}.npz"
    path = bundle.root / own if name in names else Path(name)
    if name in names:
        bundle.check(own)
    elif not path.exists():
        raise InputError(
            f"There is no adapter {name!r}: neither a file, nor one of the bundle's, "
            f"{', '.join(names)}."
        )
    adapter, base = Adapter.read(path), str(bundle.manifest.source["sha256"])
    if adapter.base not in ("", base):
        raise InputError(
            f"The adapter {path} was made for a base whose SHA-256 is {adapter.base[:12]}..., and "
            f"the bundle is of {base[:12]}...: added to other weights it means nothing."
        )
    return conditions(adapter, specs)


def is_number(spec: TensorSpec) -> bool:
    """Whether a condition is the number of each row's adapter."""
    return spec.name == NUMBER and len(spec.shape) == 1


def is_of_adapter(spec: TensorSpec) -> bool:
    """Whether a condition is of an adapter, or its number."""
    return is_number(spec) or spec.name.startswith(PREFIX)


def _require_room(name: str, array: Array, spec: TensorSpec) -> None:
    if array.ndim != len(spec.shape) or any(
        size > int(room) for size, room in zip(array.shape, spec.shape, strict=True)
    ):
        raise InputError(
            f"The adapter's {name} has the shape {array.shape}, and the bundle has room for "
            f"{tuple(spec.shape)}. Export with this adapter among those of --adapter."
        )


def _check(found: Parts, what: str) -> None:
    """Refuse additions that are incomplete or contradict themselves."""
    if found.keys() == {VALUE}:
        if found[VALUE].dtype.kind != "f" or not np.isfinite(found[VALUE]).all():
            raise InputError(f"{what}: {VALUE} should be finite numbers.")
        return
    wanted = [kind for kind in KINDS if set(kind) & found.keys()]
    names = [part for kind in wanted for part in kind]
    for part in found:
        if part not in names:
            raise InputError(f"{what} has {part!r}, which is no part of an adapter.")
    for first, second in wanted:
        if first not in found or second not in found:
            lacks = second if first in found else first
            raise InputError(f"{what} lacks {lacks!r}.")
        a, b = found[first], found[second]
        counts = first in ("rows", "columns")
        if a.ndim != (1 if counts else 2) or b.ndim != 2 or len(a) != b.shape[FREE[second]]:
            raise InputError(f"{what}: {first} {a.shape} and {second} {b.shape} do not fit.")
        if counts and (a.dtype.kind not in "iu" or (a < 0).any() or len(set(a.tolist())) < len(a)):
            raise InputError(f"{what}: {first} should be distinct integers of at least 0.")
        for part in (second,) if counts else (first, second):
            if found[part].dtype.kind != "f" or not np.isfinite(found[part]).all():
                raise InputError(f"{what}: {part} should be finite numbers.")
