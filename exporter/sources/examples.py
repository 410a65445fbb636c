"""Example inputs of a module: what its forward takes, and random values of any sizes.

Which axes are free, `--axes` says, or `guess_axes` finds out; how values are drawn, `drawing`;
below what integers stay, `index_bounds`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.errors import InputError, OptionError, SourceError
from intaglio.exporter.options.inputs_in_words import made_again
from intaglio.exporter.options.layout_text import Axes
from intaglio.exporter.options.loading import Inputs
from intaglio.quiet import quiet, summary
from intaglio.runtime.arrays import read_npz
from intaglio.runtime.step_inputs import limit_in, strays_of
from intaglio.spelling import perhaps
from intaglio.state import BATCH, TIME

from .axes import Layouts, as_option, in_words
from .guess_axes import EXAMPLE, example_sizes, guess_shapes
from .index_bounds import bounds_of
from .input_spec import InputSpec, Takes, sampler
from .named_forward import named_forward

TOKEN_NAMES = ("input_ids", "ids", "idx", "tokens", "token_ids", "x")
HALF = (torch.float16, torch.bfloat16)  # modules run in float32


def describe_inputs(
    module: nn.Module,
    inputs: Inputs | None,
    axes: Axes | None,
    owner: str,
    conditions: Sequence[str] = (),
) -> Takes:
    """Describe the inputs of `module`, from examples where there are any, else by guessing.

    Those of `conditions` have no time: a batch, if they have as many rows as others, and sizes.

    Raises:
        SourceError: if an example cannot be read or does not fit, or nothing can be guessed.
        OptionError: if `axes` do not fit the inputs.
    """
    layouts = Layouts.of(axes or {})
    if inputs is None:
        specs = name_axes(guess_specs(module, owner), layouts)
        _check_conditions(specs, conditions)
        sizes = example_sizes(module, sampler(specs), EXAMPLE, layouts.spans)
        return Takes.of(specs, sizes=sizes, spans=layouts.spans)
    examples = read_inputs(inputs, module)
    named_forward(module, list(examples))
    specs = specs_from_examples(module, examples, owner)
    named = name_axes(specs, layouts)  # refuses what does not fit, before anything is guessed
    _check_conditions(named, conditions)
    known = _of_conditions(specs, conditions)
    known |= {n: layout.shape for n, layout in layouts.inputs.items()}
    if not _runs(module, specs):
        specs = tuple(replace(s, shape=known.get(s.name) or _usual(s.shape)) for s in named)
        return Takes.of(specs, sizes={**EXAMPLE, **sizes_of(specs)}, spans=layouts.spans)
    given = {spec.name: spec.example for spec in specs if spec.example is not None}
    shapes, spans, notes = guess_shapes(module, given, known, layouts.spans)
    specs = tuple(replace(spec, shape=tuple(shapes[spec.name])) for spec in named)
    bounds = {s.name: s.below for s in specs if s.below is not None}
    bounds = {**bounds_of(module, given, shapes), **bounds}
    specs = tuple(replace(spec, below=bounds.get(spec.name)) for spec in specs)
    _check_bounds(specs, owner)
    own = sizes_of(specs)
    sizes = example_sizes(module, sampler(specs), own, spans)
    return Takes.of(specs, sizes=sizes, spans=spans, notes=notes)


def _check_conditions(specs: Sequence[InputSpec], conditions: Sequence[str]) -> None:
    """Refuse conditions that are no inputs, or that have time."""
    shapes = {spec.name: spec.shape for spec in specs}
    for name in conditions:
        if name not in shapes:
            names = ", ".join(shapes)
            raise OptionError(
                f"--condition names {name!r}{perhaps(name, shapes)}; the inputs are: {names}."
            )
        if TIME in shapes[name]:
            raise OptionError(
                f"{name!r} is a condition, which holds for a whole sequence, and --axes gives it "
                "time. Leave one of them out."
            )


def _of_conditions(
    specs: Sequence[InputSpec], conditions: Sequence[str]
) -> dict[str, tuple[int | str, ...]]:
    """The dimensions of conditions: the batch, where they have as many rows as others."""
    rows = {spec.shape[0] for spec in specs if spec.shape and spec.name not in conditions}
    return {
        spec.name: (BATCH, *spec.shape[1:]) if spec.shape and spec.shape[0] in rows else spec.shape
        for spec in specs
        if spec.name in conditions
    }


def read_inputs(inputs: Inputs, module: nn.Module) -> dict[str, Any]:
    """Example inputs as tensors, from a mapping or sequence of them, or an ``.npz`` file.

    What is None is left out, as if it had not been given.

    Raises:
        SourceError: if the file is missing or no ``.npz`` of plain arrays.
    """
    given: Any = inputs
    if isinstance(inputs, str | Path):
        try:
            given = read_npz(inputs)
        except InputError as error:
            raise SourceError(f"The example inputs: {error}") from error
    given = made_again(given)
    if not isinstance(given, Mapping):
        values = [given] if isinstance(given, Tensor | np.ndarray) else list(given)
        takes = inspect.signature(module.forward).parameters
        names = [n for n, p in takes.items() if p.kind is not p.VAR_POSITIONAL]
        many = next((n for n, p in takes.items() if p.kind is p.VAR_POSITIONAL), None)
        if many is not None:
            names = [n for n in names if takes[n].kind is not inspect.Parameter.KEYWORD_ONLY]
            names += [f"{many}_{index}" for index in range(len(values) - len(names))]
        if len(values) > len(names):
            raise SourceError(
                f"{len(values)} example inputs were given; forward takes {', '.join(names)}."
            )
        given = dict(zip(names, values, strict=False))
    return {name: _tensor(name, value) for name, value in given.items() if value is not None}


def _tensor(name: str, value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except TypeError as error:
        raise SourceError(
            f"The example input {name!r} is an array of {value.dtype}; give flags, integers or "
            "floats."
        ) from error


def name_axes(specs: Sequence[InputSpec], layouts: Layouts) -> tuple[InputSpec, ...]:
    """Give the inputs that ``--axes`` names the dimensions and bounds that it says.

    Raises:
        OptionError: if an input is unknown, a rank or a size differs, or a bound is no axis.
    """
    known = {spec.name: spec for spec in specs}
    for name, layout in layouts.inputs.items():
        if name not in known:
            raise OptionError(
                f"--axes names {name!r}{perhaps(name, known)}; the inputs are: {', '.join(known)}."
            )
        where, spec = f"--axes {in_words(name, layout.shape)}", known[name]
        if len(layout.shape) != len(spec.shape):
            commas = " Write commas between names that hold an x." if "x" in name else ""
            raise OptionError(f"{where}: the input has {len(spec.shape)} axes.{commas}")
        if spec.example is not None:
            for axis, (dim, size) in enumerate(zip(layout.shape, spec.example.shape, strict=True)):
                if isinstance(dim, int) and dim != size:
                    raise OptionError(
                        f"{where}: the example input has the size {size} on axis {axis}, not {dim}."
                    )
        known[name] = replace(spec, shape=layout.shape, below=layout.below or spec.below)
    symbols = {dim for layout in layouts.inputs.values() for dim in layout.shape}
    for name, layout in layouts.inputs.items():
        if isinstance(layout.below, str) and layout.below not in symbols:
            raise OptionError(
                f"--axes {name}: its values are to be below {layout.below!r}, which no input has "
                "as an axis."
            )
    return tuple(known.values())


def specs_from_examples(
    module: nn.Module, inputs: Mapping[str, Any], owner: str
) -> tuple[InputSpec, ...]:
    """Describe the example inputs that a factory gave; no axis is free yet.

    Raises:
        SourceError: if a name is none of forward's, or a value is no tensor with entries.
    """
    parameters = inspect.signature(module.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in inputs if name not in parameters and not free]
    if unknown or not inputs:
        raise SourceError(
            f"The example inputs are {', '.join(map(repr, inputs)) or '(none)'}; forward takes "
            f"{', '.join(map(repr, parameters))}. Name them like its arguments, in a file with "
            "numpy.savez(FILE, NAME=array)."
        )
    specs = tuple(spec_of(name, value, owner) for name, value in inputs.items())
    rich = any(spec.dtype.is_floating_point and len(spec.shape) > 1 for spec in specs)
    specs = tuple(replace(spec, settled=rich) for spec in specs)
    if all(_constant(spec) for spec in specs):  # they stand for a shape, and show no values
        specs = tuple(replace(spec, example=_spread(spec)) for spec in specs)
    return specs


def guess_specs(module: nn.Module, owner: str) -> tuple[InputSpec, ...]:
    """Describe the inputs of a module that takes token ids and nothing else.

    Raises:
        SourceError: if forward needs other inputs, or the vocabulary is unknown.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    name = next((p.name for p in parameters if p.name in TOKEN_NAMES), None)
    vocabulary = _vocabulary(module)
    if name is None or vocabulary is None or set(required) - {name}:
        raise SourceError(
            f"{owner} takes {', '.join(required) or 'no inputs by name'}: what to trace it with is "
            f"not known. Example inputs are guessed only for one input of token ids "
            f"({', '.join(TOKEN_NAMES)}) of a module with an nn.Embedding. Give them: --inputs "
            "FILE.npz with an array for each input, or a factory that returns "
            "(module, {name: tensor})."
        )
    ids = torch.zeros((2, 3), dtype=torch.int64)
    shape = (BATCH, TIME)
    try:
        found = bounds_of(module, {name: ids}, {name: shape})
    except Exception as error:
        raise SourceError(
            f"{owner} does not run on token ids of [batch, time], the guess for its input: "
            f"{summary(error)}. Give them: --inputs FILE.npz, or a factory that "
            "returns (module, {name: tensor})."
        ) from error
    return (InputSpec(name, torch.int64, shape, below=found.get(name, vocabulary)),)


