"""Put a state dict into a module: strictly, by the names that wrappers leave behind too.

Every parameter and persistent buffer of the module gets exactly one tensor of the file, of its
own shape.  `DataParallel`, `torch.compile` and FSDP rename keys by prefixes, which are undone.
A tied parameter has several names, of which the file may hold one or all.
"""

import copy
import difflib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from intaglio.errors import SourceError

from .renaming import renamed, without_hooks

PARALLEL = "module."  # what DataParallel puts in front, which may also be a name of the model's own
MARKS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # never such a name
SHOWN = 6  # names of each kind in a message


def tied_names(module: nn.Module) -> dict[str, str]:
    """Map each further name of a shared parameter or buffer to the name that PyTorch lists."""
    kept: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in _all_tensors(module):
        first = kept.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first
    return aliases


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of the names and bytes of `tensors`, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(name.encode() + flat.numpy().tobytes())
    return digest.hexdigest()


def copied(module: nn.Module) -> nn.Module:
    """A copy of `module`, also where it holds results of a computation (of older weight norms)."""
    held = (x for part in module.modules() for x in vars(part).values() if isinstance(x, Tensor))
    memo = {id(x): x.detach().clone() for x in held if not x.is_leaf}
    twin = copy.deepcopy(module, memo)
    for part in twin.modules():
        if parametrize.is_parametrized(part):  # its class holds its weights as properties
            kind = type(part)
            own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
            part.__class__ = type(kind.__name__, kind.__bases__, own)
    return twin


def adopt_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Make a module that holds its weights already ready, in place; return notes for people.

    Raises:
        SourceError: if a parameter holds NaN or Inf.
    """
    found = dict(_all_tensors(module))
    check_values(found, module, path)
    notes = _notes(found, [], path)
    _widen(module)
    module.eval().requires_grad_(requires_grad=False)
    return notes


def load_weights(module: nn.Module, tensors: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Copy `tensors` into `module` in place and return notes for people.

    Half-precision parameters are widened to fp32, which is exact.

    Raises:
        SourceError: if names or shapes do not fit one to one, tied names disagree, or a parameter
            holds NaN or Inf.
    """
    _widen(module)
    found, ignored = _fitting(module, tensors, path)
    check_values(found, module, path)
    _check_ties(found, tied_names(module), path)
    with without_hooks(module):
        module.load_state_dict(found)
    return _notes(found, ignored, path)


def check_fit(module: nn.Module, tensors: Mapping[str, Any], path: Path) -> None:
    """Hold names, kinds and shapes of `tensors` to those of `module`, which may be without data.

    Raises:
        SourceError: if they do not fit one to one.
    """
    _fitting(module, tensors, path)


def _fitting(
    module: nn.Module, tensors: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """The entries of the file by the module's names, and the names of those that are left out.

    No value is looked at: a stride of 0 makes a huge tensor of a single number.
    """
    expected = module.state_dict()
    found = renamed(module, _unwrap(tensors, expected.keys(), path))
    if "n_averaged" in found.keys() - expected.keys():  # of torch.optim.swa_utils.AveragedModel
        del found["n_averaged"]
    ignored = [name for name, value in found.items() if _is_extra(name, value, expected)]
    for name in ignored:
        del found[name]
    _fill_ties(found, {k: v for k, v in tied_names(module).items() if k in expected})
    check_names(found, expected, path)
    _check_tensors(found, expected, path)
    return found, ignored


def _all_tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _is_extra(name: str, value: object, expected: Mapping[str, Any]) -> bool:
    """Whether an entry is no tensor and no part of the module either."""
    return not isinstance(value, Tensor) and name not in expected


def _widen(module: nn.Module) -> None:
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for _, tensor in _all_tensors(module)):
        module.float()


def _unwrap(tensors: Mapping[str, Any], expected: Collection[str], path: Path) -> dict[str, Any]:
    """Rename keys to what the module calls them, dropping the marks of wrappers."""
    found: dict[str, Any] = {}
    for key, value in tensors.items():
        name = _plain_name(key, expected)
        if name in found:
            raise SourceError(f"{path} holds {name!r} twice, once as {key!r}.")
        found[name] = value
    return found


def _plain_name(key: str, expected: Collection[str]) -> str:
    """Return what the module calls `key`, or `key` itself if it knows no such name."""
    if key in expected:
        return key
    name = ".".join(part for part in key.split(".") if part not in MARKS)
    while name not in expected and name.startswith(PARALLEL):
        name = name.removeprefix(PARALLEL)
    return name if name in expected else key


def _fill_ties(found: dict[str, Any], ties: Mapping[str, str]) -> None:
    """Give every name of a tied tensor a value, where the file holds one under another name."""
    for alias, kept in ties.items():
        if alias in found:
            found.setdefault(kept, found[alias])
    for alias, kept in ties.items():
        if kept in found:
            found.setdefault(alias, found[kept])


