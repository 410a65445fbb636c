"""What the library's modules take, and whether they can be stepped token by token."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.examples import Sampler
from intaglio.quiet import summary
from intaglio.state import BATCH, TIME

TOKENS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
PROBE_BATCH, PROBE_TIME = 2, 7


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a module takes: shapes with the names of free axes, and what draws such inputs.

    `tokens` is how many tokens the module knows of those that it is given step by step; `whole`
    says that it takes whole sequences, `defaults` what may be left out.
    """

    shapes: Mapping[str, tuple[int | str, ...]]
    sample: Sampler
    tokens: int
    whole: bool = False
    defaults: dict[str, float] = field(default_factory=dict)

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        """The free axes of each input by name."""
        return {
            name: {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}
            for name, shape in self.shapes.items()
        }


def taken(module: nn.Module, config: Mapping[str, Any]) -> Taken:
    """What a module of tokens takes, which is stepped or takes whole sequences.

    Raises:
        SourceError: if it takes something else, or does not run.
    """
    tokens = vocabulary(module)
    whole = takes_whole_sequences(module, tokens)
    allowed = defaults(module, config) if whole else {}
    return Taken(
        shapes=dict.fromkeys((TOKENS, *allowed), (BATCH, TIME)),
        sample=tokens_and_masks(tokens, allowed),
        tokens=tokens,
        whole=whole,
        defaults=allowed,
    )


def vocabulary(module: nn.Module) -> int:
    """How many tokens the module knows.

    Raises:
        SourceError: if it takes something else than tokens.
    """
    takes = getattr(module, "main_input_name", TOKENS)
    if takes != TOKENS:
        raise SourceError(
            f"{type(module).__name__} takes {takes!r}; of Hugging Face directories, models of "
            f"{TOKENS!r} alone are exported."
        )
    table: nn.Embedding = module.get_input_embeddings()  # type: ignore[operator]  # the library's
    return int(table.weight.shape[0])


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

    def sample(batch: int, time: int, seed: int) -> dict[str, Tensor]:
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
