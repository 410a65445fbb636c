"""The child that builds: a request as JSON on stdin, progress and the answer as lines of it."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from intaglio.errors import IntaglioError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.protobuf import raw_fields
from intaglio.runtime.trt import flavour as flavours
from intaglio.runtime.trt import kernels as kernel_files
from intaglio.runtime.trt import plugin
from intaglio.runtime.trt.build import GRAPH

FUNCTIONS = 25  # the field of a ModelProto


class RefusedError(Exception):
    """What TensorRT says of the nodes that it refuses."""

    def __init__(self, faults: list[dict[str, str]]) -> None:
        super().__init__(str(faults))
        self.faults = faults


def main() -> None:
    """Answer one request."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a builder prints is no answer

    def tell(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    request = json.loads(sys.stdin.read())
    try:
        tell({"built": _build(request, tell)})
    except RefusedError as error:
        tell({"refused": error.faults})
    except IntaglioError as error:
        tell({"refused": [{"node": "", "op": "", "said": str(error)}]})


def _build(request: Mapping[str, Any], tell: Any) -> dict[str, Any]:
    start = time.perf_counter()
    trt = flavours.load(request["flavour"])
    bundle = Bundle.open(request["root"])
    kernels = kernel_files.read(bundle)
    logger = _logger(trt)
    kept = plugin.register(trt, kernels, sorted({each.op for each in kernels.values()}))
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # External weights lie relative to the bundle, whatever folder the graph is in.
    if not parser.parse(_without_bodies(bundle.read(GRAPH)), str(bundle.root / "model.onnx")):
        raise RefusedError(list(_faults(parser)))
    _decompose(trt, network)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor = _monitor(trt, tell)
    for entry in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in entry["shapes"].items():
            profile.set_shape(name, *map(tuple, shapes))
        config.add_optimization_profile(profile)
    targets = request["capabilities"] or kernel_files.capabilities(list(kernels.values()))
    if request["flavour"] == "rtx":
        targets = [
            sm for sm in targets or flavours.RTX_CAPABILITIES if sm in flavours.RTX_CAPABILITIES
        ]
        config.num_compute_capabilities = len(targets)
        for index, sm in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = logger.errors[-1:] or ["it found no implementation of the network"]
        raise RefusedError([{"node": "", "op": "", "said": said[0]}])
    Path(request["out"]).write_bytes(plan)
    del kept, monitor
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return {
        "flavour": request["flavour"],
        "version": trt.__version__,
        "capabilities": list(targets),
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
        "bytes": plan.nbytes,
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


def _faults(parser: Any) -> Iterator[dict[str, str]]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        yield {
            "node": error.node_name(),
            "op": error.node_operator(),
            "said": " ".join(error.desc().split()),
        }


def _decompose(trt: Any, network: Any) -> None:
    """Let attention be built of other layers where no kernel fits its heads or its dtype."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if _kind(layer) == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what is wrong; the rest is not shown."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and "CUDA driver" not in message:
                self.errors.append(message)

    return Logger()


def _monitor(trt: Any, tell: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes on how far the builder is in its outermost phases."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[name] = steps
                tell({"progress": [name, 0.0]})

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.steps:
                tell({"progress": [name, (step + 1) / max(self.steps[name], 1)]})
            return True

        def phase_finish(self, name: str) -> None:
            self.steps.pop(name, None)

    return Monitor()


if __name__ == "__main__":
    main()
