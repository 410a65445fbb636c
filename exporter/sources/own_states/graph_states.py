"""States that a graph of another exporter carries itself, as voice activity detectors do.

An input becomes the output whose name pairs with its own, or, where the input is called like a
state, the one output of its shape.  The axes are those that the file declares: a size stays, a name
of the batch is the batch, and the one further free axis of other inputs is time.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.axes import Layouts
from intaglio.exporter.sources.examples import name_axes, read_inputs
from intaglio.exporter.sources.input_spec import InputSpec, Takes
from intaglio.passes.base import OwnState
from intaglio.passes.graph import constant, dims
from intaglio.state import BATCH, TIME

from .find import NONE, Described, note
from .initial import one_row, read_initial, split_initial
from .paired_names import pair, says_state

BATCHES = re.compile(r"batch(_?size)?|n|b|bs|bsz|batch_?dim|N", re.IGNORECASE)
Dims = tuple[int | str, ...]


def describe_graph(graph: ir.Graph, path: Path, options: LoadOptions) -> Described | None:
    """Describe the inputs of a graph that carries states itself; None for one that does not.

    Raises:
        SourceError: if a scalar has no value, or the axes of an input are not known.
        OptionError: if the user named states or axes that are not there.
    """
    if options.states is not None and NONE in options.states:
        return None
    pairs = _pairs(graph, path, options)
    if not pairs:
        return None
    examples = {} if options.inputs is None else read_inputs(options.inputs, torch.nn.Identity())
    unknown = [name for name in examples if name not in {v.name for v in graph.inputs}]
    if unknown:
        names = ", ".join(str(v.name) for v in graph.inputs)
        raise SourceError(f"{path} has no input {unknown[0]!r}; it has: {names}.")
    shapes = _shapes(graph, pairs, path, options)
    specs = tuple(_spec(v, shapes[str(v.name)], examples, path, pairs) for v in graph.inputs)
    states = tuple(
        OwnState(
            input=name,
            output=output,
            initial=_initial(name, output, options, shapes[name]),
        )
        for name, (output, _) in pairs.items()
    )
    defaults = {spec.name: spec.value for spec in specs if spec.value is not None}
    notes = [note(state, pairs[state.input][1], shapes) for state in states]
    notes += [f"The input {n!r} is {x:g} where it is left out." for n, x in defaults.items()]
    if not any(BATCH in shape for shape in shapes.values()):
        notes.append("The batch is fixed in the file: the bundle runs one row.")
    return Described(takes=Takes.of(specs), states=states, defaults=defaults, notes=tuple(notes))


def _pairs(graph: ir.Graph, path: Path, options: LoadOptions) -> dict[str, tuple[str, str]]:
    inputs = {str(value.name): value for value in graph.inputs}
    outputs = {str(value.name): value for value in graph.outputs}
    if options.states:
        return {
            n: (_asked(n, t, inputs, outputs, path), "as asked") for n, t in options.states.items()
        }
    found = {
        name: (list(outputs)[place], "their names pair up")
        for name, place in pair(list(inputs), [[name] for name in outputs]).items()
        if _alike(inputs[name], outputs[list(outputs)[place]])
    }
    for name, value in inputs.items():
        fits = [o for o, other in outputs.items() if _alike(value, other) and dims(value)]
        rivals = [
            n
            for n, other in inputs.items()
            if n != name and fits and _alike(other, outputs[fits[0]])
        ]
        if name not in found and says_state(name) and len(fits) == 1 and not rivals:
            found[name] = (fits[0], "no other input and output are of its shape")
    return found if len(found) < len(inputs) else {}


def _alike(a: ir.Value, b: ir.Value) -> bool:
    """Whether the one can become the other: dtype, rank, and the sizes that are declared."""
    before, after = dims(a), dims(b)
    if a.dtype != b.dtype or before is None:
        return False
    if after is None:  # what other exporters leave out
        return True
    pairs = zip(before, after, strict=False)
    return len(before) == len(after) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in pairs
    )


def _asked(
    name: str,
    text: str,
    inputs: Mapping[str, ir.Value],
    outputs: Mapping[str, ir.Value],
    path: Path,
) -> str:
    output = split_initial(text, list(outputs))[0]
    for what, given, known in (("input", name, inputs), ("output", output, outputs)):
        if given not in known:
            raise OptionError(
                f"--state {name}={text}: {path} has no {what} {given!r}; it has: "
                f"{', '.join(known)}."
            )
    return output


def _shapes(
    graph: ir.Graph, pairs: Mapping[str, object], path: Path, options: LoadOptions
) -> dict[str, Dims]:
    declared = {str(value.name): dims(value) for value in graph.inputs}
    given = dict(options.axes or {})
    blank = [InputSpec(name, torch.float32, shape or ()) for name, shape in declared.items()]
    name_axes(blank, Layouts.of(given))  # refuses what does not fit
    found: dict[str, Dims] = {name: tuple(shape) for name, shape in given.items()}
    batches = {
        str(dim)
        for name in pairs
        for dim in _free(declared[name] or ())
        if BATCHES.fullmatch(str(dim)) or len(_free(declared[name] or ())) == 1
    } - {"?"}
    for name, shape in declared.items():
        if name in found:
            continue
        if shape is None:
            raise SourceError(f"{path}: the input {name!r} has no declared rank; give it a shape.")
        found[name] = _named(name, shape, path, batches, state=name in pairs)
    return found


def _free(shape: Dims) -> list[str]:
    return [dim for dim in shape if isinstance(dim, str)]


def _named(name: str, shape: Dims, path: Path, batches: set[str], *, state: bool) -> Dims:
    """The axes of one input by the names that a step graph knows."""
    named: list[int | str] = list(shape)
    places = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
    rows = [a for a in places if shape[a] in batches or BATCHES.fullmatch(str(shape[a]))]
    if not rows and places and (state or places[0] == 0):
        rows = places[:1] if not state or len(places) == 1 else []
    if len(rows) > 1:
        rows = []
    rest = [axis for axis in places if axis not in rows]
    if len(rest) > (0 if state else 1):
        words = "x".join(map(str, shape)).replace("?", "N")
        example = "x".join(BATCH if a == 0 else "64" if isinstance(d, str) else str(d)
                           for a, d in enumerate(shape))  # fmt: skip
        raise SourceError(
            f"{path}: which axes of the input {name!r} ({words}) are batch and time is not known. "
            f"Say it: --axes {name}:{example}, for example."
        )
    for axis in rows:
        named[axis] = BATCH
    for axis in rest:
        named[axis] = TIME
    return tuple(named)


def _spec(
    value: ir.Value,
    shape: Dims,
    examples: Mapping[str, Tensor],
    path: Path,
    pairs: Mapping[str, object],
) -> InputSpec:
    name = str(value.name)
    if value.dtype is None:
        raise SourceError(f"{path}: the input {name!r} is no tensor.")
    kind = torch.from_numpy(np.zeros(1, value.dtype.numpy())).dtype
    example = examples.get(name)
    if not shape and name not in pairs:
        if example is None:
            raise SourceError(
                f"{path}: the input {name!r} is a single number, whose value is not known. Give "
                f"it: --inputs FILE.npz with {name}, as numpy.savez('FILE.npz', {name}=16000) "
                "writes it."
            )
        return InputSpec(name, kind, (), value=float(example.reshape(-1)[0]))
    if name in pairs:
        return InputSpec(name, kind, shape, below=None if kind.is_floating_point else 3)
    return InputSpec(name, kind, shape, below=min(_rows(value), default=None), example=example)


def _rows(value: ir.Value) -> Iterator[int]:
    """Rows of the tables that `value`, perhaps cast, indexes."""
    for node, index in value.uses():
        if node.op_type == "Cast":
            yield from _rows(node.outputs[0])
        table = constant(node.inputs[0]) if node.op_type == "Gather" and index == 1 else None
        if table is not None:
            yield table.shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 0]


def _initial(
    name: str, output: str, options: LoadOptions, shape: Sequence[int | str]
) -> float | np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    text = split_initial((options.states or {}).get(name, ""), [output])[1]
    if not text:
        return 0.0
    if text.endswith(".npz"):
        return one_row(read_initial(text, name).numpy(), name, tuple(shape))
    try:
        return float(text)
    except ValueError:
        raise OptionError(
            f"--state {name}={output}:{text}: {text!r} is no number and no file .npz."
        ) from None
