"""A model of `intaglio.models`, built for the weights of a file: outline, module, inputs."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from intaglio.errors import SourceError
from intaglio.exporter.options.layout_text import read_layouts
from intaglio.exporter.options.loading import Inputs
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.guess_axes import EXAMPLE
from intaglio.exporter.sources.input_spec import Takes
from intaglio.models import Model
from intaglio.passes.run_limits import BYTES, mapping_at_most
from intaglio.state import BATCH, TIME

PARAMETERS = 1000  # that a model may have beyond twice the entries of its file


def outline(model: Model, config: Any, entries: int) -> nn.Module:
    """The module without data, which takes little memory, however large the config says.

    What starts at computed numbers is computed still, in as much memory as a graph may take.

    Raises:
        SourceError: if it cannot be built, or has far more parameters than `entries` of a file.
    """
    most = PARAMETERS + 2 * entries
    with _told(model.name), torch.device("meta"), _at_most(most), mapping_at_most(BYTES):
        return model.build(config)


def build(model: Model, config: Any) -> tuple[nn.Module, Inputs | Takes, Mapping[str, Any]]:
    """The module, what it takes, and what the model says in the place of options.

    Where it names the axes of its inputs, examples of them take the place of what it takes.

    Raises:
        SourceError: if it cannot be built of `config`.
    """
    with _told(model.name):
        module = model.build(config).eval()

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return model.inputs(config, sizes[BATCH], sizes[TIME], generator)

    with _told(model.name):
        said: dict[str, Any] = {"graphs": {} if model.graphs is None else model.graphs(config)}
        if model.axes is not None:
            said["axes"] = read_layouts(model.axes(config))
            return module, sample(EXAMPLE, 0), said
        dynamic = {name: {0: BATCH, 1: TIME} for name in sample(EXAMPLE, 0)}
    return module, Takes(dynamic=dynamic, sample=sample), said


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever a model of ours raises while it is built, its config is at fault."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise SourceError(
            f"The model {name!r} cannot be built with this config: {said}."
        ) from error


@contextlib.contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Stop the building of a module once it has more parameters than a file could hold."""
    left = count

    def register(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SourceError(
                f"The config asks for more than {count} parameters, far more than the file holds. "
                "Check its number of layers."
            )

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()
