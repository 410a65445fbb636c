"""Graphs of checkpoints that many tests export, each traced once for all processes of a run."""

import contextlib
import hashlib
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from torch import nn

from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import Traced, trace

DECIDING = (
    "dynamic sizes spans bounds aliases whole states defaults others caches pace loosened".split()
)


@contextlib.contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Trace no system of `models/` twice with the same weights, config and inputs.

    Graphs are kept in `folder`, which several processes may share.  What follows tracing changes
    graphs in place: each gets one of its own.  Other modules are traced each time: their weights
    and classes do not tell what their `forward` computes.
    """
    made = trace

    def once(source: Source) -> Traced:
        body = source.body
        if not (source.model and source.config and isinstance(body, nn.Module) and _is_named(body)):
            return made(source)
        kept = folder / _key(source, body)
        if not kept.exists():
            new = kept.with_suffix(f".{os.getpid()}")
            traced = made(source)
            graph = ir.to_proto(traced.model).SerializeToString()
            new.write_bytes(pickle.dumps((graph, {**vars(traced), "model": None})))
            new.rename(kept)
        graph, others = pickle.loads(kept.read_bytes())
        return Traced(**{**others, "model": ir.from_proto(onnx.ModelProto.FromString(graph))})

    with pytest.MonkeyPatch.context() as patch:
        for name, module in [*sys.modules.items()]:
            own = name.startswith(("tests.exporter.tracing", "intaglio.exporter.tracing"))
            if not own and vars(module).get("trace") is made:
                patch.setattr(module, "trace", once)
        yield


def _is_named(body: nn.Module) -> bool:
    """Whether its class is one of a file, and none whose forward is another of its methods."""
    kind = type(body)
    return getattr(sys.modules[kind.__module__], kind.__qualname__, None) is kind


def _key(source: Source, body: nn.Module) -> str:
    """All that a graph of a system depends on."""
    content = hashlib.sha256()
    for name, weight in body.state_dict().items():
        content.update(f"{name} {weight.dtype} {tuple(weight.shape)} ".encode())
        content.update(weight.detach().contiguous().numpy().tobytes())
    said = [
        source.model,
        type(body).__qualname__,
        json.dumps(source.config, sort_keys=True, default=str),
        {name: (x.dtype, x.shape, x.sum().item()) for name, x in source.inputs.items()},
        *(getattr(source, name) for name in DECIDING),
    ]
    content.update(repr(said).encode())
    return content.hexdigest()
