"""Programs of `torch.export`: files of `torch.export.save` (.pt2), and programs in memory.

A program is a graph already, so it is not traced again: batch and time are free if they were when
it was captured.  Reading a file evaluates expressions and unpickles parts of it (the notes of
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
from torch.utils._pytree import tree_flatten

from intaglio.errors import SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.examples import InputSpec, name_axes, sampler
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import check_finite, hash_tensors
from intaglio.exporter.sources.untrusted import archive_names, is_archive
from intaglio.quiet import quiet, summary
from intaglio.state import BATCH, TIME

FORMAT = "torch.export"
MARKS = ("archive_format", "models/model.json")  # entries that `torch.export.save` writes

UNNAMED = 0  # in the shape of an input: a free axis that nobody has named

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
    options.take("an exported program", "axes")
    nodes = _tensor_inputs(program, path)
    examples = _examples(program, list(nodes))
    specs = name_axes(
        [_spec(name, node, examples.get(name)) for name, node in nodes.items()], options.axes
    )
    for spec in specs:
        _check_free(spec, nodes[spec.name].meta["val"], path)
    program = _by_name(program, list(nodes))
    check_finite(program.state_dict, set(program.graph_signature.buffers), path)
    return Source(
        path=path,
        name=path.name,
        format=FORMAT,
        sha256=sha256,
        body=program,
        dynamic={spec.name: spec.dynamic for spec in specs},
        sample=sampler(specs),
        aliases=_tied_names(program.state_dict),
    )


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
    """Placeholders of the user's inputs, by name."""
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
    return found


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


def _spec(name: str, node: fx.Node, example: Tensor | None) -> InputSpec:
    """Describe one input: integers below the rows of the tables that it indexes."""
    value = node.meta["val"]
    rest = [dim if isinstance(dim, int) else UNNAMED for dim in value.shape[2:]]
    free: list[int | str] = [BATCH, TIME, *rest]
    shape = tuple(free[: value.ndim])
    if not value.dtype.is_floating_point:
        rows = [rows for user in node.users if (rows := _rows(user, node)) is not None]
        known = 2 if example is None or not example.numel() else int(example.max()) + 1
        return InputSpec(name, value.dtype, shape, high=min(rows, default=known))
    if example is None or not example.numel():
        return InputSpec(name, value.dtype, shape)
    numbers = example.double()
    mean, std = float(numbers.mean()), float(numbers.std(correction=0))
    return InputSpec(name, value.dtype, shape, mean=mean, std=std)


def _rows(user: fx.Node, index: fx.Node) -> int | None:
    """Rows of the table that `user` looks `index` up in, None where it does something else."""
    if user.target is not torch.ops.aten.embedding.default or user.args[1] is not index:
        return None
    table = user.args[0]
    return int(table.meta["val"].shape[0]) if isinstance(table, fx.Node) else None


def _check_free(spec: InputSpec, value: Tensor, path: Path) -> None:
    """Hold the program to free batch and time, and to no other free axis."""
    if UNNAMED in spec.shape:
        dims = "x".join(str(dim) if isinstance(dim, int) else "?" for dim in value.shape)
        raise SourceError(
            f"{path}: the input {spec.name!r} has the axes {dims}, which are not batch and time "
            f"first. Say which they are: --axes {spec.name}:batchx80xtime, for example."
        )
    for axis, symbol in spec.dynamic.items():
        if isinstance(value.shape[axis], int):
            raise SourceError(
                f"{path}: the {symbol} of the input {spec.name!r} was fixed to "
                f"{value.shape[axis]} when the program was captured. {SAVE_AGAIN}"
            )
