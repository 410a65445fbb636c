"""Adapters of a source, in three ways: added to its weights, given to a session, or one a row.

*Fused* adds them to the weights: the model is the tuned one.  *Switched* leaves the weights as they
are, and what is added to each layer's result is a condition of the module (`runtime/adapters.py`
has the arrays).  *Parallel* holds all of them, and the condition ``adapter`` is the number of one
for each row, 0 for none.  The last two are compared with the first before anything is traced.
"""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.runtime.adapters import (
    FUSED,
    LOW,
    NUMBER,
    ONLY_FUSED,
    PARALLEL,
    PREFIX,
    ROWS,
    SWITCHED,
    VALUE,
    Adapter,
    condition_name,
    conditions,
)
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.state import BATCH

from .adapted_layers import PARTS, Kind, can_hold, parallel, switched, take_adapters
from .bundled import Bundled
from .input_spec import InputSpec, Sampler
from .peft import is_peft, read_peft
from .source import Source

CLOSE = 1e-4  # of the largest value: what sums in another order make
TRIED = 3  # adapters that are compared: the layers are the same for all
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
WAYS = (FUSED, SWITCHED, PARALLEL)
Slots = Mapping[tuple[str, Kind], int]


def with_adapters(source: Source, options: LoadOptions) -> Source:
    """`source` with the adapters of `options`.

    Raises:
        OptionError: if the way is not known, or the source has no module to change.
        SourceError: if an adapter is of another base, or changes what cannot be changed that way.
        InputError: if a file cannot be read.
    """
    way = options.adapters or FUSED
    if way not in WAYS:
        raise OptionError(f"--adapters is {way!r}; it should be one of: {', '.join(WAYS)}.")
    if not options.adapter:
        if options.adapters is None:
            return source
        raise OptionError(f"--adapters {way} needs an adapter: --adapter NAME=FILE.")
    if not isinstance(source.body, nn.Module):
        raise OptionError(f"{source.name} is a graph already; --adapter needs weights or a module.")
    if source.others and way != FUSED:
        raise OptionError("--adapters of a model of several graphs can only be fused.")
    for name in options.adapter:
        if not NAME.fullmatch(name):
            raise OptionError(f"The adapter {name!r} should be called by letters, digits, - and _.")
    read = {name: read_adapter(path, source.body) for name, path in options.adapter.items()}
    for name, adapter in read.items():
        _require_base(name, adapter, source)
    if way == FUSED:
        for adapter in read.values():
            fuse(source.body, adapter)
        return replace(source, notes=(*source.notes, f"Fused: {', '.join(read)}."))
    slots = _slots(read)
    layers = _layers(source.body, slots)
    plain = copy.deepcopy(source.body)
    made = (_switched if way == SWITCHED else _parallel)(source, read, slots, layers)
    _require_same(made, plain, read, way)
    return made


def read_adapter(path: str | Path, module: nn.Module) -> Adapter:
    """An adapter's file, or a directory of PEFT with a LoRA for `module`.

    Raises:
        InputError: if it cannot be read.
        SourceError: if a directory is of another kind of adapter, or for another model.
    """
    return read_peft(Path(path), module) if is_peft(Path(path)) else Adapter.read(path)


