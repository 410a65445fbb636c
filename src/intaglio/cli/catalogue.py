"""What `intaglio list` lists: the registries, as plain JSON values."""

from dataclasses import MISSING, Field, fields
from typing import Any

from .known_names import TARGETS
from .systems import SYSTEMS


def ops() -> list[dict[str, Any]]:
    """Every operator that carries state or that ONNX lacks."""
    from intaglio.ops import OPS

    return [
        {
            "name": op.name,
            "onnx": f"{op.domain or 'ai.onnx'}::{op.onnx_type}",
            "since": op.since,
            "carries": ", ".join(op.signature.carried(state) for state in op.signature.states),
            "source": op.source,
        }
        for op in OPS
    ]


def passes() -> list[dict[str, Any]]:
    """Every pass with the options that ``--pass NAME:OPTIONS`` takes."""
    from intaglio.passes import PASSES
    from intaglio.passes.base import Calibrated, Exact, Lower

    promises = (Exact, Lower, Calibrated)
    return [
        {
            "name": entry.name,
            "promise": next(kind.__name__.lower() for kind in promises if issubclass(entry, kind)),
            "options": {option.name: _default(option) for option in fields(entry)},  # type: ignore[arg-type]
            "summary": entry.summary,
        }
        for entry in PASSES
    ]


def models() -> list[dict[str, Any]]:
    """Every model that a checkpoint or ``--model`` can name."""
    from intaglio.models import MODELS

    return [
        {
            "name": model.name,
            "presets": list(model.presets),
            "summary": model.summary,
            "source": model.source,
        }
        for model in MODELS
    ]


def systems() -> list[dict[str, Any]]:
    """Every system of the literature: as what it is used, and its page."""
    return [{"name": s.name, "used as": list(s.used), "page": s.page} for s in SYSTEMS]


def targets() -> list[dict[str, Any]]:
    """Every target that ``--target`` can name."""
    return [{"name": name, "engine": engine} for name, engine in TARGETS.items()]


def kernels() -> list[dict[str, Any]]:
    """Every operator that a plugin of TensorRT computes by a kernel of ours."""
    from intaglio.ops import OPS
    from intaglio.trt_plugins import NAMES

    return [
        {"name": op.name, "onnx": f"{op.domain or 'ai.onnx'}::{op.onnx_type}"}
        for op in OPS
        if op.name in NAMES
    ]


def _default(option: Field[Any]) -> Any:
    return None if option.default is MISSING else option.default
