"""Find the weights in a file: a state dict alone or nested, or a checkpoint that names its model.

    {"format": "intaglio.checkpoint/1", "model": "llama", "config": {...}, "state_dict": {...}}

is what `intaglio.models.save` writes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.models import FORMAT
from intaglio.models.supernet import FORMAT as SUPERNET

from .container import read_container

# Where a state dict is looked for, in this order.
STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema_state_dict",
    "ema",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds: its weights, and its model and config where it names them.

    `module` is a pickled module, which holds its weights itself, `supernet` what the file holds
    that has layers of several numbers of bits.
    """

    path: Path
    format: str
    sha256: str
    tensors: Mapping[str, Any]
    module: nn.Module | None = None
    supernet: Mapping[str, Any] | None = None
    model: str | None = None
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_checkpoint(
    path: Path, *, key: str | None = None, allow_pickle: bool = False
) -> Checkpoint:
    """Read `path`; `key` (dotted) says where its state dict is, None finds it.

    With `allow_pickle` pickled objects are loaded, a module among them, by running their code.

    Raises:
        SourceError: if the file is missing, empty, truncated, of a kind that is not read, would
            run code, or holds no state dict.
    """
    kind, content = read_container(path, allow_pickle=allow_pickle)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(content, Mapping) and "format" in content and "state_dict" in content:
        return _named(path, content, sha256)
    if (module := _find_module(content, key)) is not None:
        return Checkpoint(path=path, format=kind, sha256=sha256, tensors={}, module=module)
    where, tensors = _state_at(path, content, key) if key else _find_state(path, content)
    return Checkpoint(
        path=path,
        format=kind,
        sha256=sha256,
        tensors=tensors,
        notes=_note_alternatives(path, content, where) if not key else (),
    )


def _find_module(content: object, key: str | None) -> nn.Module | None:
    """The pickled module at the top of a file, under `key`, or where state dicts are looked for."""
    places = [content]
    if isinstance(content, Mapping):
        places = [content.get(name) for name in ([key] if key else STATE_KEYS)]
    return next((place for place in places if isinstance(place, nn.Module)), None)


def _named(path: Path, content: Mapping[str, Any], sha256: str) -> Checkpoint:
    """Read a checkpoint of ours, which names its model."""
    if content["format"] == SUPERNET:
        return Checkpoint(path=path, format=SUPERNET, sha256=sha256, tensors={}, supernet=content)
    if content["format"] != FORMAT:
        raise SourceError(
            f"{path} is a checkpoint of the format {content['format']!r}; this version of "
            f"intaglio reads {FORMAT!r}."
        )
    model, config = content.get("model"), content.get("config")
    if not isinstance(model, str) or not isinstance(config, Mapping):
        raise SourceError(f"{path}: a checkpoint of the format {FORMAT!r} needs model and config.")
    if not _is_state(content["state_dict"]):
        raise SourceError(f"{path}: its state_dict is not a mapping of names to tensors.")
    return Checkpoint(
        path=path,
        format=FORMAT,
        sha256=sha256,
        tensors=content["state_dict"],
        model=model,
        config=config,
    )


def _is_state(content: object) -> bool:
    """Whether `content` maps names to values of which at least one is a tensor."""
    return (
        isinstance(content, Mapping)
        and all(isinstance(key, str) for key in content)
        and any(isinstance(value, Tensor) for value in content.values())
    )


def _states(
    content: object, where: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the state dicts under `STATE_KEYS`, in that order, at most two levels deep."""
    if not isinstance(content, Mapping):
        return
    nested = False
    for key in STATE_KEYS if len(where) < 2 else ():
        for found in _states(content.get(key), (*where, key)):
            nested = True
            yield found
    if not nested and _is_state(content):
        yield ".".join(where), content


def _find_state(path: Path, content: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(content, Tensor):
        raise SourceError(f"{path} holds a single tensor, not a state dict.")
    found = next(_states(content), None)
    if found is not None:
        return found
    alone = _only_state(content)
    if alone is not None:
        return alone
    if content == {} and isinstance(content, Mapping):  # of a module without parameters
        return "", {}
    if not isinstance(content, Mapping):
        raise SourceError(f"{path} holds {type(content).__name__!s}, not a state dict.")
    others = [str(key) for key, value in content.items() if _is_state(value)]
    advice = (
        f"Weights stand under {', '.join(map(repr, others))}: choose with --key."
        if others
        else "Save the weights with torch.save(model.state_dict(), 'weights.pt')."
    )
    raise SourceError(
        f"{path} has no state dict at its top or under {', '.join(STATE_KEYS)} "
        f"(it has {', '.join(map(str, list(content)[:8]))}). {advice}"
    )


def _only_state(content: object) -> tuple[str, Mapping[str, Any]] | None:
    """The state dict that a file holds under a name of its own, if there is one alone."""
    found = list(_all_states(content))
    return found[0] if len(found) == 1 else None


def _all_states(
    content: object, where: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the state dicts under any keys, at most two levels deep."""
    for key, value in content.items() if isinstance(content, Mapping) and len(where) < 2 else ():
        if _is_state(value):
            yield ".".join((*where, str(key))), value
        else:
            yield from _all_states(value, (*where, str(key)))


def _state_at(path: Path, content: object, key: str) -> tuple[str, Mapping[str, Any]]:
    value: Any = content
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            has = ", ".join(map(str, list(value)[:8])) if isinstance(value, Mapping) else "no keys"
            raise SourceError(f"{path} has nothing under --key {key!r}: {part!r} is not in {has}.")
        value = value[part]
    if not _is_state(value):
        raise SourceError(f"{path}: what stands under --key {key!r} is not a state dict.")
    return key, value


def _note_alternatives(path: Path, content: object, where: str) -> tuple[str, ...]:
    """Say which state dict was taken where the file holds several."""
    others = [other for other, _ in _states(content) if other != where]
    if not others:
        taken = where and where.partition(".")[0] not in STATE_KEYS
        return (
            (f"{path.name}: weights taken from {where!r}, the only ones in it.",) if taken else ()
        )
    return (f"{path.name}: weights taken from {where!r}, not from {', '.join(map(repr, others))}.",)