def fuse(module: nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the weights of `module` in place.

    Raises:
        SourceError: if it changes what the module has not.
        InputError: if a shape differs.
    """
    known = dict(module.named_parameters(remove_duplicate=False))
    for name, parts in adapter.parts.items():
        parameter = _known(known, name)
        if VALUE in parts:
            _put(parameter, name, parts[VALUE])
            continue
        delta = torch.from_numpy(adapter.delta(name, tuple(parameter.shape)))
        with torch.no_grad():
            parameter.add_(delta.to(parameter.dtype))


def _put(parameter: Tensor, name: str, value: Array) -> None:
    """Let `value` take the place of all of a parameter."""
    if value.shape != tuple(parameter.shape):
        raise SourceError(
            f"The adapter's {name} has the shape {value.shape}, and the base's "
            f"{tuple(parameter.shape)}. It was made for another model."
        )
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(value))


def _known(known: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in known:
        raise SourceError(
            f"The adapter changes {name}, which the model has not. It was made for another model."
        )
    return known[name]


def _require_base(name: str, adapter: Adapter, source: Source) -> None:
    if adapter.base and adapter.base != source.sha256:
        raise SourceError(
            f"The adapter {name!r} was made for a base whose SHA-256 is {adapter.base[:12]}..., "
            f"and that of {source.name} is {source.sha256[:12]}...: added to other weights it "
            "means nothing. Make one for this base: intaglio adapter "
            f"{source.path} TUNED -o {name}.npz."
        )


def _slots(read: Mapping[str, Adapter]) -> dict[tuple[str, Kind], int]:
    """Room for each kind of addition: as much as the largest of the adapters needs."""
    found: dict[tuple[str, Kind], int] = {}
    for adapter in read.values():
        for name, parts in adapter.parts.items():
            if VALUE in parts:
                raise SourceError(f"The adapter takes the place of all of {name}: {ONLY_FUSED}")
        for key, count in adapter.kinds().items():
            found[key] = max(found.get(key, 1), count)
    return found


def _layers(module: nn.Module, slots: Slots) -> dict[str, nn.Module]:
    """The layer of each parameter that is changed."""
    owners: dict[str, nn.Module] = {}
    known = dict(module.named_parameters(remove_duplicate=False))
    for name in dict.fromkeys(name for name, _ in slots):
        _known(known, name)
        path, _, last = name.rpartition(".")
        layer = module.get_submodule(path)
        kinds = [kind for owner, kind in slots if owner == name]
        if last != "weight" or not can_hold(layer, kinds):
            raise SourceError(
                f"The adapter changes {name}, of a {type(layer).__name__}; what is added to a "
                "layer while it runs has to be of a linear layer. Add it to the weights: "
                "--adapters fused."
            )
        owners[name] = layer
    return owners


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """The shape of its weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return rows, columns


def _shapes(layer: nn.Module, kind: Kind, count: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the two arrays of an addition, by part."""
    rows, columns = _sizes(layer)
    first, second = PARTS[kind]
    if kind == LOW:
        return {first: (count, columns), second: (rows, count)}
    if kind == ROWS:
        return {first: (rows,), second: (count, columns)}
    return {first: (count,), second: (rows, count)}


def _specs(slots: Slots, layers: Mapping[str, nn.Module]) -> dict[str, TensorSpec]:
    """What holds an adapter, as conditions of a bundle are described."""
    found = {}
    for (owner, kind), count in slots.items():
        for part, shape in _shapes(layers[owner], kind, count).items():
            name = condition_name(owner, part)
            integers = len(shape) == 1
            found[name] = TensorSpec(name, "int64" if integers else "float32", shape, 0.0)
    return found


def _switched(
    source: Source, read: Mapping[str, Adapter], slots: Slots, layers: Mapping[str, nn.Module]
) -> Source:
    specs = _specs(slots, layers)
    given = [conditions(adapter, specs.values()) for adapter in read.values()]
    entries: dict[str, int] = {}
    for owner, layer in layers.items():
        kinds = {}
        for kind in (kind for name, kind in slots if name == owner):
            names = {part: condition_name(owner, part) for part in PARTS[kind]}
            kinds[kind] = names
            first = names[PARTS[kind][0]]
            limit = 1 + slots[owner, kind] if kind == ROWS else _sizes(layer)[1]
            entries |= {} if kind == LOW else {first: limit}
        switched(layer, kinds)
    inputs = [
        InputSpec(
            name,
            torch.int64 if name in entries else torch.float32,
            spec.shape,
            below=entries.get(name),
            example=torch.from_numpy(given[0][name]),
        )
        for name, spec in specs.items()
    ]
    return _taking(source, inputs, replace(source, adapters=Bundled(read)))


def _parallel(
    source: Source, read: Mapping[str, Adapter], slots: Slots, layers: Mapping[str, nn.Module]
) -> Source:
    specs = _specs(slots, layers)
    given = [conditions(adapter, specs.values()) for adapter in (None, *read.values())]
    for owner, layer in layers.items():
        kinds = {}
        for kind in (kind for name, kind in slots if name == owner):
            names = {part: condition_name(owner, part) for part in PARTS[kind]}
            kinds[kind] = {
                part: torch.from_numpy(np.stack([each[name] for each in given]))
                for part, name in names.items()
            }
        parallel(owner, layer, kinds)
    number = InputSpec(NUMBER, torch.int64, (BATCH,), below=1 + len(read))
    return _taking(source, [number], source)


def _taking(source: Source, inputs: list[InputSpec], made: Source) -> Source:
    """`made`, whose module takes `inputs` beside those of `source`."""
    names = [spec.name for spec in inputs]
    for name in names:
        if name in source.dynamic:
            raise SourceError(
                f"The model has an input {name!r}, a name that adapters need. Rename that argument."
            )
    take_adapters(source.module, names)
    return replace(
        made,
        dynamic={**source.dynamic, **{spec.name: spec.dynamic for spec in inputs}},
        sample=_sampling(source.sample, inputs),
        bounds={**source.bounds, **{s.name: s.below for s in inputs if s.below is not None}},
        defaults={**source.defaults, **dict.fromkeys(names, 0.0)},
    )


def _sampling(own: Sampler, inputs: list[InputSpec]) -> Sampler:
    def sample(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {**own(sizes, seed), **{s.name: s.sample(sizes, generator) for s in inputs}}

    return sample


def _require_same(made: Source, plain: nn.Module, read: Mapping[str, Adapter], way: str) -> None:
    """Hold `made` to what each adapter makes of the weights of `plain`: layers may share them.

    Of parallel ones rows that have others are compared as well.

    Raises:
        SourceError: if a result differs.
    """
    inputs = made.inputs
    specs = {n: TensorSpec(n, "", tuple(map(int, x.shape)))
             for n, x in inputs.items() if n.startswith(PREFIX)}  # fmt: skip
    own = {n: x for n, x in inputs.items() if n != NUMBER and n not in specs}
    expected = {}
    for number, (name, adapter) in enumerate(islice(read.items(), TRIED), 1):
        tuned = copy.deepcopy(plain)
        fuse(tuned, adapter)
        expected[number] = _output(tuned, own)
        if way == SWITCHED:
            dtyped = [replace(s, dtype=str(inputs[n].numpy().dtype)) for n, s in specs.items()]
            now = {n: torch.from_numpy(x) for n, x in conditions(adapter, dtyped).items()}
        else:
            now = {NUMBER: torch.full_like(inputs[NUMBER], number)}
        if not _near(_output(made.module, own | now), expected[number]):
            raise SourceError(
                f"With --adapters {way}, {name!r} does not give what it gives when it is added to "
                "the weights: the model uses a weight elsewhere than in its layer. Use --adapters "
                "fused."
            )
    if way == SWITCHED:
        return
    expected[0] = _output(plain, own)
    numbers = torch.arange(len(inputs[NUMBER])) % len(expected)
    found = _output(made.module, own | {NUMBER: numbers.to(inputs[NUMBER])})
    alone = [expected[int(number)] for number in numbers]
    by_row = found.ndim > 0 and all(each.shape[0] == len(numbers) for each in alone)
    if by_row and not _near(found, torch.stack([each[i] for i, each in enumerate(alone)])):
        raise SourceError(
            "With --adapters parallel, rows that have adapters of their own do not give what each "
            "gives: the model mixes rows before a layer that is adapted. Use --adapters switched."
        )


def _near(found: Tensor, expected: Tensor) -> bool:
    scale = float(expected.abs().max()) or 1.0
    return float((found - expected).abs().max()) <= CLOSE * scale


def _output(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return _first(module(**inputs))


def _first(outputs: object) -> Tensor:
    """The first tensor of what a module returns."""
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values() if isinstance(outputs, Mapping) else outputs))  # type: ignore[call-overload]
    return outputs.double()
