"""Interaction basis: what layers read in coordinates of how much each counts, and fewer of them.

The local form (Bushnaq et al. 2024, arXiv:2405.10928, after 2405.10927; equations in
`_interaction.py`) takes derivatives up to the next layer in its basis, from the last back to the
first; where entries of the next one do not follow from the projections one by one, their results
count alike.  The global form takes them up to the outputs of the whole model
(`_global_derivatives.py`), which needs the module.  W x becomes (W C+^T) (C^T x) with the
directions that count most, C being shared by all projections of x; biases stay where they are.
Where x is a projection's result itself, C goes into that one, which is exact.

Behavioural loss is flat along all changes of W [N, K] but those of what inputs span and what the
next layer reads: of its parameters at most rank(G) rank(E[J_z^T J_z]) are effective.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes import calibrating
from intaglio.passes.analysis.projections import Projection, projections, uses
from intaglio.passes.base import Calibrated, Context, PassResult

from ._absorbing import Before, absorb, before
from ._chosen import is_head
from ._factors import put_factors
from ._global_derivatives import derivative_moments
from ._interaction import Basis, interaction_basis, output_metric, rank_of
from ._junctions import Junction, junctions
from ._moments import junction_moments, told
from ._narrow import Ledger, put_vector, vector_of, weight_of
from ._rib_results import read_rib, rib_basis

Array = npt.NDArray[Any]


class InteractionBasis(Calibrated):
    """Read fewer directions, those that count by data and derivatives (interaction basis)."""

    ratio: float = 0.3
    """The part of a layer's parameters that goes."""
    tail: float | None = None
    """Instead: the part of the eigenvalues' sum that may go; 0: only what counts for nothing."""
    rank: int = 0
    """Instead: the directions of every layer; 0: as the ratio says."""
    ranks: dict[str, int] = field(default_factory=dict)
    """The directions of the layers that a glob fits, before the others."""
    form: Literal["local", "global"] = "local"
    """Derivatives up to the next layer, or up to the outputs of the whole model."""
    probes: int = 8
    """Of the global form: backward passes for each batch of data."""
    rib: str = ""
    """A results file of rib, whose bases take the place of those that are found here."""
    nodes: dict[str, str] = field(default_factory=dict)
    """Its nodes by name, and a glob of the layers that read each; else layers below that name."""
    threshold: float = 1e-10
    """The part of the largest eigenvalue below which a direction counts for nothing."""
    layers: list[str] = field(default_factory=lambda: ["*"])
    """Globs over module paths: which projections read fewer directions."""
    skip: list[str] = field(default_factory=list)
    """Globs over module paths: what to leave whole."""
    head: bool = False
    """Take the projection to the logits, too."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Find every basis on the dense graph, then put them where they make it smaller."""
        data = context.calibration
        self.check_options(data=data is not None)
        assert data is not None
        left: dict[str, str] = {}
        found = junctions(model.graph)
        chosen = {j: [p for p in j.readers if self._takes(p, left)] for j in found}
        if not any(chosen.values()):
            words = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:4])
            raise PassError(f"interaction-basis found no layer ({words or 'no projections'}).")
        calibrating.check(model, context)
        dense = model.clone()
        stages = [calibrating.stage("dense", dense, context)]
        bases, effective = self._bases(model, context, found, chosen)
        theirs = self._read(chosen) if self.rib else {}
        bases |= theirs
        if self.rib:
            chosen = {j: readers if j in theirs else [] for j, readers in chosen.items()}
        by_output = {p.node.outputs[0]: p for j in found for p in j.readers}
        ledger, layers = Ledger(), []
        work: list[tuple[Junction, int]] = []
        for junction in found:
            if not chosen[junction]:
                continue
            absorbing = before(junction, by_output)
            takes = absorbing is not None and self._takes(absorbing.projection, {})
            whole = takes and len(chosen[junction]) == len(junction.readers)
            earlier = absorbing if whole and not self.rib else None
            layer = self._layer(chosen[junction], bases[junction], earlier, left)
            layers.append(layer | {"effective": effective[junction]})
            kept = layer["directions"][2]
            if kept and earlier is not None:
                absorb(junction, earlier, bases[junction], kept, ledger)
            elif kept:
                work.append((junction, kept))
        factors: dict[str, list[str]] = {}
        for junction, kept in work:
            factors |= _put(model.graph, chosen[junction], bases[junction], kept, ledger)
        common.RemoveUnusedNodesPass()(model)
        stages.append(calibrating.stage(self.name, model, context, dense))
        return PassResult(
            changed=bool(factors or ledger.placed),
            notes=[*map(_note, layers), *(f"{p} stays whole: {why}" for p, why in left.items())],
            advice=told(data, {j.readers[0].path: j.readers[0].inputs for j in bases}),
            details={
                "form": self.form,
                "layers": layers,
                "left": left,
                "parameters": [_size(dense), _size(model)],
                "effective": [sum(layer["effective"][i] for layer in layers) for i in (0, 1)],
                "stages": stages,
                "factored": factors,
                "placed": ledger.placed,
            },
        )

    def check_options(self, *, data: bool) -> None:
        """Refuse parts and ranks that there are not, and to learn from nothing."""
        if not 0 < self.ratio < 1:
            raise PassError(
                f"interaction-basis: ratio = {self.ratio} should be above 0 and below 1."
            )
        if self.tail is not None and not 0 <= self.tail < 1:
            raise PassError(
                f"interaction-basis: tail = {self.tail} should be at least 0 and below 1."
            )
        if self.rank < 0 or any(rank < 1 for rank in self.ranks.values()):
            raise PassError("interaction-basis: a rank should be at least 1.")
        if not 0 < self.threshold < 1:
            raise PassError(
                f"interaction-basis: threshold = {self.threshold} should be above 0 and below 1."
            )
        if self.probes < 1:
            raise PassError("interaction-basis: probes should be at least 1.")
        if not data:
            raise PassError(
                "interaction-basis needs data to learn from: give rows of the model's inputs with "
                "--calib FILE.npz, or text with --calib FILE.txt."
            )

    def _read(self, chosen: Mapping[Junction, Sequence[Projection]]) -> dict[Junction, Basis]:
        """The bases of a results file, by what reads there.

        Raises:
            PassError: the file cannot be read, or no chosen layer is at one of its nodes.
        """
        told = read_rib(Path(self.rib), self.name)
        found = {}
        for junction, readers in chosen.items():
            for node in told:
                glob = self.nodes.get(node, node)
                if readers and any(fnmatchcase(f"{p.path}.", f"{glob}.*") for p in readers):
                    found[junction] = rib_basis(node, told[node], readers[0].inputs, self.name)
        if not found:
            raise PassError(
                f"interaction-basis: no layer is at a node of {self.rib} ({', '.join(told)}). Say "
                "by nodes, in a recipe, which layers read each, as {'NODE' = 'GLOB'}."
            )
        return found

    def _takes(self, layer: Projection, left: dict[str, str]) -> bool:
        path = layer.path
        if not any(fnmatchcase(path, glob) for glob in self.layers):
            left[path] = "not among layers"
        elif any(fnmatchcase(path, glob) for glob in self.skip):
            left[path] = "among skip"
        elif is_head(layer) and not self.head:
            left[path] = "it yields the logits; head=true takes it too"
        elif uses(layer.weight) != 1:
            left[path] = "its weight is used elsewhere, too"
        return path not in left

    def _bases(
        self,
        model: ir.Model,
        context: Context,
        found: Sequence[Junction],
        chosen: Mapping[Junction, Sequence[Projection]],
    ) -> tuple[dict[Junction, Basis], dict[Junction, list[int]]]:
        """The basis of each junction that is needed, and its effective parameters.

        These as [all of its projections', of these at most effective].
        """
        if self.form == "global":
            needed = [junction for junction in found if chosen[junction]]
            ends = derivative_moments(model, needed, context, self.probes, self.name)
        else:
            needed, ends = _needed(found, chosen), {}
        moments = junction_moments(model, context, needed, self.name)
        bases: dict[Junction, Basis] = {}
        effective = {}
        metrics: dict[ir.Value, Array] = {}
        for junction in reversed(needed):
            counts = ends.get(junction)
            if counts is None:
                counts = _up_to_next(junction, moments[junction], metrics)
            weights = np.concatenate([weight_of(reader) for reader in junction.readers])
            gram = moments[junction]["gram"]
            basis = interaction_basis(gram, weights.T @ counts @ weights, self.threshold)
            bases[junction] = basis
            elsewhere = 0.0 if junction.alone else 1.0
            metrics[junction.x] = basis.C @ basis.C.T + elsewhere * np.eye(len(basis.C))
            ranks = [rank_of(part, self.threshold) for part in _blocks(junction, counts)]
            sizes = [p.outputs * p.inputs for p in junction.readers]
            effective[junction] = [sum(sizes), basis.span * sum(ranks)]
        return bases, effective

    def _layer(
        self,
        readers: Sequence[Projection],
        basis: Basis,
        earlier: Before | None,
        left: dict[str, str],
    ) -> dict[str, Any]:
        """What the readers of one value become, as it stands in a report; 0 directions: as it was.

        Raises:
            PassError: the ratio leaves no direction.
        """
        inputs, outputs = readers[0].inputs, sum(p.outputs for p in readers)
        behind = inputs if earlier is None else earlier.projection.inputs
        each = outputs + behind
        whole = inputs * (outputs if earlier is None else each)
        kept = self._kept(readers, basis, whole / each)
        if not kept or kept * each >= whole:
            words = f"{kept} directions are no smaller than the matrix"
            left.update(
                {p.path: words if kept else "no direction of what it reads counts" for p in readers}
            )
            kept = 0
        lost = float(basis.spectrum[kept:].sum() / basis.spectrum.sum()) if kept else 0.0
        return {
            "path": readers[0].path,
            "paths": [p.path for p in readers],
            "directions": [inputs, len(basis.spectrum), kept],
            "span": basis.span,
            "tail": lost,
            "into": None if earlier is None or not kept else earlier.projection.path,
            "parameters": [whole, kept * each if kept else whole],
        }

    def _kept(self, readers: Sequence[Projection], basis: Basis, even: float) -> int:
        """How many directions stay; `even` of them have as many parameters as the matrices."""
        most = len(basis.spectrum)
        for glob, rank in self.ranks.items():
            if any(fnmatchcase(p.path, glob) for p in readers):
                return min(rank, most)
        if self.rank:
            return min(self.rank, most)
        if self.tail is not None:
            sums = np.append(np.cumsum(basis.spectrum[::-1])[::-1], 0.0)
            return max(int(np.argmax(sums <= self.tail * sums[0])), min(1, most))
        kept = int((1 - self.ratio) * even)
        if kept < 1:
            raise PassError(
                f"interaction-basis: of the {readers[0].inputs} directions that "
                f"{readers[0].path} reads a ratio of {self.ratio} leaves none. "
                f"At most {1 - 1 / even:.3g} leaves one."
            )
        return min(kept, most)


