"""Several sources that make one model: a TOML file that names a model of ours and its parts.

    model = "mlp-memory"

    [parts]
    language_model = "gpt2-large"
    memory = "gpt2-large-memory"

Each part is a source of any kind, by a path that the file's folder is the start of, and is loaded
with the same distrust; the model puts their modules together.  The first part decides what the
whole takes, and has the tokenizer; what the model takes beside that is given once for a sequence.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.options.config import read_config
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.state_dict import tied_names
from intaglio.models import MODELS, find
from intaglio.models.model import Joint
from intaglio.state import BATCH

FORMAT = "joined"


def fits(path: Path) -> bool:
    """Whether `path` is meant as such a file."""
    return path.suffix == ".toml" and path.is_file()


def load(
    path: Path, options: LoadOptions, load_part: Callable[[Path, LoadOptions], Source]
) -> Source:
    """Load the parts, each with `load_part`, and put them together.

    Raises:
        SourceError: if the file is not as it should be, a part cannot be loaded, or they do not fit
            each other.
        OptionError: if an option says what the file says itself.
    """
    options.take(f"{path}, which says what its parts are", "model")
    model, joint, places = _read(path, options.model)
    allowed = LoadOptions(allow_code=options.allow_code, allow_pickle=options.allow_pickle)
    parts = {name: load_part(path.parent / place, allowed) for name, place in places.items()}
    modules: dict[str, nn.Module] = {}
    for name, part in parts.items():
        if not isinstance(part.body, nn.Module):
            raise SourceError(f"{path}: the part {name!r} is a graph, and should hold a module.")
        modules[name] = part.body
    module = joint.join(modules).eval().requires_grad_(requires_grad=False)
    first = parts[joint.parts[0]]
    hashes = "".join(f"{part.sha256}  {name}\n" for name, part in parts.items())

    def sample(sizes: Sizes, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {**first.sample(sizes, seed), **joint.conditions(sizes[BATCH], generator)}

    given = joint.conditions(2, torch.Generator())
    return replace(
        first,
        path=path,
        name=path.name,
        format=FORMAT,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        model=model,
        config={},
        body=module,
        dynamic={**first.dynamic, **{name: {0: BATCH} for name in given}},
        sample=sample,
        aliases=tied_names(module),
        notes=tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes),
    )


def _read(path: Path, asked: str | None) -> tuple[str, Joint, Mapping[str, str]]:
    """The model that a file names, how it joins parts, and where they lie."""
    values: Mapping[str, Any] = read_config(path)
    unknown = sorted(values.keys() - {"model", "parts"})
    name = asked or values.get("model")
    if unknown or not isinstance(name, str):
        raise SourceError(
            f"{path} should hold model = NAME and a table [parts]"
            f"{f', not {unknown[0]!r}' if unknown else ''}."
        )
    joint = find(name).joint
    if joint is None:
        able = ", ".join(model.name for model in MODELS if model.joint is not None)
        raise SourceError(f"The model {name!r} is not made of parts; these are: {able}.")
    parts = values.get("parts")
    wanted = ", ".join(joint.parts)
    if not isinstance(parts, Mapping) or not all(isinstance(x, str) for x in parts.values()):
        raise SourceError(f"{path} should have a table [parts] with the paths of {wanted}.")
    if set(parts) != set(joint.parts):
        raise SourceError(f"{path} has the parts {', '.join(parts)}; it should have {wanted}.")
    return name, joint, {part: parts[part] for part in joint.parts}
