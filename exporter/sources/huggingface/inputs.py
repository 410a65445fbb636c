"""What the library's modules take, and whether they can be stepped token by token."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.guess_axes import EXAMPLE
from intaglio.exporter.sources.input_spec import Sampler
from intaglio.quiet import summary
from intaglio.state import BATCH, TIME

TOKENS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
LENGTHS = "lengths"  # of what takes either these or a mask
PROBE_BATCH, PROBE_TIME = 2, 7

Run = Callable[..., Any]
"""The library's own forward, with the options of an export."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a module takes: shapes with the names of free axes, and what draws such inputs.

    `tokens` is how many tokens the module knows of those that it is given step by step; `whole`
    says that it takes whole sequences, `defaults` what may be left out; `sizes` holds those at
    which it is traced.  `call` runs the library where its forward does not take such inputs itself;
    `notes` are for people.
    """

    shapes: Mapping[str, tuple[int | str, ...]]
    sample: Sampler
    tokens: int
    whole: bool = False
    defaults: dict[str, float] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=lambda: dict(EXAMPLE))
    notes: tuple[str, ...] = ()
    call: Callable[[nn.Module, Run, Mapping[str, Tensor]], Any] | None = None

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """The free axes of each input by name."""
        return {
            name: {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}
            for name, shape in self.shapes.items()
        }


def taken(module: nn.Module, tokens: int, config: Mapping[str, Any]) -> Taken:
    """What a module of tokens takes, which is stepped or takes whole sequences.

    Raises:
        SourceError: if it does not run.
    """
    whole = takes_whole_sequences(module, tokens)
    allowed = defaults(module, config) if whole else {}
    counts = {MASK, LENGTHS} <= {*inspect.signature(type(module).forward).parameters}
    return Taken(
        shapes=dict.fromkeys((TOKENS, *allowed), (BATCH, TIME)),
        sample=tokens_and_masks(tokens, allowed),
        tokens=tokens,
        whole=whole,
        defaults=allowed,
        call=_without_padding if counts and not whole else None,
    )


def _without_padding(_module: nn.Module, run: Run, given: Mapping[str, Tensor]) -> Any:
    """Run a module that takes its token of padding for the end of a row, unless it is told.

    A token of a stream would be hidden by such a token behind it (XLM).
    """
    return run(**given, **{MASK: torch.ones_like(given[TOKENS])})


def vocabulary(module: nn.Module, config: Mapping[str, Any]) -> int | None:
    """How many tokens the module knows, None where it takes none."""
    try:
        table: Any = module.get_input_embeddings()  # type: ignore[operator]  # the library's
        if (
            isinstance(table.weight, Tensor)
            and TOKENS in inspect.signature(type(module).forward).parameters
        ):
            return int(table.weight.shape[0])
    except (AttributeError, NotImplementedError, TypeError):
        pass  # models of two towers, and of bytes, have no one table
    text = config.get("text_config")
    known = (config, text if isinstance(text, Mapping) else {})
    sizes = (each.get("vocab_size") for each in known)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def takes_tokens_alone(module: nn.Module, tokens: int | None) -> bool:
    """Whether the module runs on token ids, and on nothing else."""
    if tokens is None or getattr(module, "main_input_name", TOKENS) != TOKENS:
        return False
    ids = torch.zeros((PROBE_BATCH, PROBE_TIME), dtype=torch.int64)
    try:
        with torch.no_grad():
            module(**{TOKENS: ids}, return_dict=True)
    except ValueError as error:  # "You have to specify pixel_values"
        return "specify" not in str(error)
    except Exception:  # noqa: BLE001  what it is, is told where token ids are tried
        return True
    return True


def takes_whole_sequences(module: nn.Module, tokens: int) -> bool:
    """Whether tokens see later ones, or there is one result for all of them.

    A language model says by its class that it goes from left to right; of others that is found by
    changing the last token.

    Raises:
        SourceError: if the module does not run on tokens.
    """
    if type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return False
    ids = torch.randint(tokens, (PROBE_BATCH, PROBE_TIME), generator=torch.Generator())
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % tokens
    try:
        with torch.no_grad():
            first, second = (module(input_ids=x, return_dict=True) for x in (ids, other))
    except Exception as error:
        raise SourceError(
            f"{type(module).__name__} does not run on {TOKENS} alone: {summary(error)}."
        ) from error
    names = [name for name, value in first.items() if isinstance(value, Tensor)]
    return any(_differs(first[name], second[name]) for name in names)


def _differs(a: Tensor, b: Tensor) -> bool:
    if a.ndim < 2 or a.shape[1] != PROBE_TIME:
        return True
    return not torch.allclose(a[:, :-1], b[:, :-1], atol=1e-6)


def defaults(module: nn.Module, config: Mapping[str, Any]) -> dict[str, float]:
    """Inputs of an encoder that may be left out, with what they then hold."""
    takes = inspect.signature(type(module).forward).parameters
    found: dict[str, float] = {}
    if MASK in takes:
        found[MASK] = 1
    if TYPES in takes and config.get("type_vocab_size", 2) > 1:
        found[TYPES] = 0
    return found


def tokens_and_masks(tokens: int, names: Mapping[str, float]) -> Sampler:
    """Draw token ids, and rows of unequal length: the mask hides what is behind their end."""

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        batch, time = sizes[BATCH], sizes[TIME]
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(tokens, (batch, time), generator=generator)
        drawn = {TOKENS: ids}
        if MASK in names:
            lengths = torch.randint(1, time + 1, (batch, 1), generator=generator)
            lengths[0] = time
            drawn[MASK] = (torch.arange(time) < lengths).long()
        if TYPES in names:
            drawn[TYPES] = torch.randint(2, (batch, time), generator=generator)
        return drawn

    return sample
