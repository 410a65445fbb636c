"""Models whose tokens see later ones of the prompt: those of one picture, or the whole prompt.

What such a token is in a layer depends on tokens behind it, which a step has not been given.  So
the prompt is a condition beside the picture: it runs once, by the library's own masks, and what
comes into each layer is kept.  In the stream the n-th token takes the n-th of these while n is
below the length of the prompt, whatever it is itself, and later ones are as the library generates
them: each sees all before it.  Any part of a stream gives what the whole gives.

The library tells by `token_type_ids` which tokens see each other.  Which type does is found by
running it: where it is that of an ordinary token, 0, a prompt has no other (PaliGemma); else tokens
that stand for a picture have it (Gemma-3).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.given_once import of_conditions_alone
from intaglio.exporter.sources.guess_axes import EXAMPLE
from intaglio.exporter.sources.input_spec import Sampler
from intaglio.quiet import quiet
from intaglio.state import BATCH, TIME

from .features import PIXELS
from .inputs import MASK, TOKENS, Run, Taken
from .splicing import AGREES, ROWS, TEXT, spliced_by_row, with_marks

PREFIX, PREFIX_MASK, AXIS = "prefix_ids", "prefix_mask", "prefix"
TYPES = "token_type_ids"
EXAMPLE_PREFIX = 11  # a prime that is no size of the module's, see `Source`
MOVES = 1e-6  # of a result that sees a later token

Shape = tuple[int | str, ...]
Hook = Callable[[int, Tensor], Tensor | None]


def taken(module: nn.Module, tokens: int, marker: int, shape: Shape) -> Taken:
    """What the model takes with a picture of `shape` and a prompt for each row.

    Raises:
        SourceError: if no type of token sees earlier ones alone, or if what is put into its layers
            does not give what the library gives.
    """
    who = type(module).__name__
    ahead = {kind: _sees_ahead(module, tokens, kind) for kind in (None, 0, 1)}
    together = next((kind for kind in (0, 1) if ahead[kind]), None)
    apart = next((kind for kind in (None, 0, 1) if not ahead[kind]), together)
    if together is None or apart == together:
        raise SourceError(
            f"{who} takes {TYPES!r}, but tokens of one type see later ones, and of another do not, "
            "is not what it does with them. Leave --condition out to export its text alone."
        )
    reads = _Prompt(module, marker, together, apart)
    fault = reads.fault(tokens, shape)
    if fault:
        raise SourceError(
            f"{who} cannot be given its prompt once for a sequence: {fault}. Leave --condition "
            f"{PIXELS} out to export its text alone."
        )
    prompt = (BATCH, AXIS)
    shapes = {TOKENS: (BATCH, TIME), PIXELS: shape, PREFIX: prompt, PREFIX_MASK: prompt}
    return Taken(
        shapes=shapes,
        sample=_sampler(shapes, tokens, marker),
        tokens=tokens,
        sizes={**EXAMPLE, AXIS: EXAMPLE_PREFIX},
        defaults={PREFIX_MASK: 1.0},
        call=reads.call,
    )


class _Prompt:
    """How a model reads a prompt, and what follows it."""

    def __init__(self, module: nn.Module, marker: int, together: int, apart: int | None) -> None:
        self.module, self.marker, self.together, self.apart = module, marker, together, apart

    def types(self, ids: Tensor) -> Tensor:
        """The types of the tokens of a prompt."""
        return ids * 0 if self.together == 0 else (ids == self.marker).long()

    def call(self, module: nn.Module, run: Run, given: Mapping[str, Tensor]) -> Any:
        """Run the prompt, then the stream with what came into each layer."""
        prompt, mask, ids = given[PREFIX], given[PREFIX_MASK], given[TOKENS]
        kept: list[Tensor] = []
        with spliced_by_row(module), broadcast_masks(), into_layers(module, _keep(kept)):
            inputs = {TOKENS: prompt, PIXELS: given[PIXELS], MASK: mask}
            with of_conditions_alone():
                run(**inputs, **{TYPES: self.types(prompt)})
        place = torch.arange(ids.shape[1])
        inside = (place[None] < mask.sum(1, keepdim=True))[..., None]
        place = place.clamp(max=prompt.shape[1] - 1)[None, :, None].expand(ids.shape[0], -1, -1)

        def put(layer: int, x: Tensor) -> Tensor:
            found = kept[layer].gather(1, place.expand(-1, -1, x.shape[2]))
            return torch.where(inside, found, x)

        kinds = {} if self.apart is None else {TYPES: torch.full_like(ids, self.apart)}
        with broadcast_masks(), into_layers(module, put):
            return run(**{TOKENS: ids}, **kinds)

    def fault(self, tokens: int, shape: Shape) -> str:
        """What differs from the library's run of prompt and text at once; empty where nothing."""
        module, generator = self.module, torch.Generator().manual_seed(0)
        pictures = torch.randn((ROWS, *map(int, shape[1:])), generator=generator)
        words = torch.randint(tokens, (ROWS, TEXT), generator=generator)
        words[words == self.marker] = (self.marker + 1) % tokens

        def run(**inputs: Tensor) -> Any:
            return module(**inputs, return_dict=True, use_cache=False)

        with torch.no_grad(), quiet():
            with spliced_by_row(module) as counts:
                run(**{TOKENS: words, PIXELS: pictures, TYPES: self.types(words)})
            if len(counts) != 1:
                return f"features are put in at {len(counts)} places"
            prompt = torch.cat([words, words.new_full((ROWS, counts[0]), self.marker), words], 1)
            ids = torch.cat([prompt, words], 1)
            after = words * 0 + (1 - self.together)
            types = torch.cat([self.types(prompt), after], 1)
            wanted = run(**{TOKENS: ids, PIXELS: pictures, TYPES: types})[0]
            given = {TOKENS: ids, PIXELS: pictures, PREFIX: prompt, PREFIX_MASK: prompt * 0 + 1}
            found = self.call(module, run, given)[0]
        equal = bool((found - wanted).abs().max() <= AGREES * wanted.abs().max())
        return "" if equal else "the library computes something else of a prompt and what follows"


