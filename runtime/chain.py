"""Graphs in a row: each takes what the one before it gives.

chain = Chain.load("bundle", ["stage0", "stage1"], replaced={"stage1": "another-bundle"})
logits = chain.step({"image": image})["output"]
"""

import os
from collections.abc import Mapping, Sequence
from typing import Self

import numpy.typing as npt

from intaglio.errors import BundleError
from intaglio.runtime.arrays import Array
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.engines import AUTO
from intaglio.runtime.graph_entry import MAIN, TensorSpec
from intaglio.runtime.session import Session

Path = str | os.PathLike[str]


class Chain:
    """Sessions of graphs of whole inputs, in a row.

    An output goes to the input of its name, or, where a graph gives one and the next takes one, to
    that.  The sessions may be of several bundles, so that each can be replaced by itself.

    Attributes:
        sessions: in their order.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        """Put sessions in a row.

        Raises:
            BundleError: if there is none, one carries a state or takes conditions, or what one
                gives does not fit the next; the first difference is named.
        """
        if not sessions:
            raise BundleError("A chain has at least one graph.")
        for session in sessions:
            if not session.entry.whole or session.entry.conditions:
                raise BundleError(
                    f"{_name(session)} is stepped, or takes conditions. A chain is of graphs of "
                    "whole inputs, which carry nothing from call to call."
                )
        self.sessions = tuple(sessions)
        links = zip(self.sessions, self.sessions[1:], strict=False)
        self._links = [_link(first, second) for first, second in links]

    @classmethod
    def load(
        cls,
        bundle: Path,
        graphs: Sequence[str],
        target: str = AUTO,
        *,
        replaced: Mapping[str, Path] | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open graphs of a bundle, in their order.

        Args:
            bundle: the folder that `intaglio export` wrote.
            graphs: their names.
            target: as of `Session.load`.
            replaced: another bundle for a graph, where it has that name or is the only one.
            threads: as of `Session.load`.

        Raises:
            BundleError: if a graph is not there, or does not fit its neighbours.
            DeviceError: if an engine cannot run here.
            MissingExtraError: if the library of an engine is not installed.
        """
        places = dict(replaced or {})
        for name in places:
            if name not in graphs:
                raise BundleError(f"{name!r} is not of the chain, which has: {', '.join(graphs)}.")
        opened = {path: Bundle.open(path) for path in {bundle, *places.values()}}
        found = []
        for name in graphs:
            own = opened[places.get(name, bundle)]
            alone = name in places and len(own.graphs) == 1
            graph = MAIN if alone else name
            found.append(Session.load(own, target, graph=graph, threads=threads))
        return cls(found)

    def step(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """The outputs of the last graph for inputs of the first.

        Raises:
            InputError: if an input is missing, unknown, or of a wrong dtype or shape.
            DeviceError: if the GPU that runs an engine fails.
        """
        found = self.sessions[0].step(inputs)
        for session, link in zip(self.sessions[1:], self._links, strict=True):
            found = session.step({name: found[output] for name, output in link.items()})
        return found


def _link(first: Session, second: Session) -> dict[str, str]:
    """For each input of the second the output of the first that it takes."""
    outputs = {spec.name: spec for spec in first.entry.outputs}
    link = {}
    for spec in second.entry.inputs:
        only = len(outputs) == len(second.entry.inputs) == 1
        name = next(iter(outputs)) if only else spec.name
        if name not in outputs:
            raise BundleError(
                f"{_name(second)} takes {spec.name!r}, which {_name(first)} does not give; it "
                f"gives: {', '.join(outputs)}."
            )
        if not _fits(outputs[name], spec):
            raise BundleError(
                f"{_name(first)} gives {_said(outputs[name])}, and {_name(second)} takes "
                f"{_said(spec)}: they do not fit each other."
            )
        link[spec.name] = name
    return link


def _fits(given: TensorSpec, taken: TensorSpec) -> bool:
    """Whether dtypes agree, and sizes where both are known."""
    if given.dtype != taken.dtype or len(given.shape) != len(taken.shape):
        return False
    pairs = zip(given.shape, taken.shape, strict=True)
    return all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs)


def _said(spec: TensorSpec) -> str:
    return f"{spec.name!r} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _name(session: Session) -> str:
    return f"the graph {session.graph.name!r} of {session.bundle.root}"
