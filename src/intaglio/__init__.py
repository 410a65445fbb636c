"""intaglio: engrave a trained PyTorch model onto an edge engine.

`export`, `verify` and `profile` do what the commands of these names do.  The first two need the
extra ``export``, while `profile` and `intaglio.runtime` need nothing beyond the package.

    intaglio.export(module, "bundle/", axes="x:batchxtimex8")  # a module in memory, or a path
    session = intaglio.runtime.Session.load("bundle/")  # after `import intaglio.runtime`
    outputs = session.step({"x": array})  # by name, [batch, time, 8]

`Graph` is one graph of a bundle that has several, `get_include` the folder of the header for C++.
"""

import importlib
from typing import TYPE_CHECKING, Any

from intaglio.errors import MissingExtraError
from intaglio.version import __version__ as __version__

if TYPE_CHECKING:
    from intaglio.exporter.export import export as export
    from intaglio.exporter.proving.verify import verify as verify
    from intaglio.graphs import Graph as Graph
    from intaglio.profiling import profile as profile
    from intaglio.runtime.headers import get_include as get_include

_FACADE = {
    "Graph": "intaglio.graphs",
    "export": "intaglio.exporter.export",
    "get_include": "intaglio.runtime.headers",
    "profile": "intaglio.profiling",
    "verify": "intaglio.exporter.proving.verify",
}
_EXTRA = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"}


def __getattr__(name: str) -> Any:
    """Import the exporter when it is first asked for."""
    if name not in _FACADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_FACADE[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise MissingExtraError(f"intaglio.{name}", "export") from error


def __dir__() -> list[str]:
    """The names that are meant for others."""
    return sorted(["__version__", *_FACADE])
