"""A trained module becomes one ONNX graph in training form, with batch and time free.

PyTorch's exporter is asked for opset 23, the last it labels truthfully (26 to 28 come out
labelled 18), unoptimised, since its optimiser folds parameters away and merges equal ones.  The
result is then proven to mean the same at the opset that intaglio speaks.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import fx
from torch.export import ExportedProgram

from intaglio.errors import TraceError
from intaglio.exporter.sources.axes import Span
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import tied_names
from intaglio.graph_keys import FOLDED
from intaglio.ops import OPS
from intaglio.passes.base import Context
from intaglio.passes.collection import uncollected
from intaglio.passes.exact.stabilize_log_sigmoid import StabilizeLogSigmoid
from intaglio.passes.exact.widen_kinds import WidenKinds
from intaglio.passes.graph import constant, describe, dims, input_of, set_dims
from intaglio.passes.own_ops import define
from intaglio.passes.relabel import relabel
from intaglio.passes.shapes import SEQUENCES, SIZES, infer_shapes, shape_bodies
from intaglio.quiet import quiet, summary
from intaglio.signature import DOMAIN
from intaglio.state import BATCH, TIME

from .adopt import adopt_graph
from .at_fault import run_examples
from .attention_calls import settle_attention_calls
from .boolean_sums import settle_boolean_sums
from .capture import capture, capture_again
from .chosen_rows import compute_all_rows, told
from .clamp_bounds import settle_clamps
from .complex_numbers import pair_complex_numbers
from .exchanged import exchanged
from .fold_weights import fold_weights
from .fourier import convolve_causally, refuse_transforms
from .kernel_states import carry_kernels
from .key_offsets import settle_key_offsets
from .masked_writes import settle_masked_writes
from .metadata import strip
from .modules import named, path_of
from .mutations import idle_buffers
from .norm_calls import settle_norm_calls
from .program_nodes import name_outputs_anew
from .reversed_differences import settle_reversed_differences
from .scalars import settle_scalars
from .size_operands import settle_size_operands
from .small_matrices import instead
from .squeezes import settle_squeezes
from .stable_sorts import settle_stable_sorts
from .stepped_axes import name_steps
from .stored_reads import forward_stored
from .trace_check import WrongGraphError, check_trace, check_whole
from .translations import swift_translations, translations

OPSET = 27
TORCH_OPSET = 23
INVENTED = "unk__"  # how the names begin that ONNX's inference makes up
CHANCE = frozenset(
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)
# What the converter has no right form for is brought into one that it has, in this order.
SETTLED = (
    pair_complex_numbers,
    settle_attention_calls,
    settle_norm_calls,
    settle_squeezes,
    settle_scalars,
    settle_size_operands,
    settle_boolean_sums,
    settle_masked_writes,
    settle_stable_sorts,
    settle_clamps,
    settle_reversed_differences,
    settle_key_offsets,
)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A graph in training form: inputs and outputs of the module, no carried states yet.

    `spans` holds the sizes that each free axis takes, `max_context` is the largest time that the
    module's tables allow, None without such a table; `aliases` maps the further names of tied
    weights to the name of their initializer.
    """

    model: ir.Model
    max_context: int | None
    aliases: dict[str, str]
    notes: tuple[str, ...]
    spans: dict[str, Span] = field(default_factory=dict)


def trace(source: Source) -> Traced:
    """Return `source` as one graph of opset 27 with its named axes free.

    Initializers carry the names of parameters and buffers, nodes the path of their module
    (`intaglio.passes.graph.module_of`).  The graph is compared with the module at other shapes.

    Raises:
        TraceError: if the module cannot be captured so; it names the module at fault.
        PassError: if an op that PyTorch emitted has another meaning at opset 27.
    """
    with uncollected():
        return _trace(source)


def _trace(source: Source) -> Traced:
    if isinstance(source.body, ir.Model):
        graph, spans = adopt_graph(source, OPSET)
        return Traced(model=graph, max_context=None, aliases={}, notes=(), spans=spans)
    with exchanged(source, source.module):
        program, spans = capture(source)
    try:
        return _traced(source, program, spans)
    except WrongGraphError as refusal:
        # PyTorch may fix the number of parts that a sequence is taken into without a word.
        with exchanged(source, source.module):
            rolled = capture_again(source, refusal)
        return _traced(source, *rolled)


