"""Run bundles step by step with carried state; needs numpy and an engine, never torch."""

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "intaglio.runtime":
    raise ImportError(f"imported as {__name__!r}: use intaglio.runtime")

if TYPE_CHECKING:
    from intaglio.runtime.bundle import Bundle
    from intaglio.runtime.chain import Chain
    from intaglio.runtime.compare import Comparison
    from intaglio.runtime.generation import generate, generate_rows
    from intaglio.runtime.manifest import Manifest
    from intaglio.runtime.profile.settings import ProfileSettings
    from intaglio.runtime.sampling import Sampling
    from intaglio.runtime.session import Session
    from intaglio.runtime.session_state import Snapshot
    from intaglio.runtime.speculative import Draft
    from intaglio.runtime.streaming.streams import Streams

__all__ = [
    "Bundle",
    "Chain",
    "Comparison",
    "Draft",
    "Manifest",
    "ProfileSettings",
    "Sampling",
    "Session",
    "Snapshot",
    "Streams",
    "generate",
    "generate_rows",
]

_HOMES = {
    "Bundle": "bundle",
    "Chain": "chain",
    "Comparison": "compare",
    "Draft": "speculative",
    "Manifest": "manifest",
    "ProfileSettings": "profile.settings",
    "Sampling": "sampling",
    "Session": "session",
    "Snapshot": "session_state",
    "Streams": "streaming.streams",
    "generate": "generation",
    "generate_rows": "generation",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that reading a manifest does not load an engine."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The names that are meant for others."""
    return sorted(_HOMES)
