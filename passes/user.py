"""Passes that users write: a function in a file, of this IR or of onnx-graphsurgeon's.

    def rewrite(model: onnx_ir.Model) -> bool            # in place; whether it changed anything
    def rewrite(graph: gs.Graph) -> gs.Graph | None      # onnx_graphsurgeon as gs

The annotation of the first parameter tells them apart.  Both run as exact passes, so that
`--check-passes` holds them to that.
"""

import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from intaglio.errors import IntaglioError, MissingExtraError, PassError
from intaglio.graph_keys import FOLDED

from .base import Exact, Pass, PassResult
from .shapes import infer_shapes

GRAPH = "onnx_graphsurgeon"


def pass_from_file(path: Path, function: str, *, allow_code: bool) -> Pass:
    """The pass that `function` in the file `path` is.

    Raises:
        PassError: if its code was not allowed, or cannot be imported, or lacks the function.
    """
    if not allow_code:
        raise PassError(f"--pass {path} runs the code in that file; allow it with --allow-code.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PassError(f"--pass {path}: there is no such Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == GRAPH:
            raise MissingExtraError(f"--pass {path}", "graphsurgeon") from error
        raise PassError(f"--pass {path}: {error}.") from error
    except Exception as error:
        raise PassError(f"--pass {path} raised {type(error).__name__}: {error}") from error
    rewrite = getattr(module, function, None)
    if not callable(rewrite):
        raise PassError(f"--pass {path}:{function}: the file defines no such function.")
    details = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return pass_of(rewrite, f"{path.name}:{function}", details)


def pass_of(rewrite: Callable[..., Any], name: str, details: dict[str, Any] | None = None) -> Pass:
    """The pass that the function `rewrite` is, called `name` in records and messages."""
    surgeon = _takes_graphsurgeon(rewrite)

    class UserPass(Exact):
        """A rewrite of the user's own."""

        def rewrite(self, model: ir.Model) -> PassResult:
            """Call the function and say whether the graph is another one now."""
            try:
                changed = (_operate if surgeon else _rewrite)(rewrite, model)
            except IntaglioError:
                raise
            except Exception as error:
                raise PassError(
                    f"the pass {name!r} raised {type(error).__name__}: {error}"
                ) from error
            return PassResult(changed=changed, details=details or {})

    UserPass.name = name
    return UserPass()


def _takes_graphsurgeon(rewrite: Callable[..., Any]) -> bool:
    """Whether the first parameter is annotated as a graph of onnx-graphsurgeon."""
    try:
        parameter = next(iter(inspect.signature(rewrite).parameters.values()))
    except (StopIteration, ValueError, TypeError) as error:
        raise PassError(f"{rewrite!r} is no pass: it should take a graph.") from error
    kind = parameter.annotation
    if isinstance(kind, str):
        return kind.rpartition(".")[2] == "Graph" and not kind.startswith(("ir.", "onnx_ir."))
    return getattr(kind, "__module__", "").startswith(GRAPH)


def _rewrite(rewrite: Callable[[ir.Model], Any], model: ir.Model) -> bool:
    return bool(rewrite(model))


def _operate(rewrite: Callable[[Any], Any], model: ir.Model) -> bool:
    """Let `rewrite` work on a copy as onnx-graphsurgeon sees it, and take over its result.

    Names stay; what that library does not carry, the paths of modules above all, comes back by
    the names of nodes and weights.  Shapes of new values are found by running the graph.
    """
    try:
        import onnx_graphsurgeon as surgeon
    except ModuleNotFoundError as error:
        raise MissingExtraError("a pass of onnx-graphsurgeon", "graphsurgeon") from error
    before = ir.to_proto(model)
    graph = surgeon.import_onnx(before)
    returned = rewrite(graph)
    graph = graph if returned is None else returned
    if not isinstance(graph, surgeon.Graph):
        raise PassError(f"it returned {type(graph).__name__}; it should return the graph or None.")
    after = surgeon.export_onnx(graph, ir_version=before.ir_version)
    if _signature(after) == _signature(before):
        return False
    _take_over(model, ir.from_proto(after))
    return True


def _signature(proto: onnx.ModelProto) -> bytes:
    """What tells two graphs apart, beside what onnx-graphsurgeon drops anyway."""
    bare = onnx.GraphProto()
    bare.CopyFrom(proto.graph)
    bare.ClearField("value_info")
    bare.ClearField("name")
    bare.ClearField("doc_string")
    weights = sorted(bare.initializer, key=lambda tensor: tensor.name)
    for node in bare.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    texts = [node.SerializeToString(deterministic=True) for node in bare.node]
    texts += [value.name.encode() for value in (*bare.input, *bare.output)]
    texts += [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in weights]
    return b"\0".join([*texts, *(tensor.name.encode() for tensor in weights)])


def _take_over(model: ir.Model, other: ir.Model) -> None:
    """Put the graph of `other` in the place of that of `model`, with the latter's notes."""
    nodes = {node.name: node for node in model.graph if node.name}
    weights = model.graph.initializers
    for index, node in enumerate(other.graph):
        if not node.name:
            node.name = f"user_{node.op_type}_{index}"
        if node.name in nodes:
            node.metadata_props.update(nodes[node.name].metadata_props)
    for name, value in other.graph.initializers.items():
        # What the user added is no parameter of the source.
        kept = weights[name].metadata_props if name in weights else {FOLDED: "true"}
        value.metadata_props.update(kept)
    infer_shapes(other)
    model.graph = other.graph