def _traced(source: Source, program: ExportedProgram, spans: dict[str, Span]) -> Traced:
    """The graph of a captured program, compared with its source."""
    max_context = None if source.whole or TIME not in spans else spans[TIME].most
    compute_all_rows(program, products=not source.whole)
    chosen = tuple(told(program))
    forward_stored(program)
    idle = idle_buffers(program)
    carried = carry_kernels(program)
    program, folded = fold_weights(carried.program)
    folded = {**carried.weights, **folded}
    convolve_causally(program)
    if not source.whole:
        refuse_transforms(source, program)
    for settle in SETTLED:
        settle(program)
    inputs = source.inputs
    names = list(name_outputs(source.module, run_examples(source.module, inputs), inputs))
    model = _convert(source, program)
    _name_inputs(model.graph, list(inputs))
    _name_outputs(model.graph, names)
    strip(model)
    name_steps(source, program, model)
    shape_bodies(model)
    aliases = source.aliases or tied_names(source.module)
    _name_tied(model.graph, aliases)
    _mark_folded(model.graph, folded)
    relabel(model, OPSET)
    _adopt_ops(model)
    _complete_shapes(model)
    _measure_rates(source, model)
    # PyTorch writes log-sigmoid as Log(Sigmoid(x)), which is -inf where trained gates go.
    StabilizeLogSigmoid().run(model, Context())
    WidenKinds().run(model, Context())
    _refuse_chance(model)
    if source.whole:
        spans = check_whole(source, program, model, spans)
    else:
        check_trace(source, program, model, max_context)
    return Traced(
        model=model,
        max_context=max_context,
        aliases=aliases,
        spans=spans,
        notes=(
            *_notes(source, model, max_context, aliases, folded),
            *carried.notes,
            *chosen,
            *(f"{name} is computed once, of {', '.join(of)}." for name, of in folded.items()),
            *map(_left_out, idle),
        ),
    )


def _measure_rates(source: Source, model: ir.Model) -> None:
    """Give values their shapes in tokens, where some sequence has another rate than tokens."""
    if source.pace == 1:
        return
    for value in model.graph.inputs:
        axes = source.dynamic.get(str(value.name), {})
        each = {a: f"{source.pace}*{s}" if s == TIME else s for a, s in axes.items()}
        set_dims(value, [each.get(axis, dim) for axis, dim in enumerate(dims(value) or ())])
    runs = []
    for batch, tokens in SIZES:
        sizes = {**source.sizes, BATCH: batch, TIME: tokens}
        drawn = source.draw(sizes, 0).items()
        runs.append((sizes, {name: value.numpy() for name, value in drawn}))
    infer_shapes(model, runs)
    shape_bodies(model)


def _refuse_chance(model: ir.Model) -> None:
    """Refuse what gives something else each time that it is called."""
    for node in model.graph.all_nodes():
        training = constant(input_of(node, 2)) if node.op_type == "Dropout" else None
        if node.op_type in CHANCE or (training is not None and training.any()):
            raise TraceError(
                f"{describe(node)} draws random numbers, so that no two runs are the same. Leave "
                "it out when the module is in eval mode, or make the numbers an input."
            )


def _convert(source: Source, program: ExportedProgram) -> ir.Model:
    name_outputs_anew(program)
    try:
        with torch.no_grad(), quiet(), swift_translations():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=TORCH_OPSET,
                optimize=False,
                verbose=False,
                dynamic_shapes={name: source.dynamic.get(name, {}) for name in source.inputs},
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise TraceError(_explain(error)) from error
    if converted is None:
        raise TraceError("PyTorch's ONNX exporter returned nothing.")
    return converted.model


def _instead(target: str) -> str:
    """What to write in the place of an operation, where that is known."""
    return instead(target) or "Express it with other operations."


