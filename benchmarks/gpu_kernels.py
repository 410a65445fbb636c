"""Every kernel on the GPU of this machine: against float64, and against what it competes with.

    python benchmarks/gpu_kernels.py [--quick] [--json]          or: make gpu

Needs a CUDA device, PyTorch and Triton; from the checkout alone, nothing has to be installed.
First each kernel computes the samples of its operator in fp32, fp16 and bf16, as Triton launches it
and, where `cuda-bindings` imports, as plugins do, through the driver with the arguments of a plan:
machine code compiled ahead of time, which the `enqueue` of a plugin launches (called through the
bindings of TensorRT where these import), and the PTX of a quickly deployable plugin, one launch.
Then kernels are timed beside their anchors where these import (cuBLAS, GemLite,
flash-linear-attention), with the same Triton: a CUDA graph of at least 64 launches that go round
through copies of all buffers, four times the L2 cache together, so that weights and states come
from memory.  Absolute times are of the device that the record names.  What fails is a row that does
not hold, and the rest goes on.  `--quick` leaves the timing out.
"""

import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import checkout

checkout.use_checkout()
for needed in ("torch", "triton"):
    if importlib.util.find_spec(needed) is None:
        raise SystemExit(f"This Python has no {needed}: say which has, make gpu PYTHON=...")

import torch  # noqa: E402
from evidence import Row, run  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from intaglio.errors import UnsupportedError  # noqa: E402
from intaglio.ops.op import Sample  # noqa: E402
from intaglio.runtime.launch import evaluate  # noqa: E402
from intaglio.runtime.trt.generic_plugin import register, workspace  # noqa: E402
from intaglio.runtime.trt.kernels import NodeKernels  # noqa: E402
from intaglio.runtime.trt.launcher import Launcher  # noqa: E402
from intaglio.trt_plugins import NAMES, find  # noqa: E402
from intaglio.trt_plugins.compile_plugin import compile_plugin  # noqa: E402
from intaglio.trt_plugins.launch_torch import bind, error_of, errors, request_of  # noqa: E402
from intaglio.trt_plugins.plugin import Plugin  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAUNCHES, REPLAYS, WARMUP = 64, 20, 3
CACHES = 4  # times the L2 cache that buffers take together

Call = Callable[[], object]
Part = tuple[str, Callable[[], Iterator[Row]]]  # a title, and what measures


def measure(quick: bool) -> list[Row]:
    """Rows of errors, then of times."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here, or this PyTorch is built without CUDA.")
    parts = [*_errors(), *_launched(), *([] if quick else _times())]
    return [row for title, part in parts for row in _rows(title, part)]


def _rows(title: str, part: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a part, and one for what ends it early."""
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other parts are measured
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        yield Row(name=f"{title}: fails", value=0.0, unit="", target="runs", holds=False, note=said)


def _errors() -> Iterator[Part]:
    for name in NAMES:
        for dtype in DTYPES:
            kind = str(dtype).removeprefix("torch.")
            if kind in find(name).tolerance:
                yield f"{name}, {kind}", partial(_error, name, dtype, kind)


def _error(name: str, dtype: torch.dtype, kind: str) -> Iterator[Row]:
    plugin, sm = find(name), capability()
    samples = [on_device(sample) for sample in plugin.op.samples(dtype)]
    worst, refused = 0.0, 0
    for sample in samples:
        try:
            found = errors(plugin, sample, sm)
        except UnsupportedError:
            refused += 1
            continue
        worst = max(worst, *(error for way in found for error in way))
    note = f"{len(samples) - refused} samples" + (f", {refused} refused" * bool(refused))
    yield _held(f"{name}, {kind}: error", worst, plugin.tolerance[kind], note)


def _launched() -> Iterator[Part]:
    """What plugins launch in an engine, without the engine."""
    if importlib.util.find_spec("cuda") is None:
        yield "plugins", lambda: iter([_absent("launches of plugins", "cuda-bindings")])
        return
    for name in NAMES:
        yield f"{name}, machine code", partial(_enqueued, name)
        yield f"{name}, PTX", partial(_quick, name)


