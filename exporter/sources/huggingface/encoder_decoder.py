"""Encoder-decoders of the library: what the encoder takes is given once, the decoder steps.

The module is traced as it is, encoder and decoder together; that the encoder is no part of a step
is found in the graph (`intaglio.passes.exact.hoist`).
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.guess_axes import EXAMPLE
from intaglio.exporter.sources.input_spec import Sampler
from intaglio.state import BATCH, TIME

from .inputs import MASK, Taken

STREAM = "decoder_input_ids"
SOURCE = "source"  # the axis of an encoder's tokens
EXAMPLE_SOURCE = 11  # a prime that is no size of the module's, see `Source`

Shape = tuple[int | str, ...]


def is_encoder_decoder(module: nn.Module) -> bool:
    """Whether a module has an encoder, and a decoder that attends to what it gives."""
    config: Any = module.config
    return bool(getattr(config, "is_encoder_decoder", False)) and _takes(module, STREAM)


def taken(module: nn.Module) -> Taken:
    """What an encoder-decoder takes.

    Raises:
        SourceError: if the encoder takes what is not known.
    """
    known: dict[str, Any] = {
        "input_ids": _of_tokens,
        "input_features": _of_features,
        "pixel_values": _of_pictures,
    }
    main = getattr(module, "main_input_name", "input_ids")
    if main not in known:
        raise SourceError(
            f"The encoder of {type(module).__name__} takes {main!r}; encoder-decoders of "
            f"{', '.join(known)} are exported."
        )
    shapes = {**known[main](module), STREAM: (BATCH, TIME)}
    encoded, decoded = _vocabularies(module)
    return Taken(
        shapes=shapes,
        sample=_sampler(shapes, encoded, decoded),
        tokens=decoded,
        sizes={**EXAMPLE, SOURCE: EXAMPLE_SOURCE},
        defaults={MASK: 1.0} if MASK in shapes else {},
    )


def _takes(module: nn.Module, name: str) -> bool:
    """Whether the library's forward has the parameter `name`."""
    return name in inspect.signature(type(module).forward).parameters


def _of_tokens(module: nn.Module) -> dict[str, Shape]:
    found: dict[str, Shape] = {"input_ids": (BATCH, SOURCE)}
    return {**found, MASK: (BATCH, SOURCE)} if _takes(module, MASK) else found


def _of_features(module: nn.Module) -> dict[str, Shape]:
    """Log-mel spectra of a fixed length, which the encoder's convolutions shorten."""
    config: Any = module.config
    encoder: Any = module.get_encoder()  # type: ignore[operator]  # the library's
    strides: list[Any] = [getattr(encoder, name, None) for name in ("conv1", "conv2")]
    if not hasattr(config, "num_mel_bins") or None in strides:
        raise SourceError(
            f"{type(module).__name__} takes 'input_features' in a form that is not known; those of "
            "Whisper, [batch, num_mel_bins, frames], are."
        )
    frames = config.max_source_positions
    for convolution in strides:
        frames *= convolution.stride[0]
    return {"input_features": (BATCH, config.num_mel_bins, frames)}


def _of_pictures(module: nn.Module) -> dict[str, Shape]:
    config: Any = getattr(module.config, "encoder", module.config)
    size = getattr(config, "image_size", None)
    if size is None:
        raise SourceError(f"The config of {type(module).__name__} does not say its image_size.")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": (BATCH, getattr(config, "num_channels", 3), height, width)}


def _sampler(shapes: dict[str, Shape], encoded: int, decoded: int) -> Sampler:
    """Draw inputs of these shapes; sources of unequal length, the mask hiding what is padded."""

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        batch = sizes[BATCH]
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            size = [dim if isinstance(dim, int) else sizes[dim] for dim in shape]
            if name == MASK:
                lengths = torch.randint(1, size[1] + 1, (batch, 1), generator=generator)
                lengths[0] = size[1]
                drawn[name] = (torch.arange(size[1]) < lengths).long()
            elif name.endswith("_ids"):
                below = decoded if name == STREAM else encoded
                drawn[name] = torch.randint(below, size, generator=generator)
            else:
                drawn[name] = torch.randn(size, generator=generator)
        return drawn

    return sample


def _vocabularies(module: Any) -> tuple[int, int]:
    """How many tokens encoder and decoder know; 0 of an encoder that takes none."""
    decoder = module.get_decoder().get_input_embeddings()
    main = getattr(module, "main_input_name", "input_ids")
    encoder = module.get_encoder().get_input_embeddings() if main == "input_ids" else None
    return 0 if encoder is None else encoder.weight.shape[0], decoder.weight.shape[0]
