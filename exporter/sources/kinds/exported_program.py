"""Programs of `torch.export`: files of `torch.export.save` (.pt2), and programs in memory.

A program is a graph already, so it is not traced again: what is free was free when it was
captured.  Reading a file evaluates expressions and unpickles parts of it (the notes of
`torch.export.load` warn of that), so it needs the consent that a pickle needs.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils._pytree import tree_flatten, tree_unflatten

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.axes import Layouts, Span
from intaglio.exporter.sources.examples import name_axes, read_inputs
from intaglio.exporter.sources.guess_axes import by_place, example_sizes
from intaglio.exporter.sources.index_bounds import bounds_of
from intaglio.exporter.sources.input_spec import InputSpec, fixed_axis, sampler
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import check_finite, hash_tensors
from intaglio.exporter.sources.untrusted import archive_names, is_archive
from intaglio.quiet import quiet, summary

FORMAT = "torch.export"
MARKS = ("archive_format", "models/model.json")  # entries that `torch.export.save` writes

UNBOUNDED = 2**31  # PyTorch's own infinities are above

SAVE_AGAIN = (
    "Save it with both free: torch.export.export(model, (), inputs, dynamic_shapes={'input_ids': "
    "{0: Dim.DYNAMIC, 1: Dim.DYNAMIC}}) on examples of at least 2 rows and 2 tokens."
)


def fits(path: Path) -> bool:
    """Whether `path` is a file of `torch.export.save`, by its entries or its name.

    Raises:
        SourceError: if it is an archive that is damaged or claims more than it holds.
    """
    if not path.is_file() or not is_archive(path):
        return path.is_file() and path.suffix == ".pt2" and path.stat().st_size > 0
    names = [name.partition("/")[2] for name in archive_names(path)]
    return any(mark in names for mark in MARKS)


def load(path: Path, options: LoadOptions) -> Source:
    """Read the program at `path`.

    Raises:
        SourceError: if reading it was not allowed, it is damaged, or its batch or time is fixed.
    """
    if not options.allow_pickle:
        raise SourceError(
            f"{path} is an exported program (.pt2). PyTorch evaluates expressions and unpickles "
            "objects when it reads one, which can run any code that the file's author chose, so it "
            "was not read. Where it is trusted, allow it with --allow-pickle."
        )
    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as error:
        raise SourceError(
            f"{path} cannot be read as an exported program ({summary(error)}). It may be damaged, "
            f"or of another version than PyTorch {torch.__version__}."
        ) from error
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _source(program, path, sha256, options)


def in_memory(program: ExportedProgram, options: LoadOptions) -> Source:
    """Make a source of `program`, which itself stays as it is.

    Raises:
        SourceError: if an input is no tensor, its batch or time is fixed, or a weight not finite.
    """
    return _source(program, Path("program"), hash_tensors(program.state_dict), options)


def _source(program: ExportedProgram, path: Path, sha256: str, options: LoadOptions) -> Source:
    options.take("an exported program", "axes", "inputs")
    nodes = _tensor_inputs(program, path)
    program = _by_name(program, list(nodes))
    module = program.module()
    examples = _examples(program, list(nodes))
    if options.inputs is not None:
        examples = read_inputs(options.inputs, module)
    layouts = Layouts.of(options.axes)
    named, spans = _shapes(nodes)
    found = [_spec(name, nodes[name], named[name], examples.get(name)) for name in nodes]
    specs = name_axes(found, layouts)
    for spec in specs:
        _check_free(spec, nodes[spec.name].meta["val"], path, whole=options.whole)
    given = {spec.name: spec.example for spec in specs if spec.example is not None}
    if len(given) == len(specs):
        bounds = bounds_of(module, given, {spec.name: spec.shape for spec in specs})
        specs = tuple(replace(s, below=bounds.get(s.name, s.below)) for s in specs)
    spans = {**spans, **layouts.spans}
    own = {
        symbol: given[spec.name].shape[axis] if spec.name in given else 2
        for spec in specs
        for axis, symbol in spec.dynamic.items()
    }
    check_finite(program.state_dict, set(program.graph_signature.buffers), path)
    return Source(
        path=path,
        name=path.name,
        format=FORMAT,
        sha256=sha256,
        body=program,
        dynamic={spec.name: spec.dynamic for spec in specs},
        sample=sampler(specs),
        sizes=example_sizes(module, sampler(specs), own, spans),
        spans=layouts.spans,
        bounds={spec.name: spec.below for spec in specs if spec.below is not None},
        aliases=_tied_names(program.state_dict),
    )


def _shapes(
    nodes: Mapping[str, fx.Node],
) -> tuple[dict[str, tuple[int | str, ...]], dict[str, Span]]:
    """The dimensions of the inputs, free ones by name, and the sizes that those take."""
    names: dict[str, str] = {}
    shapes, spans = {}, {}
    for name, node in nodes.items():
        value = node.meta["val"]
        dims = [dim if isinstance(dim, int) else f"?{dim}" for dim in value.shape]
        shapes[name] = by_place(name, dims, names)
        for dim in value.shape:
            if not isinstance(dim, int):
                spans[names[f"?{dim}"]] = _span(dim)
    return shapes, spans


def _span(size: torch.SymInt) -> Span:
    """Sizes that a dimension of the program has, as ``8*s0`` with bounds of its own."""
    expression = size.node.expr
    (symbol,) = list(expression.free_symbols)[:1]
    bounds = size.node.shape_env.bound_sympy(symbol)
    first = max(int(bounds.lower), 1) if bounds.lower > -UNBOUNDED else 1
    least = int(expression.subs(symbol, first))
    step = max(int(expression.subs(symbol, first + 1)) - least, 1)
    most = int(expression.subs(symbol, bounds.upper)) if bounds.upper < UNBOUNDED else None
    # PyTorch keeps 0 and 1 apart from all other sizes; that both work is checked later.
    return Span(1 if expression.is_symbol and first <= 2 else least, most, step)


def _tied_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each further name of the same memory to the first."""
    kept: dict[tuple[int, torch.Size], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        first = kept.setdefault((tensor.data_ptr(), tensor.shape), name)
        if first != name and tensor.numel():
            aliases[name] = first
    return aliases


def _tensor_inputs(program: ExportedProgram, path: Path) -> dict[str, fx.Node]:
    """Placeholders of the user's inputs, by the names that the module gave them."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    found = {}
    for spec, node in zip(program.graph_signature.input_specs, placeholders, strict=True):
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if not isinstance(spec.arg, TensorArgument):
            raise SourceError(
                f"{path}: the program was captured with an input that is no tensor "
                f"({spec.arg}). Capture a module that takes tensors alone."
            )
        found[spec.arg.name] = node
    names = _own_names(program)  # PyTorch writes those of its graph in small letters
    if len(names) != len(found) or len(set(names)) < len(names):
        return found
    return dict(zip(names, found.values(), strict=True))


def _own_names(program: ExportedProgram) -> list[str]:
    """Names of the arguments that the program was captured with, flat."""
    signature = program.module_call_graph[0].signature
    if signature is None:
        return []
    spec = signature.in_spec
    args, kwargs = tree_unflatten(list(range(spec.num_leaves)), spec)
    named = list(signature.forward_arg_names or [])
    if any(not isinstance(each, int) for each in (*args, *kwargs.values())):
        return []  # nested: the flat names of PyTorch's graph are all there is
    positional = named[: len(args)]
    return [*positional, *kwargs] if len(positional) == len(args) else []


def _by_name(program: ExportedProgram, names: Sequence[str]) -> ExportedProgram:
    """The program, taking its inputs as keywords however it was captured."""
    root, *others = program.module_call_graph
    assert root.signature is not None
    spec = tree_flatten(((), dict.fromkeys(names, 0)))[1]
    signature = replace(root.signature, in_spec=spec, forward_arg_names=list(names))
    own = copy.copy(program)
    own._module_call_graph = [replace(root, signature=signature), *others]  # noqa: SLF001
    return own


def _examples(program: ExportedProgram, names: Sequence[str]) -> dict[str, Tensor]:
    """The example inputs that the program was saved with, where it was."""
    args, kwargs = program.example_inputs or ((), {})
    flat = [*args, *kwargs.values()]
    same = len(flat) == len(names) and all(isinstance(value, Tensor) for value in flat)
    return dict(zip(names, flat, strict=True)) if same else {}


def _spec(
    name: str, node: fx.Node, shape: tuple[int | str, ...], example: Tensor | None
) -> InputSpec:
    """Describe one input: integers below the rows of the tables that it indexes."""
    value = node.meta["val"]
    fits = example is not None and example.numel() and example.ndim == value.ndim
    rows = [rows for user in node.users if (rows := _rows(user, node)) is not None]
    return InputSpec(
        name, value.dtype, shape, below=min(rows, default=None), example=example if fits else None
    )


def _rows(user: fx.Node, index: fx.Node) -> int | None:
    """Rows of the table that `user` looks `index` up in, None where it does something else."""
    if user.target is not torch.ops.aten.embedding.default or user.args[1] is not index:
        return None
    table = user.args[0]
    return int(table.meta["val"].shape[0]) if isinstance(table, fx.Node) else None


def _check_free(spec: InputSpec, value: Tensor, path: Path, *, whole: bool | None) -> None:
    """Hold the program to what is asked to be free; a sequence to free batch and time."""
    for axis, symbol in spec.dynamic.items():
        if isinstance(value.shape[axis], int):
            raise SourceError(
                f"{path}: the {symbol} of the input {spec.name!r} was fixed to "
                f"{value.shape[axis]} when the program was captured. {SAVE_AGAIN}"
            )
    fixed = fixed_axis(spec)
    if fixed is not None and not whole:
        axis, symbol = fixed
        raise SourceError(
            f"{path}: the {symbol} of the input {spec.name!r} was fixed to "
            f"{value.shape[axis]} when the program was captured. {SAVE_AGAIN} Or export it as it "
            "is, for whole inputs of that size: --whole."
        )
