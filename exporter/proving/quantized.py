"""What a bundle with changed weights is held to: its source with the weights that the bundle has.

Weights of few bits are dequantized, and what passes made of others is undone: channels that are
gone are zeros, with which the source computes what the bundle does.  Of its caches, as many entries
of each head are compared as the bundle keeps.

Two errors are kept apart.  Quantization moves the source to its dequantized weights; its limit is
wide, and tells weights that were rounded from others.  The engine then computes with these weights,
its activations rounded to 8 bits; that is the error of the implementation.  Of next-token
distributions the mean Kullback-Leibler divergence is compared as well.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from intaglio.errors import BundleError
from intaglio.exporter.sources.source import Source
from intaglio.passes.graph import constant, load_graph
from intaglio.passes.low_bit import low_bit_nodes, parameter_of, weight_of
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.compare import Deviation
from intaglio.runtime.graph_entry import MAIN, GraphEntry

from .before_passes import before_passes, compressed_names

PORTABLE = "model.onnx"
LOWERING = "ort-low-bit"  # the pass that brings weights of few bits to ONNX Runtime
KL_LIMIT = 1e-3  # nats, of the mean over all tokens
LOGITS = "logits"
KL = f"{LOGITS}.kl"
# Of an output, as the root of its mean square.  Weights of 2 bits by plain rounding make up to half
# of trained models' outputs; other weights than the source's make 1.4, and none at all make 1.
MOVED_LIMIT = 0.75
MOVED = ".quantization"  # behind the name of an output

Array = npt.NDArray[Any]


def accuracy_of(entry: GraphEntry) -> str | None:
    """What the graph for ONNX Runtime makes of weights of few bits, None where it has none."""
    lowered = [r for r in entry.passes if r["name"] == LOWERING and r["changed"]]
    return next((details_of(record).get("accuracy") for record in lowered), None)


def details_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a pass told beyond what all tell; the schema knows the keys that are read here."""
    found: Mapping[str, Any] = record.get("details", {})
    return found


def portable_path(graph: BundleGraph) -> str:
    """The file of the portable form of a graph, which need not be there."""
    return PORTABLE if graph.name == MAIN else f"{graph.name}.onnx"


def dequantized(source: Source, graph: BundleGraph) -> Source | None:
    """`source` with the weights that `graph` has: of few bits, compressed, or tuned to these.

    Which they are the portable graph tells.  None where the graph has changed nothing of the
    source: also where the source came quantized.

    Raises:
        BundleError: if the bundle has no portable graph to read the weights from, or they, or what
            its manifest says was tuned, cannot be the source's.
    """
    bundle, records = graph.bundle, graph.entry.passes
    names = [graph.name, *([] if graph.entry.prepare is None else [graph.entry.prepare])]
    paths = [portable_path(bundle.graph(name)) for name in names]
    told = [details_of(record) for record in records]
    tuned = {name for details in told for name in details.get("tuned", ())}
    quantized = any("bits" in record.get("options", {}) for record in records)
    compressed = any(details.get(key) for details in told for key in ("placed", "factored"))
    absent = any(path not in bundle.manifest.files for path in paths)
    if absent and (tuned or quantized or compressed):
        raise BundleError(
            f"{bundle.root} has no portable graph, from which its weights are read. "
            "Export without --no-portable, or with --no-verify."
        )
    if absent:
        return None
    models = [load_graph(bundle.root, path) for path in paths]
    weights = {name: array for model in models for name, array in _low_bit_weights(model)}
    words = ["dequantized"] if weights else []
    for model in models if weights else ():
        weights |= _tuned_weights(model, tuned - weights.keys())
    if compressed:
        words.append("compressed")
    if not words:
        return None
    for model in models:
        weights |= _floats(model, compressed_names(told, weights) - weights.keys())
    weights, reshaped = before_passes(weights, told)
    if not weights:
        return None
    held = _with_weights(source, weights, reshaped, " and ".join(words))
    return held if held is None else replace(held, caches=_caches(told))


def _floats(model: ir.Model, names: Collection[str]) -> dict[str, Array]:
    found = {name: constant(model.graph.initializers.get(name)) for name in names}
    return {name: array for name, array in found.items() if array is not None}


def _caches(told: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Sequence[Sequence[int]]]:
    """The entries of the source's heads that each cache keeps, after one pass and the next.

    Raises:
        BundleError: if one keeps entries that the one before it left out.
    """
    found: dict[tuple[str, str], Sequence[Sequence[int]]] = {}
    for details in told:
        for path, ports in details.get("kept_in_caches", {}).items():
            for port, kept in ports.items():
                before = found.get((path, port))
                found[path, port] = kept if before is None else _of_kept(before, kept, path)
    return found


def _of_kept(
    before: Sequence[Sequence[int]], kept: Sequence[Sequence[int]], path: str
) -> list[list[int]]:
    try:
        return [[old[at] for at in now] for old, now in zip(before, kept, strict=True)]
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"What the manifest says of the entries that caches of {path!r} keep does not fit "
            "together. Export the bundle again."
        ) from error


def _low_bit_weights(model: ir.Model) -> Iterator[tuple[str, Array]]:
    """Float weights by parameter: those of few bits."""
    for node in low_bit_nodes(model):
        name, turned = parameter_of(node)
        weight = weight_of(node).dequantize()
        yield (name, weight.T if turned else weight)


