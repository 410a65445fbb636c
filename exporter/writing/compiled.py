"""What is written: a graph that was made from a source, in the form that each engine runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import onnx_ir as ir

from intaglio.errors import IntaglioError
from intaglio.graph_keys import PARTS
from intaglio.passes import pipeline
from intaglio.passes.base import Context
from intaglio.runtime.graph_entry import MAIN


def prepares(graph: str) -> str:
    """The name of the graph that makes states of the conditions of another."""
    return "prepare" if graph == MAIN else f"{graph}_prepare"


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """A graph made from a source: the portable form and the one for each target.

    The weights of all of them are shared in a bundle.  `records` end with those of the lowering for
    ONNX Runtime; `told` is what tracing had to say, `others` the further graphs of the source, and
    `prepare` what hoist split off.  `lacks` is why there is no form for TensorRT that was asked
    for.  `beside` are the graphs that passes made of it, by the names that they have in a bundle.
    """

    portable: ir.Model
    ort: ir.Model
    trt: ir.Model | None
    context: Context
    records: Sequence[pipeline.PassRecord]
    told: tuple[str, ...]
    others: Mapping[str, "CompiledGraph"] = field(default_factory=dict)
    prepare: "CompiledGraph | None" = None
    lacks: IntaglioError | None = None
    beside: Mapping[str, "CompiledGraph"] = field(default_factory=dict)

    @property
    def graphs(self) -> "dict[str, CompiledGraph]":
        """All graphs by their names in a bundle, those that prepare others or stand beside too."""
        found = {}
        for name, each in {MAIN: self, **self.others}.items():
            found[name] = each
            if each.prepare is not None:
                found[prepares(name)] = each.prepare
            found.update(each.beside)
        return found

    def without_trt(self, why: IntaglioError | None = None) -> Self:
        """The same for ONNX Runtime alone, which TensorRT refuses for a reason."""
        others = {name: each.without_trt() for name, each in self.others.items()}
        prepare = None if self.prepare is None else self.prepare.without_trt()
        beside = {name: each.without_trt() for name, each in self.beside.items()}
        return replace(self, trt=None, others=others, prepare=prepare, lacks=why, beside=beside)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should hear: of tracing, and advice of passes."""
        own = [*self.told, *(line for r in self.records for line in r.result.advice)]
        if self.lacks is not None:
            own.append(f"There is nothing for TensorRT in the bundle: {self.lacks}")
        others = ((n, line) for n, each in self.others.items() for line in each.notes)
        return (*own, *(f"graph {name!r}: {line}" for name, line in others))


def weigh(compiled: CompiledGraph) -> int:
    """Bytes of the weights of all forms, which share what is the same.

    One that is made of others counts only where they are not all there.
    """
    graphs = [form for c in compiled.graphs.values() for form in (c.portable, c.ort, c.trt)]
    models = [model for model in graphs if model is not None]
    values = {name: v for model in models for name, v in model.graph.initializers.items()}
    tensors = {
        tensor.name: tensor.nbytes
        for value in values.values()
        if (tensor := value.const_value) is not None
        and not all(part in values for part in json.loads(value.metadata_props.get(PARTS, '[""]')))
    }
    return sum(tensors.values())