def spec_of(name: str, value: object, owner: str) -> InputSpec:
    """Describe one input by its example; no axis is free yet.

    Raises:
        SourceError: if that is no tensor with entries.
    """
    if not isinstance(value, Tensor) or value.numel() == 0:
        raise SourceError(_no_tensor(name, value, owner))
    if value.dtype.is_complex or value.is_quantized or value.is_sparse:
        raise SourceError(
            f"{owner} gave the example input {name!r} as {_describe(value)} of {value.dtype}; "
            "give dense tensors of real numbers, as with torch.view_as_real."
        )
    value = value.detach().cpu()
    value = value.float() if value.dtype in HALF else value
    return InputSpec(name, value.dtype, tuple(value.shape), example=value.contiguous())


def _no_tensor(name: str, value: object, owner: str) -> str:
    said = f"{owner} gave the example input {name!r} as {_describe(value)}; "
    parts: list[str] = []
    if isinstance(value, Mapping):
        parts = [str(key) for key in value]
        inside = ", ".join(f"{key!r}: {key}" for key in parts)
        again = f"{{{inside}}}"
    elif isinstance(value, list | tuple):
        parts = [f"{name}_{index}" for index in range(len(value))]
        again = f"({', '.join(parts)},)"
    if parts:
        return (
            f"{said}each input should be one tensor. Wrap the module in one whose forward takes "
            f"them apart: def forward(self, {', '.join(parts)}): return self.model({again})."
        )
    return f"{said}it should be a tensor with entries; other arguments are set within the module."


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return type(value).__name__


