"""One plain forward for the library's modules: named tensors in, a dict of tensors out.

A module of the library takes dozens of options and returns caches, hidden states and losses.  Its
class is exchanged for a subclass whose `forward` takes the inputs asked for, turns the cache off
and keeps the tensors; parameters and submodules stay as they are, under their own names.  The
library's own step is kept as `step_with_cache`, for those who compare with it.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .inputs import Run

KEPT = "logits_to_keep"  # of the last tokens
FIXED = {"use_cache": False, "return_dict": True}
ENCODED, LAST = "encoder_", "last_hidden_state"  # what an encoder gives is no result of a step
PICTURE = "image_"  # nor what is made of a picture
Call = Callable[[nn.Module, Run, Mapping[str, Tensor]], Any]
CACHES = ("past_key_values", "cache_params")  # what the library calls the state of a sequence


def plain_forward(
    module: nn.Module, inputs: Sequence[str], call: Call | None = None, *, last: bool = False
) -> None:
    """Let `module.forward` take `inputs` alone, by name, and return a dict of tensors.

    `call` runs the library's forward where that does not take them itself, see `Taken.call`.  With
    `last`, logits are those of the last token alone, where the library can leave the others out.
    """
    kind = type(module)
    takes = inspect.signature(kind.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    fixed: dict[str, Any] = {n: value for n, value in FIXED.items() if free or n in takes}
    if last and KEPT in takes:
        fixed[KEPT] = 1

    def forward(self: nn.Module, **given: Tensor) -> dict[str, Tensor]:
        run = functools.partial(kind.forward, self, **fixed)
        with _one_sequence_a_row(), _left_as_it_was(self):
            outputs = run(**given) if call is None else call(self, run, given)
        return {
            name: x
            for name, x in outputs.items()
            if isinstance(x, Tensor) and not name.startswith((ENCODED, PICTURE))
        }

    cache = next((name for name in CACHES if name in takes), None)

    def step_with_cache(self: nn.Module, past: Any, **given: Tensor) -> tuple[Tensor, Any]:
        """Take the next tokens as the library does: the first output, and the state after them."""
        carried = {} if past is None else past
        outputs = kind.forward(self, **given, **carried, use_cache=True, return_dict=True)
        after = {str(cache): outputs[str(cache)]}
        if ENCODED + LAST in outputs:
            after["encoder_outputs"] = (outputs[ENCODED + LAST],)
        return next(x for x in outputs.values() if isinstance(x, Tensor)), after

    self_ = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in inputs]
    forward.__signature__ = inspect.Signature([self_, *named])  # type: ignore[attr-defined]
    body: dict[str, Any] = {"forward": forward, "__module__": kind.__module__}
    if cache is not None and call is None:
        body["step_with_cache"] = step_with_cache
    module.__class__ = type(kind.__name__, (kind,), body)


@contextlib.contextmanager
def _left_as_it_was(module: nn.Module) -> Iterator[None]:
    """Take away what a call leaves in the modules: states of recurrences, tables that grew."""
    places = [
        place
        for part in module.modules()
        for place in (vars(part), vars(part)["_buffers"], vars(part)["_parameters"])
    ]
    held = [
        (place, name, value)
        for place in places
        for name, value in place.items()
        if value is None or isinstance(value, Tensor)
    ]
    try:
        yield
    finally:
        for attributes, name, value in held:
            attributes[name] = value


@contextlib.contextmanager
def _one_sequence_a_row() -> Iterator[None]:
    """Let the library not look for sequences that were packed into one row.

    It finds them where positions jump.  Ours follow each other, since none are given, which it sees
    when it runs but not when it is traced; the search would then be part of every mask.
    """
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    search = getattr(masking_utils, name, None)
    if search is not None:
        setattr(masking_utils, name, lambda _positions: None)
    try:
        yield
    finally:
        if search is not None:
            setattr(masking_utils, name, search)
