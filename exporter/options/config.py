"""The config that a model or factory is built with: a mapping, a JSON or TOML file, or JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intaglio.errors import SourceError
from intaglio.runtime.plain_files import parse_json, read_text

from .toml_text import parse_toml

Config = Mapping[str, Any] | str | Path


def read_config(config: Config | None) -> dict[str, Any]:
    """Return a config given as a mapping, as a JSON or TOML file, or as the text of the former.

    Raises:
        SourceError: if the file is missing, malformed or no table of keys, or a value is one that
            JSON cannot hold, so that a manifest could not repeat it.
    """
    if config is None:
        return {}
    where = "The config" if isinstance(config, Mapping) else f"The config {config}"
    values = config if isinstance(config, Mapping) else _parse(config)
    if not isinstance(values, Mapping):
        raise SourceError(f"{where} is no table of keys and values.")
    try:
        json.dumps(dict(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise SourceError(f"{where} has a value that JSON cannot hold: {error}.") from error
    return dict(values)


def _parse(config: str | Path) -> object:
    path, text = Path(config), str(config)
    try:
        if not text.startswith("{"):
            text = read_text(path)
    except OSError as error:
        raise SourceError(f"The config {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"The config {path} is no text in UTF-8: {error}.") from error
    try:
        return parse_toml(text) if path.suffix == ".toml" else parse_json(text)
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise SourceError(f"The config {path} is not valid {kind}: {error}.") from error