def _up_to_next(
    junction: Junction, moments: Mapping[str, Array], metrics: Mapping[ir.Value, Array]
) -> Array:
    """E[J^T J] of what the next layers read in their bases, by what all readers yield."""
    places = dict(zip(junction.readers, _places(junction), strict=True))
    total = np.zeros((sum(p.outputs for p in junction.readers),) * 2)
    for number, between in enumerate(junction.between):
        own = np.concatenate([np.arange(places[p].start, places[p].stop) for p in between.readers])
        moment = moments[f"between.{number}"]
        total[np.ix_(own, own)] += output_metric(metrics[between.h], moment)
    for reader in junction.ends:
        total[places[reader], places[reader]] += np.eye(reader.outputs)
    return total


def _places(junction: Junction) -> list[slice]:
    ends = np.cumsum([0, *(p.outputs for p in junction.readers)])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def _blocks(junction: Junction, counts: Array) -> list[Array]:
    return [counts[place, place] for place in _places(junction)]


def _needed(
    found: Sequence[Junction], chosen: Mapping[Junction, Sequence[Projection]]
) -> list[Junction]:
    """Those with chosen readers, and all that their bases follow from."""
    by_value = {junction.x: junction for junction in found}
    needed: set[Junction] = set()
    waiting = [junction for junction in found if chosen[junction]]
    while waiting:
        junction = waiting.pop()
        if junction not in needed:
            needed.add(junction)
            waiting.extend(by_value[between.h] for between in junction.between)
    return [junction for junction in found if junction in needed]