def _explain(error: Exception) -> str:
    causes = list(_causes(error))
    node = next((node for cause in causes if (node := _failed_node(cause))), None)
    if node is None:
        return f"PyTorch cannot convert the model to ONNX: {summary(causes[-1])}"
    return (
        f"In {named(path_of(node))}, the operation {node.target} cannot be converted to "
        f"ONNX ({summary(causes[-1])}). {_instead(str(node.target))}"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _failed_node(error: BaseException) -> fx.Node | None:
    """The node being translated when `error` was raised: the exporter's message names it only."""
    frame = error.__traceback__
    while frame is not None:
        node = frame.tb_frame.f_locals.get("node")
        if isinstance(node, fx.Node) and node.op == "call_function":
            return node
        frame = frame.tb_next
    return None


def _name_inputs(graph: ir.Graph, names: list[str]) -> None:
    """Name the inputs as the module does: PyTorch writes names in small letters."""
    values = [value for value in graph.inputs if not value.is_initializer()]
    for name, value in zip(names, values, strict=True):
        if value.name != name:
            _make_way(graph, name, value)
            value.name = name


def _make_way(graph: ir.Graph, name: str, owner: ir.Value) -> None:
    """Give whatever value bears `name`, `owner` left out, another one."""
    nodes = (value for node in graph for value in node.outputs)
    taken = {value.name: value for value in (*nodes, *graph.inputs)}
    free = f"{name}.inner"
    while free in taken or free in graph.initializers:
        free += ".inner"
    if name in taken and taken[name] is not owner:
        taken[name].name = free
    if name in graph.initializers:
        value = graph.initializers.pop(name)
        value.name = free
        graph.initializers.add(value)


def _name_outputs(graph: ir.Graph, names: list[str]) -> None:
    """Name the outputs, each one a value of its own that is no input."""
    values = list(graph.outputs)
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        output = value
        if value.producer() is None or value in values[:index]:
            node = ir.node("Identity", [value], name=f"output_{index}")
            graph.append(node)
            output = node.outputs[0]
            output.type, output.shape = value.type, value.shape
            graph.outputs[index] = output
        _make_way(graph, name, output)
        output.name = name


def _name_tied(graph: ir.Graph, aliases: dict[str, str]) -> None:
    """Give an initializer that PyTorch kept under a further name the first one."""
    for name in [name for name in graph.initializers if name in aliases]:
        value = graph.initializers.pop(name)
        value.name = aliases[name]
        graph.initializers.add(value)


def _mark_folded(graph: ir.Graph, folded: Iterable[str]) -> None:
    """Say of weights that were computed of others that they are no parameters."""
    for name in folded:
        if name in graph.initializers:
            graph.initializers[name].metadata_props[FOLDED] = "true"


def _adopt_ops(model: ir.Model) -> None:
    """Move the ops that PyTorch's converter cannot label yet into their own domains."""
    domains = {op.onnx_type: op.domain for op in OPS}
    for node in model.graph.all_nodes():
        if node.domain == DOMAIN:
            node.domain, node.version = domains[node.op_type], None
    model.opset_imports.pop(DOMAIN, None)
    define(model)


def _complete_shapes(model: ir.Model) -> None:
    """Give values that the converter made up on its way, for an index say, their shapes.

    What PyTorch itself said of types and shapes stays.
    """
    kept = [
        (value, value.type, value.shape)
        for node in model.graph.all_nodes()
        for value in node.outputs
        if value.shape is not None or node.op_type in SEQUENCES
    ]
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, kind, shape in kept:
        value.type, value.shape = kind, shape
    for value in (value for node in model.graph.all_nodes() for value in node.outputs):
        if any(str(dim).startswith(INVENTED) for dim in value.shape or ()):
            value.shape = None  # what takes its place may know better


def _left_out(buffer: str) -> str:
    return f"The buffer {buffer} is written by each call, but no output depends on it: left out."


def _notes(
    source: Source,
    model: ir.Model,
    max_context: int | None,
    aliases: dict[str, str],
    folded: dict[str, tuple[str, ...]],
) -> Iterator[str]:
    if max_context is not None:
        yield f"The model takes at most {max_context} tokens."
    used = {*model.graph.initializers, *aliases}.union(*folded.values())
    unused = [name for name, _ in source.module.named_parameters() if name not in used]
    if unused:
        yield f"{len(unused)} parameters are not used: {', '.join(unused[:6])}."
    for alias, name in aliases.items():
        yield f"{alias} is tied to {name}."
