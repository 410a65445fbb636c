"""Example inputs of a module: what its forward takes, and random values of any batch and time.

Every input is ``[batch, time, ...]``, or ``[batch]``, unless its axes are named.  Token ids are
recognised by their name and drawn from the vocabulary; everything else follows the examples that
the user or the factory gave.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.errors import InputError, OptionError, SourceError
from intaglio.runtime.arrays import read_npz
from intaglio.state import BATCH, TIME

TOKEN_NAMES = ("input_ids", "ids", "idx", "tokens", "token_ids", "x")

Sampler = Callable[[int, int, int], dict[str, Tensor]]  # (batch, time, seed) -> inputs
Inputs = Mapping[str, Any] | str | Path
Axes = Mapping[str, Sequence[int | str]]


@dataclass(frozen=True)
class InputSpec:
    """One input: integers below `high`, or floats of `mean` and `std`, or booleans of `mean`.

    With a `value` it always is that.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]  # with the names of the free axes
    high: int = 2
    mean: float = 0.0
    std: float = 1.0
    value: float | None = None

    @property
    def dynamic(self) -> dict[int, str]:
        """Which axes are free, and what they are called."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}

    def sample(self, batch: int, time: int, generator: torch.Generator) -> Tensor:
        """Draw a tensor of `batch` rows and `time` steps."""
        sizes = {BATCH: batch, TIME: time}
        own = 11 if time == 7 else 3 + time % 9  # never as many as there are tokens
        shape = [sizes.get(dim, own) if isinstance(dim, str) else dim for dim in self.shape]
        if self.value is not None:
            return torch.full(shape, self.value, dtype=self.dtype)
        if self.dtype is torch.bool:
            return torch.rand(shape, generator=generator) < self.mean
        if self.dtype.is_floating_point:
            return (self.mean + self.std * torch.randn(shape, generator=generator)).to(self.dtype)
        return torch.randint(self.high, shape, generator=generator, dtype=self.dtype)


def sampler(specs: tuple[InputSpec, ...]) -> Sampler:
    """Return the function that draws all inputs at once, the same for the same seed."""

    def sample(batch: int, time: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {spec.name: spec.sample(batch, time, generator) for spec in specs}

    return sample


def describe_inputs(
    module: nn.Module,
    inputs: Inputs | None,
    axes: Axes | None,
    owner: str,
    conditions: Sequence[str] = (),
) -> tuple[InputSpec, ...]:
    """Describe the inputs of `module`, from examples where there are any, else by guessing.

    Those of `conditions` have no time: a batch, if they have as many rows as others, and sizes.

    Raises:
        SourceError: if an example cannot be read or does not fit, or nothing can be guessed.
        OptionError: if `axes` do not fit the inputs.
    """
    if inputs is None:
        specs = guess_specs(module, owner)
    else:
        specs = specs_from_examples(module, read_inputs(inputs), owner, conditions)
    unknown = [name for name in conditions if name not in {spec.name for spec in specs}]
    if unknown:
        names = ", ".join(spec.name for spec in specs)
        raise OptionError(f"--condition names {unknown[0]!r}; the inputs are: {names}.")
    specs = name_axes(specs, axes or {})
    for spec in specs:
        if spec.name in conditions and TIME in spec.shape:
            raise OptionError(
                f"{spec.name!r} is a condition, which holds for a whole sequence, and --axes gives "
                "it time. Leave one of them out."
            )
    return specs


def read_inputs(inputs: Inputs) -> dict[str, Any]:
    """Example inputs as tensors, from a mapping of tensors or arrays, or an ``.npz`` file.

    Raises:
        SourceError: if the file is missing or no ``.npz`` of plain arrays.
    """
    if isinstance(inputs, str | Path):
        try:
            inputs = read_npz(inputs)
        except InputError as error:
            raise SourceError(f"The example inputs: {error}") from error
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }


def name_axes(specs: Sequence[InputSpec], axes: Axes) -> tuple[InputSpec, ...]:
    """Give the inputs that `axes` names the dimensions that it says.

    Raises:
        OptionError: if an input is unknown, a rank differs, or a name is not batch or time.
    """
    known = {spec.name: spec for spec in specs}
    for name, dims in axes.items():
        if name not in known:
            raise OptionError(f"--axes names {name!r}; the inputs are: {', '.join(known)}.")
        words = "x".join(map(str, dims))
        names = [dim for dim in dims if isinstance(dim, str)]
        if len(dims) != len(known[name].shape):
            raise OptionError(
                f"--axes {name}:{words}: the input has {len(known[name].shape)} axes."
            )
        own = set(names) - {BATCH, TIME}
        stepped = any(TIME in axes.get(spec.name, spec.shape) for spec in specs)
        if len(set(names)) < len(names) or (own and (TIME in names or not stepped)):
            raise OptionError(
                f"--axes {name}:{words}: free axes are called batch and time; others have names of "
                "their own where the input has no time and another one has."
            )
        known[name] = replace(known[name], shape=tuple(dims))
    return tuple(known.values())


def specs_from_examples(
    module: nn.Module, inputs: Mapping[str, Tensor], owner: str, conditions: Sequence[str] = ()
) -> tuple[InputSpec, ...]:
    """Describe the example inputs that a factory gave; those of `conditions` have no time.

    Raises:
        SourceError: if a name is none of forward's, or a value is no tensor of at least one axis.
    """
    parameters = inspect.signature(module.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in inputs if name not in parameters and not free]
    if unknown or not inputs:
        raise SourceError(
            f"{owner} gave the example inputs {', '.join(map(repr, inputs)) or '(none)'}; "
            f"forward takes {', '.join(map(repr, parameters))}."
        )
    specs = [spec_of(module, n, x, owner, condition=n in conditions) for n, x in inputs.items()]
    rows = {inputs[spec.name].shape[0] for spec in specs if TIME in spec.shape}
    return tuple(
        replace(spec, shape=(BATCH, *spec.shape[1:]))
        if spec.name in conditions and spec.shape[:1] in {(size,) for size in rows}
        else spec
        for spec in specs
    )


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
            "FILE.npz with arrays of [batch, time, ...], or a factory that returns "
            "(module, {name: tensor})."
        )
    specs = (InputSpec(name, torch.int64, (BATCH, TIME), high=vocabulary),)
    _try(module, sampler(specs), owner)
    return specs


def spec_of(
    module: nn.Module, name: str, value: object, owner: str, *, condition: bool = False
) -> InputSpec:
    """Describe one input by its example; a condition has the sizes of it.

    Raises:
        SourceError: if that is no tensor, or, but for a condition, one without axes.
    """
    scalar = isinstance(value, Tensor) and value.ndim == 0 and not condition
    if not isinstance(value, Tensor) or scalar or value.numel() == 0:
        raise SourceError(
            f"{owner} gave the example input {name!r} as {_describe(value)}; it should be a "
            "tensor of [batch, time, ...] or [batch]."
        )
    shape = tuple(value.shape) if condition else (BATCH, TIME, *value.shape[2:])[: value.ndim]
    if not value.dtype.is_floating_point and value.dtype is not torch.bool:
        known = _vocabulary(module) if name in TOKEN_NAMES else None
        return InputSpec(name, value.dtype, shape, high=known or int(value.max()) + 1)
    numbers = value.double()
    mean, std = float(numbers.mean()), float(numbers.std(correction=0))
    half = value.dtype in (torch.float16, torch.bfloat16)  # modules run in float32
    return InputSpec(name, torch.float32 if half else value.dtype, shape, mean=mean, std=std)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return type(value).__name__


def _vocabulary(module: nn.Module) -> int | None:
    embeddings = (m for m in module.modules() if isinstance(m, nn.Embedding))
    first = next(embeddings, None)
    return None if first is None else first.num_embeddings


def _try(module: nn.Module, sample: Sampler, owner: str) -> None:
    """Run the module once on guessed inputs, so that a wrong guess is told as such."""
    try:
        with torch.no_grad():
            module(**sample(2, 3, 0))
    except Exception as error:
        raise SourceError(
            f"{owner} does not run on token ids of [batch, time], the guess for its input: "
            f"{type(error).__name__}: {error}. Give them: --inputs FILE.npz, or a factory that "
            "returns (module, {name: tensor})."
        ) from error
