"""Inputs of the library's models that are no token ids: pictures, sound, spectra, series.

The library names the main input of each model; its shape follows from the config, in one of a few
layouts, of which the first is taken that the model runs with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.input_spec import InputSpec, sampler
from intaglio.quiet import quiet
from intaglio.runtime.plain_files import read_json
from intaglio.state import BATCH, TIME

PIXELS, VALUES, FEATURES = "pixel_values", "input_values", "input_features"
PREPROCESSOR = "preprocessor_config.json"
USUAL_PICTURE = 224
SAMPLES, FRAMES = "samples", "frames"
SIZES = {BATCH: 3, TIME: 7, SAMPLES: 2000, FRAMES: 100}
"""At which a model is tried: enough samples for the strides of encoders of sound."""

Config = Mapping[str, Any]
Shape = tuple[int | str, ...]


def describe(
    module: nn.Module, config: Config, folder: Path, tokens: Sequence[InputSpec]
) -> tuple[InputSpec, ...]:
    """What `module` takes: its main input, beside token ids where it needs both.

    Args:
        module: of the library.
        config: of the directory.
        folder: the directory, which may say how pictures are prepared.
        tokens: what it takes where it reads text as well.

    Raises:
        SourceError: if no layout that is known runs.
    """
    main = str(getattr(module, "main_input_name", ""))
    names = [name for name in (main, PIXELS, FEATURES, VALUES) if name in LAYOUTS]
    for name in dict.fromkeys(names):
        for shape in LAYOUTS[name](merged(config), folder):
            spec = InputSpec(name, torch.float32, shape)
            for specs in ((spec,), (*tokens, spec)):
                if _runs(module, specs):
                    return specs
    raise SourceError(
        f"{type(module).__name__} takes {main!r}, in a layout that is not known, or needs more "
        "inputs. Export the module itself, from Python, with examples of its inputs: "
        "intaglio.export(module, 'bundle', inputs={...})."
    )


def _runs(module: nn.Module, specs: Sequence[InputSpec]) -> bool:
    inputs = sampler(specs)(SIZES, 0)
    try:
        with torch.no_grad(), quiet():
            outputs = module(**inputs, return_dict=True)
    except Exception:  # noqa: BLE001  the library refuses in many ways
        return False
    return any(isinstance(value, Tensor) for value in outputs.values())


def merged(config: Config) -> dict[str, Any]:
    """The config with those of its parts, where these say more."""
    parts = (config.get(name) for name in ("vision_config", "audio_config", "encoder"))
    return {
        **{
            key: value for part in parts if isinstance(part, Mapping) for key, value in part.items()
        },
        **config,
    }


def _pictures(config: Config, folder: Path) -> Iterator[Shape]:
    """[batch, channels, height, width]."""
    channels = _number(config.get("num_channels"), 3)
    for size in (config.get("image_size"), *_prepared(folder), USUAL_PICTURE):
        pair = _pair(size)
        if pair is not None:
            yield (BATCH, channels, *pair)


def _prepared(folder: Path) -> Iterator[Any]:
    """Sizes to which pictures are brought before the model."""
    try:
        said = read_json(folder / PREPROCESSOR)
    except (OSError, ValueError):
        return
    if isinstance(said, Mapping):
        yield from (said.get(key) for key in ("crop_size", "size"))


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width, however a config says them."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    size = [size, size] if isinstance(size, int) else size
    whole = isinstance(size, list | tuple) and len(size) == 2
    return (size[0], size[1]) if whole and all(isinstance(n, int) and n > 0 for n in size) else None


def _number(value: Any, usual: int) -> int:
    return value if isinstance(value, int) and value > 0 else usual


def _values(config: Config, folder: Path) -> Iterator[Shape]:
    """Sound: samples, with channels or without; or spectra of a fixed number of frames."""
    del folder
    bins, frames = config.get("num_mel_bins"), config.get("max_length")
    if isinstance(bins, int) and isinstance(frames, int):
        yield (BATCH, frames, bins)
    yield (BATCH, SAMPLES)
    yield (BATCH, _number(config.get("audio_channels"), 1), SAMPLES)


def _features(config: Config, folder: Path) -> Iterator[Shape]:
    """Spectra: bins before frames, as many as positions, or frames before bins."""
    del folder
    names = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim")
    for bins in (config[name] for name in names if isinstance(config.get(name), int)):
        positions = _number(config.get("max_source_positions"), 0)
        if positions:
            yield (BATCH, bins, 2 * positions)  # a stride of two comes first
        yield (BATCH, bins, FRAMES)
        yield (BATCH, FRAMES, bins)


def _series(config: Config, folder: Path) -> Iterator[Shape]:
    """Channels over the context that the model was made for."""
    del folder
    length = _number(config.get("context_length"), 0)
    channels = _number(config.get("num_input_channels"), _number(config.get("input_size"), 1))
    if length:
        yield (BATCH, length, channels)
        yield (BATCH, length)


LAYOUTS: Mapping[str, Callable[[Config, Path], Iterator[Shape]]] = {
    PIXELS: _pictures,
    VALUES: _values,
    FEATURES: _features,
    "past_values": _series,
}
"""Layouts to try, by the name that the library gives the input."""
