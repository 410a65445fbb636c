"""Which projections of a graph a low-bit pass takes, with how many bits, and why not the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.ops import BITS
from intaglio.passes.analysis.projections import Projection, projections, uses
from intaglio.passes.calibrating import LOGITS


@dataclass(frozen=True, kw_only=True)
class ChosenLayer:
    """A projection to quantize: `group` inputs share a scale, all of a row where it is -1."""

    projection: Projection
    bits: int
    group: int

    @property
    def path(self) -> str:
        """The module's path."""
        return self.projection.path

    @property
    def tied(self) -> bool:
        """Whether the weight is used elsewhere too, and stays there in float."""
        return uses(self.projection.weight) > 1


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The layers in the order of computation, and a reason for each projection left in float."""

    layers: Sequence[ChosenLayer]
    skipped: Mapping[str, str]

    @property
    def by_input(self) -> list[list[ChosenLayer]]:
        """Layers that read the same value, like queries, keys and values, together."""
        found: dict[ir.Value, list[ChosenLayer]] = {}
        for layer in self.layers:
            found.setdefault(layer.projection.x, []).append(layer)
        return list(found.values())


def plan(
    graph: ir.Graph,
    *,
    bits: int,
    group: int,
    layers: Sequence[str],
    skip: Sequence[str],
    head: bool,
    overrides: Mapping[str, Mapping[str, Any]],
    who: str,
    elsewhere: Sequence[str] = (),
) -> Chosen:
    """Choose by globs over module paths; an override's `bits` and `group` go before the others.

    A glob may fit a module of `elsewhere`, which other graphs use; there may be no layer here then.

    Raises:
        PassError: a number of bits or a group that there is not, or a glob that fits nothing.
    """
    found = list(projections(graph))
    paths = [projection.path for projection in found]
    _check_globs(who, [*layers, *skip, *overrides], paths, elsewhere)
    chosen, skipped = [], {}
    for projection in found:
        path = projection.path
        reason = _reason(projection, paths, layers=layers, skip=skip, head=head)
        if reason:
            skipped[path] = reason
            continue
        options = {"bits": bits, "group": group}
        for glob, values in overrides.items():
            if fnmatchcase(path, glob):
                options |= values
        check_layer_options(who, options)
        chosen.append(ChosenLayer(projection=projection, **options))
    if not chosen and not elsewhere:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:4])
        raise PassError(f"{who}: there is nothing to quantize ({reasons or 'no projections'}).")
    return Chosen(layers=chosen, skipped=skipped)


def _reason(
    projection: Projection,
    paths: Sequence[str],
    *,
    layers: Sequence[str],
    skip: Sequence[str],
    head: bool,
) -> str:
    """Why `projection` stays in float; empty where it does not."""
    path = projection.path
    if not any(fnmatchcase(path, glob) for glob in layers):
        return "not among layers"
    if any(fnmatchcase(path, glob) for glob in skip):
        return "among skip"
    if not head and is_head(projection):
        return "it yields the logits; head=true quantizes it too"
    if paths.count(path) > 1:
        return f"its weight is used {paths.count(path)} times, on inputs of its own each"
    return ""


def is_head(projection: Projection) -> bool:
    """Whether `projection` yields the graph's logits, its bias added perhaps."""
    value = projection.node.outputs[0]
    adds = [node.outputs[0] for node, _ in value.uses() if node.op_type == "Add"]
    return any(v.name == LOGITS and v.is_graph_output() for v in (value, *adds))


def check_layer_options(who: str, options: Mapping[str, Any]) -> None:
    """Refuse bits and groups that there are not.

    Raises:
        PassError: naming the option.
    """
    unknown = sorted(options.keys() - {"bits", "group"})
    if unknown:
        raise PassError(f"{who}: an override has {unknown[0]!r}; it may have bits and group.")
    if options["bits"] not in BITS:
        raise PassError(f"{who}: bits = {options['bits']!r} should be one of {BITS}.")
    group = options["group"]
    if not isinstance(group, int) or group < -1 or group == 0:
        raise PassError(f"{who}: group = {group!r} should be a positive number, or -1 for rows.")


def _check_globs(
    who: str, globs: Iterable[str], paths: Sequence[str], elsewhere: Sequence[str]
) -> None:
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in (*paths, *elsewhere)):
            raise PassError(
                f"{who}: {glob!r} fits none of the projections; they are: "
                f"{', '.join(paths[:8])}{' ...' if len(paths) > 8 else ''}."
            )