def _enqueued(name: str) -> Iterator[Row]:
    """A plugin's `enqueue`: machine code, any number of launches."""
    plugin, sm = find(name), capability()
    sample = _sample(plugin)
    request, inputs = request_of(plugin, sample, sm)
    made = compile_plugin(plugin, request)
    code = {f"{sm}/{entry}": each.cubin for entry, each in made.code.items()}
    kernels = NodeKernels(op=plugin.op.onnx_type, plans={sm: made.plan}, code=code)
    flavour = next((m for m in ("tensorrt", "tensorrt_rtx") if importlib.util.find_spec(m)), None)
    what = "enqueue" if flavour else "enqueue, without TensorRT"
    worst = _worst(plugin, sample, inputs, kernels, flavour)
    yield _held(f"{name}, float16: {what}", worst, plugin.tolerance["float16"])


def _quick(name: str) -> Iterator[Row]:
    """What a quickly deployable plugin hands to TensorRT: PTX, one launch."""
    plugin, sm = find(name), capability()
    sample = _sample(plugin)
    request, inputs = request_of(plugin, sample, sm)
    made = compile_plugin(plugin, replace(request, alone=True))
    code = {f"{sm}/{entry}": each.ptx.encode() + b"\0" for entry, each in made.code.items()}
    for index, variant in enumerate(made.plan.variants):
        if len(variant.launches) == 1:
            plan = replace(made.plan, variants=(replace(variant, when=None),))
            kernels = NodeKernels(op=plugin.op.onnx_type, plans={sm: plan}, code=code)
            worst = _worst(plugin, sample, inputs, kernels, None)
            title = f"{name}, float16: PTX, tactic {index + 1}"
            yield _held(title, worst, plugin.tolerance["float16"])


def _sample(plugin: Plugin) -> Sample:
    """The first sample of an operator in fp16 that there are kernels for."""
    samples = plugin.op.samples(torch.float16)
    return on_device(next(sample for sample in samples if _taken(plugin, sample)))


def _worst(
    plugin: Plugin,
    sample: Sample,
    inputs: Sequence[Tensor | None],
    kernels: NodeKernels,
    flavour: str | None,
) -> float:
    """The error of what kernels compute that are launched through the driver.

    With a flavour of TensorRT, its bindings call the plugin's own `enqueue`.
    """
    shapes = [None if x is None else tuple(x.shape) for x in inputs]
    outputs = [
        torch.full(
            [evaluate(size, shapes) for size in output.shape],
            torch.nan,
            dtype=getattr(torch, output.dtype),
            device="cuda",
        )
        for output in kernels.plan.outputs
    ]
    scratch = torch.empty(workspace(kernels, shapes) + 1, dtype=torch.uint8, device="cuda")
    to = [x.data_ptr() for x in outputs]
    stream = torch.cuda.current_stream().cuda_stream
    if flavour is None:
        given = [None if x is None else x.data_ptr() for x in inputs]
        Launcher(kernels).launch(shapes, given, to, scratch.data_ptr(), stream)
    else:
        trt = importlib.import_module(flavour)
        (creator,) = register(trt, {"node": kernels}, [kernels.op])
        phase, fields = trt.TensorRTPhase.BUILD, trt.PluginFieldCollection([])
        made = creator.create_plugin("node", fields, phase).attach_to_context(None)
        present = [x for x in inputs if x is not None]
        described = [SimpleNamespace(dims=tuple(x.shape)) for x in present]
        addresses = [x.data_ptr() for x in present]
        made.enqueue(described, [], addresses, to, scratch.data_ptr(), stream)
    torch.cuda.synchronize()
    exact = {n: x.double() if _floats(x) else x for n, x in sample.items()}
    pairs = zip(outputs, plugin.op.reference(**exact), strict=True)
    return max(error_of(got, wanted) for got, wanted in pairs)


def _held(title: str, worst: float, limit: float, note: str = "") -> Row:
    return Row(name=title, value=worst, unit="of the largest", target=f"<= {limit:g}",
               holds=worst <= limit, against="float64", note=note)  # fmt: skip