def _constant(spec: InputSpec) -> bool:
    value = spec.example
    return (
        value is not None
        and value.dtype.is_floating_point
        and value.numel() > 1
        and bool((value == value.reshape(-1)[0]).all())
    )


def _spread(spec: InputSpec) -> Tensor:
    """Values about a constant, of its sign; normal ones about zero."""
    assert spec.example is not None
    generator = torch.Generator().manual_seed(0)
    value = spec.example
    if bool((value == 0).all()):
        return torch.randn(value.shape, generator=generator).to(value.dtype)
    return value * (0.5 + torch.rand(value.shape, generator=generator).to(value.dtype))


def _vocabulary(module: nn.Module) -> int | None:
    embeddings = (m for m in module.modules() if isinstance(m, nn.Embedding))
    first = next(embeddings, None)
    return None if first is None else first.num_embeddings


def _usual(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return (BATCH, TIME, *shape[2:])[: len(shape)]


def sizes_of(specs: Sequence[InputSpec]) -> dict[str, int]:
    """The sizes that the free axes have in the examples."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for axis, symbol in spec.dynamic.items():
            if spec.example is not None:
                size = spec.example.shape[axis]
                if sizes.setdefault(symbol, size) != size:
                    raise OptionError(
                        f"--axes: {symbol} is {sizes[symbol]} in one example input and {size} in "
                        f"{spec.name!r}. Give axes of different sizes different names: "
                        f"{as_option({s.name: s.shape for s in specs})}."
                    )
    return sizes


def _check_bounds(specs: Sequence[InputSpec], owner: str) -> None:
    """Hold the examples to the bounds that were found or given."""
    own = sizes_of(specs)
    for spec in specs:
        if spec.below is None or spec.example is None:
            continue
        bound = np.asarray(limit_in(spec.below, own), np.uint64)
        if spec.example.dtype.is_floating_point:
            raise OptionError(f"--axes {spec.name}: only integers pick entries; it is of floats.")
        if strays_of(spec.example.numpy(), bound).any():
            raise SourceError(
                f"{owner} gave the example input {spec.name!r} with values up to "
                f"{int(spec.example.max())}; they should be below {spec.below}."
            )


def _runs(module: nn.Module, specs: Sequence[InputSpec]) -> bool:
    """Whether the module runs on the examples; where it does not is told when it is traced."""
    try:
        with torch.no_grad(), quiet():
            module(**{s.name: s.example.clone() for s in specs if s.example is not None})
    except Exception:  # noqa: BLE001  modules raise whatever they like
        return False
    return True