def _sees_ahead(module: nn.Module, tokens: int, kind: int | None) -> bool:
    """Whether tokens of one type, or without types, see later ones."""
    ids = torch.randint(tokens, (ROWS, TEXT), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % tokens
    types = {} if kind is None else {TYPES: torch.full_like(ids, kind)}
    with torch.no_grad(), quiet():
        first, second = (
            module(**{TOKENS: x}, **types, return_dict=True, use_cache=False)[0][:, :-1]
            for x in (ids, other)
        )
    return not torch.allclose(first, second, atol=MOVES)


@contextlib.contextmanager
def into_layers(module: Any, hook: Hook) -> Iterator[None]:
    """Show what comes into each layer of the decoder, and its last norm, to `hook`.

    What the hook returns is taken in its place.
    """
    decoder = module.get_decoder()
    parts = [*decoder.layers, decoder.norm]

    def hooked(layer: int) -> Callable[..., Any]:
        def see(_part: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            other = hook(layer, args[0])
            return None if other is None else ((other, *args[1:]), options)

        return see

    handles = [
        part.register_forward_pre_hook(hooked(layer), with_kwargs=True)
        for layer, part in enumerate(parts)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: list[Tensor]) -> Hook:
    def keep(_layer: int, x: Tensor) -> None:
        kept.append(x)

    return keep


@contextlib.contextmanager
def broadcast_masks() -> Iterator[None]:
    """Let the library write its masks over all pairs by broadcasting.

    Those of several parts it maps over pairs one by one (`torch.vmap`), which leaves tensors of its
    own in what is captured; its functions are made for both.
    """
    from transformers import masking_utils

    name, broadcast = "_vmap_expansion_sdpa", "_non_vmap_expansion_sdpa"
    original, spread = getattr(masking_utils, name, None), getattr(masking_utils, broadcast, None)
    if original is None or spread is None:
        yield
        return

    def expanded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def mask(*axes: Tensor) -> Tensor:
            rows, _, queries, keys = (axis.shape[0] for axis in axes)
            return function(*spread(*axes)).expand(rows, -1, queries, keys)

        return mask

    setattr(masking_utils, name, expanded)
    try:
        yield
    finally:
        setattr(masking_utils, name, original)


def _sampler(shapes: Mapping[str, Shape], tokens: int, marker: int) -> Sampler:
    """Draw pictures, and prompts of unequal length in which some tokens stand for one."""

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = {
            name: [dim if isinstance(dim, int) else sizes[dim] for dim in shape]
            for name, shape in shapes.items()
        }
        lengths = torch.randint(1, size[PREFIX][1] + 1, (size[PREFIX][0], 1), generator=generator)
        lengths[0] = size[PREFIX][1]
        return {
            TOKENS: torch.randint(tokens, size[TOKENS], generator=generator),
            PIXELS: torch.randn(size[PIXELS], generator=generator),
            PREFIX: with_marks(size[PREFIX], tokens, marker, generator),
            PREFIX_MASK: (torch.arange(size[PREFIX][1]) < lengths).long(),
        }

    return sample