def _tuned_weights(model: ir.Model, names: set[str]) -> dict[str, Array]:
    """Vectors that a pass says it tuned to the weights of few bits, as it does norms.

    Raises:
        BundleError: if one is a matrix: that would be another model.
    """
    found = {}
    for name in sorted(names):
        value = constant(model.graph.initializers.get(name))
        if value is None:
            continue
        if value.ndim > 1:
            raise BundleError(
                f"The manifest says that a pass tuned {name!r}, a matrix of floats: passes tune "
                "norms and biases alone. Do not use this bundle unless you know its origin."
            )
        found[name] = value
    return found


def _with_weights(
    source: Source, weights: Mapping[str, Array], reshaped: Collection[str], how: str
) -> Source | None:
    """`source` with other contents of some parameters; None if none of them is its own.

    Raises:
        BundleError: if a shape differs of one that is not `reshaped`, or if the source does not run
            with those that are.
    """
    name = f"{source.name} with its weights {how}"
    if isinstance(source.body, ir.Model):
        initializers = source.body.graph.initializers
        own = {key: array for key, array in weights.items() if key in initializers}
        body = source.body.clone()
        for key, array in own.items():
            if key not in reshaped:
                _require_shape(key, array, _shape(initializers[key]))
            initializer = body.graph.initializers[key]
            initializer.const_value = ir.tensor(np.ascontiguousarray(array))
            initializer.shape = ir.Shape(array.shape)
        for node in body.graph if reshaped else ():
            for output in node.outputs:
                output.shape = output.shape if output.is_graph_output() else None
        return replace(source, body=body, name=name, reweighted=True) if own else None
    module: nn.Module = copy.deepcopy(source.module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    own = {key: array for key, array in weights.items() if key in parameters}
    for key, array in own.items():
        if key not in reshaped:
            _require_shape(key, array, tuple(parameters[key].shape))
    with torch.no_grad():
        for key, array in own.items():
            value = torch.from_numpy(np.array(array)).to(parameters[key].dtype)
            # A tied weight whose twin stays in float, or one of another shape.
            if key in source.aliases or key in reshaped:
                owner, _, attribute = key.rpartition(".")
                setattr(
                    module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False)
                )
            else:
                parameters[key].copy_(value)
    if not own:
        return None
    held = replace(source, body=module, name=name)
    _require_run(held, reshaped)
    return held


def _require_run(source: Source, reshaped: Collection[str]) -> None:
    if not reshaped:
        return
    try:
        with torch.no_grad():
            source.module(**source.inputs)
    except Exception as error:
        raise BundleError(
            f"The source does not run with the product of two of its weights in their place "
            f"({', '.join(sorted(reshaped))}), so what a pass changed of it cannot be verified. "
            "Leave them apart, --pass merge-factors:keep=true, or export with --no-verify."
        ) from error


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = value.const_value
    return () if tensor is None else tuple(tensor.shape.numpy())


def _require_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise BundleError(
            f"The bundle holds the weight {name!r} as {list(array.shape)}, the source as "
            f"{list(shape)}. Verify it against the checkpoint that its manifest names."
        )


def moved_by_quantization(
    wanted: Mapping[str, Array], source: Mapping[str, Array], limits: Mapping[str, float]
) -> Iterator[Deviation]:
    """How far quantization moved each output: the root of the mean square, as a part of its own."""
    for name, reference in source.items():
        difference, scale = (
            float(np.linalg.norm(np.asarray(x, np.float64)))
            for x in (wanted[name] - reference, reference)
        )
        yield Deviation(
            name=f"{name}{MOVED}",
            error=difference / max(scale, 1e-30),
            limit=limits[f"{name}{MOVED}"],
            difference=difference,
            reference=scale,
            worst_step=None,
            steps=1,
        )


def quantization_error(
    wanted: Mapping[str, Array], source: Mapping[str, Array]
) -> dict[str, float]:
    """How far quantization moved each output, and the next-token distribution, of the source."""
    found = {}
    for name, reference in source.items():
        scale = max(float(np.abs(reference).max(initial=0)), 1e-30)
        found[name] = float(np.abs(wanted[name] - reference).max(initial=0)) / scale
    if LOGITS in source:
        found[KL] = float(_kl(wanted[LOGITS], source[LOGITS]).mean())
    return found


class MeanKl:
    """The mean divergence of next-token distributions over tokens, as they come."""

    def __init__(self, limit: float) -> None:
        """Hold the mean to `limit`."""
        self._limit = limit
        self._sum, self._count, self._largest, self._worst = 0.0, 0, -1.0, 0
        self._steps = 0

    def add(self, step: int, found: Array, expected: Array) -> None:
        """Take the logits of one token of every row, [batch, vocabulary]."""
        kl = _kl(found, expected)
        self._sum, self._count = self._sum + float(kl.sum()), self._count + kl.size
        self._steps += 1
        if not float(kl.max()) <= self._largest:
            self._largest, self._worst = float(kl.max()), step

    def deviation(self) -> Deviation:
        """The mean as a row of a report; `difference` is the largest of one token."""
        return Deviation(
            name=KL,
            error=self._sum / max(self._count, 1),
            limit=self._limit,
            difference=self._largest,
            reference=1.0,
            worst_step=self._worst,
            steps=self._steps,
        )


def _kl(found: Array, expected: Array) -> Array:
    """KL(softmax(expected) || softmax(found)) over the last axis, in nats."""
    a, b = (_log_softmax(np.asarray(x, np.float64)) for x in (found, expected))
    result: Array = (np.exp(b) * (b - a)).sum(-1)
    return result


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