def _put(
    graph: ir.Graph, readers: Sequence[Projection], basis: Basis, kept: int, ledger: Ledger
) -> dict[str, list[str]]:
    """Let the readers read `kept` directions, those together whose weights are stored alike."""
    found: dict[str, list[str]] = {}
    for by_output in (True, False):
        alike = [p for p in readers if p.by_output is by_output]
        if alike:
            lefts = [_behind(p, basis, kept, ledger) for p in alike]
            found |= put_factors(graph, alike, basis.C[:, :kept].T, lefts)
    return found


def _behind(reader: Projection, basis: Basis, kept: int, ledger: Ledger) -> Array:
    """What reads `kept` coordinates in the place of a reader; of a folded bias its own follows.

    Of [x, 1] C_r C_r+ [W^T; b^T] the constant is C_r's last row times all behind it.

    Raises:
        PassError: a bias is folded into the basis, and the reader has none of its own.
    """
    left: Array = weight_of(reader) @ basis.inverse[:kept].T
    if basis.fold is None:
        return left
    bias = vector_of(reader.bias)
    if bias is None or reader.bias is None or uses(reader.bias) != 1:
        raise PassError(
            f"interaction-basis: biases are folded into the bases of rib, and {reader.path} has "
            "no bias of its own."
        )
    constant, back = basis.fold
    left = left + np.outer(bias, back[:kept])
    put_vector(reader.bias, left @ constant[:kept], ledger)
    return left


def _size(model: ir.Model) -> int:
    """The parameters of all projections."""
    weights = {p.weight: p.outputs * p.inputs for p in projections(model.graph)}
    return sum(weights.values())


def _note(layer: Mapping[str, Any]) -> str:
    inputs, basis, kept = layer["directions"]
    all_, effective = layer["effective"]
    into = "" if layer["into"] is None else f", put into {layer['into']}"
    done = f"{kept} kept, tail {layer['tail']:.2e}{into}" if kept else "all kept"
    return (
        f"{', '.join(layer['paths'])}: {basis} of {inputs} directions count, {done}; "
        f"at most {effective} of {all_} parameters are effective"
    )
