"""Every kernel on the GPU of this machine: against float64, and against what it competes with.

    python benchmarks/gpu_kernels.py [--quick] [--json]          or: make gpu

Needs a CUDA device, PyTorch and Triton; from the checkout alone, nothing has to be installed.
First each kernel computes the samples of its operator in fp32, fp16 and bf16, as Triton launches it
and, where `cuda-bindings` imports, as a plugin does: machine code compiled ahead of time, launched
through the driver with the arguments of its plan.  Then kernels are
timed beside their anchors where these import (cuBLAS, GemLite, flash-linear-attention), with the
same Triton: a CUDA graph of at least 64 launches that go round through copies of all buffers, four
times the L2 cache together, so that weights and states come from memory.  Absolute times are of the
device that the record names.  `--quick` leaves the timing out.
"""

import importlib.util
import math
import statistics
from collections.abc import Callable, Iterator

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
from intaglio.runtime.trt.kernels import Kernels  # noqa: E402
from intaglio.runtime.trt.launcher import Launcher  # noqa: E402
from intaglio.runtime.trt.plugin import workspace  # noqa: E402
from intaglio.trt_plugins import NAMES, find  # noqa: E402
from intaglio.trt_plugins.compile import compile_plugin  # noqa: E402
from intaglio.trt_plugins.plugin import Plugin  # noqa: E402
from intaglio.trt_plugins.run import bind, error_of, errors, request_of  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAUNCHES, REPLAYS, WARMUP = 64, 20, 3
CACHES = 4  # times the L2 cache that buffers take together

Call = Callable[[], object]


def measure(quick: bool) -> list[Row]:
    """Rows of errors, then of times."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here, or this PyTorch is built without CUDA.")
    rows = [*_errors(), *_launched()]
    return rows if quick else [*rows, *_times()]


def _errors() -> Iterator[Row]:
    sm = capability()
    for name in NAMES:
        plugin = find(name)
        for dtype in DTYPES:
            kind = str(dtype).removeprefix("torch.")
            limit = plugin.tolerance.get(kind)
            if limit is None:
                continue
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
            yield Row(name=f"{name}, {kind}: error", value=worst, unit="of the largest",
                      target=f"<= {limit:g}", holds=worst <= limit, against="float64",
                      note=note)  # fmt: skip


def _launched() -> Iterator[Row]:
    """What plugins launch in an engine, without the engine."""
    what = "machine code through the driver"
    try:
        importlib.import_module("cuda.bindings.driver")
    except ImportError:
        yield _absent(what, "cuda-bindings")
        return
    sm = capability()
    for name in NAMES:
        plugin = find(name)
        sample = on_device(next(s for s in plugin.op.samples(torch.float16) if _taken(plugin, s)))
        request, inputs = request_of(plugin, sample, sm)
        made = compile_plugin(plugin, request)
        code = {f"{sm}/{entry}": each.cubin for entry, each in made.code.items()}
        carried = Kernels(op=plugin.op.onnx_type, plans={sm: made.plan}, code=code)
        shapes = [None if x is None else tuple(x.shape) for x in inputs]
        outputs = [
            torch.full(
                [evaluate(size, shapes) for size in output.shape],
                torch.nan,
                dtype=getattr(torch, output.dtype),
                device="cuda",
            )
            for output in made.plan.outputs
        ]
        scratch = torch.empty(workspace(carried, shapes) + 1, dtype=torch.uint8, device="cuda")
        Launcher(carried).launch(
            shapes,
            [0 if x is None else x.data_ptr() for x in inputs],
            [x.data_ptr() for x in outputs],
            scratch.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        torch.cuda.synchronize()
        exact = {n: x.double() if _floats(x) else x for n, x in sample.items()}
        pairs = zip(outputs, plugin.op.reference(**exact), strict=True)
        worst = max(error_of(got, wanted) for got, wanted in pairs)
        limit = plugin.tolerance["float16"]
        yield Row(name=f"{name}, float16: {what}", value=worst, unit="of the largest",
                  target=f"<= {limit:g}", holds=worst <= limit, against="float64")  # fmt: skip


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


def _times() -> Iterator[Row]:
    yield from _decode(heads=32, batch=1, state=torch.float32, target=4.0)
    yield from _decode(heads=16, batch=128, state=torch.float32, target=75.0)
    yield from _decode(heads=16, batch=128, state=torch.bfloat16, target=40.0)
    yield from _prefill(tokens=8192, heads=8)
    if "affine_low_bit_mat_mul" in NAMES:
        for rows, columns, count, target in ((17408, 5120, 1, 10.0), (17408, 5120, 8, None)):
            yield from _low_bit(rows, columns, count, target)


def _decode(*, heads: int, batch: int, state: torch.dtype, target: float) -> Iterator[Row]:
    """A step of the gated delta rule, heads of 128x128, activations in bf16."""
    title = f"gated_delta step, {heads} heads 128x128, batch {batch}, {_short(state)} state"
    sample = gated_delta(batch, 1, heads, torch.bfloat16, state)
    traffic = 2 * sample["past_state"].nbytes
    ours = median(lambda: _ours("linear_attention", fresh(sample)), sample)
    yield _microseconds(title, ours, target, traffic)
    theirs = _fla("fused_recurrent_gated_delta_rule", sample, batch, 1, heads)
    if state is torch.float32 and theirs is not None:
        yield _against(title, ours, median(theirs, sample), "flash-linear-attention", None)


def _prefill(*, tokens: int, heads: int) -> Iterator[Row]:
    title = f"gated_delta prefill, {tokens} tokens, {heads} heads 128x128"
    sample = gated_delta(1, tokens, heads, torch.bfloat16, torch.float32)
    traffic = sum(x.nbytes for x in sample.values() if isinstance(x, Tensor))
    ours = median(lambda: _ours("linear_attention", fresh(sample)), sample)
    yield _microseconds(title, ours, None, traffic)
    theirs = _fla("chunk_gated_delta_rule", sample, 1, tokens, heads)
    if theirs is None:
        yield _absent(title, "flash-linear-attention")
    else:
        yield _against(title, ours, median(theirs, sample), "flash-linear-attention", 1.4)


def _low_bit(rows: int, columns: int, count: int, target: float | None) -> Iterator[Row]:
    """A product with weights of 2 bits in groups of 128, activations in fp16."""
    title = f"2-bit product {rows}x{columns}, groups of 128, {count} tokens"
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
    batch: int, time: int, heads: int, dtype: torch.dtype, state: torch.dtype
) -> Sample:
    """Arguments of the gated delta rule with heads of 128 keys and 128 values."""
    generator = torch.Generator(device="cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    keys = F.normalize(normal(batch, time, heads, 128), dim=-1).flatten(2)
    return {
        "query": normal(batch, time, heads * 128).to(dtype),
        "key": keys.to(dtype),
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


def _fla(name: str, sample: Sample, batch: int, time: int, heads: int) -> Callable[[], Call] | None:
    try:
        rules = importlib.import_module("fla.ops.gated_delta_rule")
    except ImportError:
        return None

    def make() -> Call:
        given = fresh(sample)
        q, k, v = (given[n].view(batch, time, heads, 128) for n in ("query", "key", "value"))
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