def _check_ties(found: Mapping[str, Any], ties: Mapping[str, str], path: Path) -> None:
    for alias, kept in ties.items():
        if alias in found and not _same(found[alias], found[kept]):
            raise SourceError(
                f"{path}: {alias!r} and {kept!r} are one tied parameter in the model, but the "
                "file holds different values for them. Build the model untied."
            )


def _same(a: object, b: object) -> bool:
    return a is b or (isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b))


def check_names(found: Collection[str], expected: Collection[str], path: Path) -> None:
    """Hold the names of a file to those of the module, one to one.

    Raises:
        SourceError: if a name is missing or unexpected; similar ones are named beside it.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if not missing and not unexpected:
        return
    lines = [f"The weights of {path} do not fit the model."]
    if missing:
        lines.append(f"Missing from the file ({len(missing)} of {len(expected)}):")
        lines += _with_neighbours(missing, unexpected)
    if unexpected:
        lines.append(f"Unexpected in the file ({len(unexpected)} of {len(found)}):")
        lines += _with_neighbours(unexpected, missing)
    lines.append(
        "No name fits: is this the right model?"
        if len(missing) == len(expected)
        else "Check the config, and that file and code are of the same version."
    )
    raise SourceError("\n".join(lines))


def _with_neighbours(names: list[str], others: list[str]) -> list[str]:
    lines = []
    for name in names[:SHOWN]:
        near = difflib.get_close_matches(name, others, n=1)
        lines.append(f"  {name}" + (f"  (near: {near[0]})" if near else ""))
    if len(names) > SHOWN:
        lines.append(f"  and {len(names) - SHOWN} more")
    return lines


def check_values(found: Mapping[str, Any], module: nn.Module, path: Path) -> None:
    """Refuse values that no trained parameter has.

    Raises:
        SourceError: if a parameter holds NaN or Inf.
    """
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    dtypes = {name: tensor.dtype for name, tensor in _all_tensors(module)}
    values = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    check_finite({n: v.to(dtypes[n]) for n, v in values.items() if n in dtypes}, buffers, path)


def check_finite(tensors: Mapping[str, Tensor], buffers: Collection[str], path: Path) -> None:
    """Refuse weights that are no numbers.

    Raises:
        SourceError: if a tensor holds NaN, or one that is not in `buffers` holds Inf.
    """
    for name, value in tensors.items():
        if value.isnan().any():
            raise SourceError(f"{path}: {name!r} holds NaN. Take an earlier checkpoint.")
        # A mask kept as a buffer may be infinite, a trained parameter may not.
        if name not in buffers and value.isinf().any():
            raise SourceError(f"{path}: {name!r} holds Inf. Take an earlier checkpoint.")


def _check_tensors(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    wrong: list[tuple[str, Sequence[int], Sequence[int]]] = []
    for name, value in expected.items():
        tensor = found[name]
        if not isinstance(value, Tensor):
            continue
        if not isinstance(tensor, Tensor):
            raise SourceError(f"{path}: {name!r} is not a tensor but {type(tensor).__name__}.")
        if kind := unreadable(tensor):
            raise SourceError(f"{path}: {name!r} is {kind}, which is not read. Save it dense.")
        if tensor.is_floating_point() != value.is_floating_point():
            raise SourceError(f"{path}: {name!r} is {tensor.dtype}, in the model {value.dtype}.")
        if tensor.shape != value.shape:
            wrong.append((name, tensor.shape, value.shape))
    check_shapes(wrong, path)


def check_shapes(wrong: Sequence[tuple[str, Sequence[int], Sequence[int]]], path: Path) -> None:
    """Refuse tensors of other shapes, each given by name, shape in the file, shape in the model.

    Raises:
        SourceError: if there is any.
    """
    if not wrong:
        return
    lines = [
        f"  {name}: {list(found)} in the file, {list(expected)} in the model"
        for name, found, expected in wrong[:SHOWN]
    ]
    more = [f"  and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
    head = f"The weights of {path} have other shapes than the model:"
    raise SourceError("\n".join([head, *lines, *more, "Check the config."]))


def unreadable(tensor: Tensor) -> str:
    """In a word, what a tensor is that cannot be copied into a parameter; empty if it can."""
    if tensor.is_meta:
        return "without data (on the device 'meta')"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return "sparse, nested or quantized"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    return "complex" if tensor.is_complex() else ""


def _notes(found: Mapping[str, Any], ignored: list[str], path: Path) -> tuple[str, ...]:
    kinds = {str(t.dtype).removeprefix("torch.") for t in found.values() if isinstance(t, Tensor)}
    notes = []
    if half := sorted(kinds & {"float16", "bfloat16"}):
        notes.append(f"{path.name}: {' and '.join(half)} weights are widened to float32.")
    if "float64" in kinds:
        notes.append(f"{path.name}: float64 weights may be rounded to the model's own dtype.")
    if ignored:
        notes.append(f"{path.name}: left out {', '.join(ignored[:SHOWN])}: not tensors.")
    return tuple(notes)