def _floats(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _taken(plugin: Plugin, sample: Sample) -> bool:
    """Whether there are kernels for a sample."""
    try:
        request, _ = request_of(plugin, sample, capability())
        plugin.kernels(request)
    except UnsupportedError:
        return False
    return True


def capability() -> int:
    """The compute capability of the device, 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability()
    return major * 10 + minor


def on_device(sample: Sample) -> Sample:
    """The sample with its tensors on the GPU."""
    return {name: x.cuda() if isinstance(x, Tensor) else x for name, x in sample.items()}


def _times() -> Iterator[Part]:
    single, half = torch.float32, torch.bfloat16
    for heads, batch, state, target in ((32, 1, single, 4.0), (16, 128, single, 75.0),
                                        (16, 128, half, 40.0)):  # fmt: skip
        title = f"gated_delta step, {heads} heads 128x128, batch {batch}, {_short(state)} state"
        yield title, partial(_decode, title, heads, batch, state, target)
    title = "gated_delta prefill, 8192 tokens, 2 query-key and 8 value heads of 128"
    yield title, partial(_prefill, title, tokens=8192, keys=2, heads=8)
    for rows, columns, count, limit in ((17408, 5120, 1, 10.0), (17408, 5120, 8, None)):
        title = f"2-bit product {rows}x{columns}, groups of 128, {count} tokens"
        yield title, partial(_low_bit, title, rows, columns, count, limit)


def _decode(title: str, heads: int, batch: int, state: torch.dtype, target: float) -> Iterator[Row]:
    """A step of the gated delta rule, activations in bf16."""
    sample = gated_delta(batch, 1, heads, torch.bfloat16, state)
    traffic = 2 * sample["past_state"].nbytes
    ours = median(lambda: _ours("linear_attention", fresh(sample)), sample)
    yield _microseconds(title, ours, target, traffic)
    theirs = _fla("fused_recurrent_gated_delta_rule", sample, heads)
    if state is torch.float32 and theirs is not None:
        yield _against(title, ours, median(theirs, sample), "flash-linear-attention", None)


def _prefill(title: str, *, tokens: int, keys: int, heads: int) -> Iterator[Row]:
    """A prompt whose heads of values share those of queries and keys, which ours has repeated."""
    sample = gated_delta(1, tokens, heads, torch.bfloat16, torch.float32, keys)
    traffic = sum(x.nbytes for x in sample.values() if isinstance(x, Tensor))
    ours = median(lambda: _ours("linear_attention", fresh(sample)), sample)
    yield _microseconds(title, ours, None, traffic)
    theirs = _fla("chunk_gated_delta_rule", sample, keys)
    if theirs is None:
        yield _absent(title, "flash-linear-attention")
    else:
        yield _against(title, ours, median(theirs, sample), "flash-linear-attention", 1.4)


def _low_bit(
    title: str, rows: int, columns: int, count: int, target: float | None
) -> Iterator[Row]:
    """A product with weights of 2 bits in groups of 128, activations in fp16."""
    group = 128
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float16)

    codes = torch.randint(256, (rows, columns // group, group // 4), generator=generator,
                          device="cuda", dtype=torch.uint8)  # fmt: skip
    shape = (rows, columns // group)
    sample: Sample = {
        "input": normal(1, count, columns),
        "codes": codes,
        "scale": normal(*shape) / 64,
        "offset": normal(*shape) / 64,
        "K": columns,
        "N": rows,
        "bits": 2,
        "group": group,
    }
    ours = median(lambda: _ours("affine_low_bit_mat_mul", fresh(sample)), sample)
    yield _microseconds(title, ours, target, codes.nbytes + 2 * sample["scale"].nbytes)
    weight = normal(rows, columns)
    dense = {"input": sample["input"], "weight": weight}

    def cublas() -> Call:
        x, w = fresh(dense).values()
        return lambda: F.linear(x, w)

    least = 4.0 if count == 1 else None
    yield _against(title, ours, median(cublas, dense), "cuBLAS fp16", least)
    gemlite = _gemlite(sample)
    if gemlite is None:
        yield _absent(title, "GemLite")
    else:
        yield _against(title, ours, median(gemlite, sample), "GemLite", 1.5)


def gated_delta(
    batch: int,
    time: int,
    heads: int,
    dtype: torch.dtype,
    state: torch.dtype,
    keys: int | None = None,
) -> Sample:
    """Arguments of the gated delta rule with heads of 128 keys and 128 values.

    With fewer heads of `keys` than of values, each is repeated for those that share it.
    """
    kinds = keys or heads
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    def shared(x: Tensor) -> Tensor:
        return x.repeat_interleave(heads // kinds, 2).flatten(2).to(dtype)

    return {
        "query": shared(normal(batch, time, kinds, 128)),
        "key": shared(F.normalize(normal(batch, time, kinds, 128), dim=-1)),
        "value": normal(batch, time, heads * 128).to(dtype),
        "past_state": normal(batch, heads, 128, 128).to(state),
        "decay": F.logsigmoid(4 + normal(batch, time, heads)).to(dtype),
        "beta": normal(batch, time, heads).sigmoid().to(dtype),
        "update_rule": "gated_delta",
        "q_num_heads": heads,
        "kv_num_heads": heads,
    }


def fresh(sample: Sample) -> Sample:
    """The sample with copies of its tensors."""
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in sample.items()}


def _ours(name: str, sample: Sample) -> Call:
    plugin = find(name)
    request, inputs = request_of(plugin, sample, capability())
    call, _ = bind(plugin.kernels(request), inputs)
    return call


def _fla(name: str, sample: Sample, keys: int) -> Callable[[], Call] | None:
    """A rule of flash-linear-attention, which shares `keys` heads of queries and keys itself."""
    try:
        rules = importlib.import_module("fla.ops.gated_delta_rule")
    except ImportError:
        return None

    def make() -> Call:
        given = fresh(sample)
        q, k, v = (torch.unflatten(given[n], -1, (-1, 128)) for n in ("query", "key", "value"))
        q, k = (x[:, :, :: x.shape[2] // keys].contiguous() for x in (q, k))
        rest = {"g": given["decay"].float(), "beta": given["beta"]}
        start = given["past_state"].float()
        return lambda: getattr(rules, name)(
            q, k, v, **rest, initial_state=start, output_final_state=True
        )

    return make


def _gemlite(sample: Sample) -> Callable[[], Call] | None:
    try:
        core = importlib.import_module("gemlite.core")
    except ImportError:
        return None
    from intaglio.ops import unpack_codes

    codes = unpack_codes(sample["codes"].cpu().numpy(), sample["K"], 2, sample["group"])
    unsigned = torch.from_numpy(codes).cuda() + 2

    def make() -> Call:
        layer = core.GemLiteLinear(2, group_size=sample["group"], in_features=sample["K"],
                              out_features=sample["N"], input_dtype=core.DType.FP16,
                              output_dtype=core.DType.FP16)  # fmt: skip
        zeros = 2 - sample["offset"] / sample["scale"]
        layer.pack(unsigned.to(torch.uint8), sample["scale"].clone(), zeros, bias=None)
        x = sample["input"][0].clone()
        return lambda: layer(x)

    return make


def median(make: Callable[[], Call], sample: Sample) -> float:
    """Microseconds of a call, each on copies of its own that no cache still holds."""
    size = sum(x.nbytes for x in sample.values() if isinstance(x, Tensor))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    copies = max(2, math.ceil(CACHES * cache / size))
    calls = [make() for _ in range(copies)]
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for call in calls[:WARMUP]:
            call()
    torch.cuda.synchronize()
    count = max(LAUNCHES, copies)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(count):
            calls[index % copies]()
    times: list[float] = []
    for index in range(REPLAYS + WARMUP):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if index >= WARMUP:
            times.append(1e3 * start.elapsed_time(end) / count)
    return statistics.median(times)


def _microseconds(title: str, value: float, target: float | None, traffic: int) -> Row:
    speed = traffic / value / 1e6
    return Row(
        name=title,
        value=value,
        unit=f"us on {torch.cuda.get_device_name()}",
        target=None if target is None else f"<= {target:g}",
        holds=None if target is None else value <= target,
        note=f"{speed:.2f} TB/s of weights or state",
    )


def _against(title: str, ours: float, theirs: float, who: str, least: float | None) -> Row:
    value = theirs / ours
    return Row(
        name=title,
        value=value,
        unit="times the speed",
        target=None if least is None else f">= {least:g}",
        holds=None if least is None else value >= least,
        against=who,
        note=f"{theirs:.1f} us",
    )


def _absent(title: str, who: str) -> Row:
    return Row(name=title, value=0.0, unit="", against=who, note="not installed, not compared")


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


if __name__ == "__main__":
    run(__doc__, measure)
