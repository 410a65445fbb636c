"""A source: a trained module with its weights, and inputs to trace and to check it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.models import find
from intaglio.state import BATCH, TIME

from .checkpoint import Checkpoint, read_checkpoint
from .examples import Sampler, guess_specs, sampler, specs_from_examples
from .factory import build_from_factory, read_config
from .weights import load_weights, tied_names

# Example sizes are odd primes: a batch or time of 1, or one equal to a dimension of the module,
# could be frozen into the graph.
EXAMPLE_BATCH = 3
EXAMPLE_TIME = 7


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded checkpoint.

    `module` is in eval mode and float32, with gradients off.  `dynamic` names the free axes of
    each input, `aliases` maps the further names of tied parameters to the name that
    `module.named_parameters` lists, `config` holds JSON values, `notes` what loading decided.
    """

    path: Path
    name: str
    format: str
    sha256: str
    model: str
    config: dict[str, Any]
    module: nn.Module
    dynamic: dict[str, dict[int, str]]
    aliases: dict[str, str]
    sample: Sampler
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Example inputs, always the same, of at least two rows and two steps."""
        return self.sample(EXAMPLE_BATCH, EXAMPLE_TIME, 0)

    def random_inputs(self, batch: int, time: int, seed: int) -> dict[str, Tensor]:
        """Draw inputs of `batch` rows and `time` steps, the same for the same seed."""
        return self.sample(batch, time, seed)


def load_source(
    path: str | Path,
    *,
    model: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    key: str | None = None,
    import_from: Sequence[str | Path] = (),
    allow_code: bool = False,
) -> Source:
    """Load a checkpoint and the module that it belongs to.

    Args:
        path: a file of ``torch.save`` or safetensors.
        model: a model of `intaglio.models`, or ``package.module:factory``: naming a factory
            is consent to run its code.  Needed unless the checkpoint names its model.
        config: what the model or factory is built with: a mapping, or a JSON or TOML file.
        key: where the file holds the state dict, if it holds several; dotted.
        import_from: folders in which the factory's module is looked for first.
        allow_code: run a factory that the checkpoint names, not the user.

    Raises:
        SourceError: if the file, the model or the config cannot be read, or do not fit together.
    """
    checkpoint = read_checkpoint(Path(path), key=key)
    wanted = model or checkpoint.model
    if wanted is None:
        raise SourceError(
            f"{path} holds weights and does not say which model they belong to. Say it: --model "
            "NAME (see intaglio list models) or --model package.module:factory, with --config FILE."
        )
    if model is None and ":" in wanted and not allow_code:
        raise SourceError(
            f"{path} asks to be built by the code {wanted!r}. Where that is trusted, name it with "
            f"--model {wanted}, or allow it with --allow-code."
        )
    values = read_config(config if config is not None else checkpoint.config)
    if ":" in wanted:
        module, sample, dynamic = _from_factory(wanted, values, [Path(p) for p in import_from])
    else:
        module, sample, dynamic = _from_models(wanted, values)
    notes = load_weights(module, checkpoint.tensors, checkpoint.path)
    module.eval().requires_grad_(requires_grad=False)
    return Source(
        path=checkpoint.path,
        name=checkpoint.path.name,
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        model=wanted,
        config=values,
        module=module,
        dynamic=dynamic,
        aliases=tied_names(module),
        sample=sample,
        notes=(*checkpoint.notes, *notes, *_overrides(checkpoint, wanted, values)),
    )


def _from_factory(
    spec: str, config: Mapping[str, Any], import_from: Sequence[Path]
) -> tuple[nn.Module, Sampler, dict[str, dict[int, str]]]:
    module, inputs = build_from_factory(spec, config, import_from)
    module.eval()
    owner = f"The model of {spec!r}"
    specs = (
        guess_specs(module, owner) if inputs is None else specs_from_examples(module, inputs, owner)
    )
    return module, sampler(specs), {spec.name: spec.dynamic for spec in specs}


def _from_models(
    name: str, config: Mapping[str, Any]
) -> tuple[nn.Module, Sampler, dict[str, dict[int, str]]]:
    model = find(name)
    values = model.configure(config)
    module = model.build(values).eval()

    def sample(batch: int, time: int, seed: int) -> dict[str, Tensor]:
        return model.inputs(values, batch, time, torch.Generator().manual_seed(seed))

    dynamic = {name: {0: BATCH, 1: TIME} for name in sample(EXAMPLE_BATCH, EXAMPLE_TIME, 0)}
    return module, sample, dynamic


def _overrides(checkpoint: Checkpoint, model: str, config: Mapping[str, Any]) -> list[str]:
    """Say where what the user typed replaced what the checkpoint names."""
    name, notes = checkpoint.path.name, []
    if checkpoint.model is not None and checkpoint.model != model:
        notes.append(f"{name} names the model {checkpoint.model!r}; built as {model!r} instead.")
    if checkpoint.config is not None and dict(checkpoint.config) != config:
        notes.append(f"{name} names another config, which was not used.")
    return notes
