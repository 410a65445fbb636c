"""The child that builds an engine: see `build.py`."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from intaglio.errors import BuildError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.child_worker import Progress, serve
from intaglio.runtime.onnx_graph import read_graph
from intaglio.runtime.protobuf import raw_fields
from intaglio.runtime.trt import flavour as flavours
from intaglio.runtime.trt import generic_plugin
from intaglio.runtime.trt import kernels as kernel_files
from intaglio.runtime.trt.engine_build import TARGET
from intaglio.runtime.trt.log import logger

FUNCTIONS = 25  # the field of a ModelProto


def build(
    root: str, graph: str, out: str, request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Build the engine of a graph of the bundle at `root` into the file `out`; what it is.

    Raises:
        BuildError: if TensorRT refuses a node, which is named, or finds no implementation.
        BundleError: if a file of the bundle is absent or changed.
    """
    start = time.perf_counter()
    trt = flavours.load(request["flavour"])
    source = Bundle.open(root).graph(graph)
    bundle, path = source.bundle, source.target(TARGET).path
    kernels = kernel_files.read(source)
    log = logger(trt)
    kept = generic_plugin.register(trt, kernels, sorted({each.op for each in kernels.values()}))
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # External weights lie relative to the bundle, whatever folder the graph is in.
    if not parser.parse(_without_bodies(bundle.read(path)), str(bundle.root / "model.onnx")):
        modules = {node.name: node.module for node in read_graph(source, TARGET).nodes}
        raise BuildError(f"TensorRT refuses the graph. {' '.join(_faults(parser, modules))}")
    _decompose(trt, network)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor = _monitor(trt, progress)
    flavours.configure(trt, config, request["flavour"], request["capabilities"])
    for entry in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in entry["shapes"].items():
            profile.set_shape(name, *map(tuple, shapes))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = log.complaint("it found no implementation of the network")
        raise BuildError(f"TensorRT builds no engine of the graph: {said}.")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    content = bytes(plan)
    for layer in layers:
        if layer.name in kernels and not kernels[layer.name].lie_in(content):
            raise BuildError(f"TensorRT left the code of {layer.name!r} out of the engine.")
    Path(out).write_bytes(content)
    del kept, monitor
    return {
        "flavour": request["flavour"],
        "version": trt.__version__,
        "capabilities": request["capabilities"],
        "profiles": request["profiles"],
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": [
            {
                "name": layer.name,
                "kind": _kind(layer),
                "plugin": kernels[layer.name].op if layer.name in kernels else "",
            }
            for layer in layers
        ],
        "bytes": len(content),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _without_bodies(content: bytes) -> bytes:
    """A model without its functions, so that their nodes become plugins instead of loops."""
    kept = [part for number, part in raw_fields(memoryview(content)) if number != FUNCTIONS]
    return b"".join(kept)


def _kind(layer: Any) -> str:
    return str(layer.type).rpartition(".")[2]


def _tensor(tensor: Any) -> dict[str, Any]:
    dtype = str(tensor.dtype).rpartition(".")[2]
    return {"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape)}


def _faults(parser: Any, modules: Mapping[str, str]) -> Iterator[str]:
    """What TensorRT says of each node that it refuses, the path of its module first."""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, said = error.node_name(), " ".join(error.desc().split())
        where = modules.get(node) or "the model"
        yield f"{where}: {error.node_operator()} {node!r}: {said}"


def _decompose(trt: Any, network: Any) -> None:
    """Let attention be built of other layers where no kernel fits its heads or its dtype."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if _kind(layer) == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on how far the builder is in its outermost phases."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[name] = steps
                progress(name, 0.0)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.steps:
                progress(name, (step + 1) / max(self.steps[name], 1))
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


if __name__ == "__main__":
    serve({"build": build})
