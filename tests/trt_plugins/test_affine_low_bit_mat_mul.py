"""AffineLowBitMatMul's kernels equal the operator in float64: every way, group and tail."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import UnsupportedError
from intaglio.ops._low_bit_packing import dequantize_tensor, groups_of, pack_codes
from intaglio.ops.op import Sample
from intaglio.runtime.launch import evaluate
from intaglio.trt_plugins._low_bit_kernels import dequantize
from intaglio.trt_plugins.affine_low_bit_mat_mul import PLUGIN, kernels, prepare
from intaglio.trt_plugins.launch_torch import describe, run
from intaglio.trt_plugins.plugin import Array, Input, Request

Check = Callable[..., None]
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
TURING = 75  # multiplies few rows of any dtype without tensor cores


def draw(
    rows: tuple[int, ...] = (3,),
    N: int = 70,
    K: int = 192,
    group: int = 64,
    *,
    dtype: torch.dtype = SINGLE,
    without: tuple[str, ...] = (),
) -> Sample:
    """Random arguments; scales of either sign, those of every fifth row almost 0."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    codes = torch.randint(-2, 2, (N, K), generator=generator, dtype=torch.int8)
    scale = normal(N, groups_of(K, group))
    scale[::5] *= 1e-6
    sample: Sample = {
        "input": (normal(*rows, K) + 0.5).to(dtype),
        "codes": torch.from_numpy(pack_codes(codes.numpy(), 2, group)),
        "scale": scale.to(dtype),
        "offset": normal(N, groups_of(K, group)).to(dtype),
        "bias": normal(N).to(dtype),
    }
    kept = {name: x for name, x in sample.items() if name not in without}
    return kept | {"K": K, "N": N, "bits": 2, "group": group}


def asked(sm: int = 90, **changed: int) -> Request:
    """A request for [1, 70, 128] fp16 by a weight [64, 128]."""
    attributes = {"K": 128, "N": 64, "bits": 2, "group": 64} | changed
    inputs = {
        "input": Input("float16", (1, None, 128)),
        "words": Input("int32", (64, 1, 8)),
        "scale": Input("float16", (2, 64)),
        "offset": Input("float16", (2, 64)),
    }
    return Request(attributes=attributes, inputs=inputs, sm=sm)


@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
def test_the_samples_of_the_operator(check: Check, dtype: torch.dtype) -> None:
    """Groups of two planes, and one group narrower than a block."""
    for sample in PLUGIN.op.samples(dtype):
        if sample["bits"] == 2:
            check(PLUGIN, sample)


@pytest.mark.parametrize("rows", [(), (0,), (1,), (2, 4), (9,), (40,), (1, 70)])
@pytest.mark.parametrize("dtype", [SINGLE, HALF, BRAIN])
def test_any_number_of_rows(check: Check, rows: tuple[int, ...], dtype: torch.dtype) -> None:
    """All ways, though each is meant for some numbers; columns and rows that no tile divides."""
    one_by_one = dtype == SINGLE and max((*rows, 0)) > 9  # is slow here, and takes them all alike
    check(PLUGIN, draw(rows, dtype=dtype), ways=[1] if one_by_one else None)


@pytest.mark.parametrize("group", [16, 32, 64, 96, 128, 256, 300])
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_any_group(check: Check, group: int, dtype: torch.dtype) -> None:
    """Parts of a block, multiples of one, of none, and one group per row; a short last group."""
    check(PLUGIN, draw(K=300, group=group, dtype=dtype))


@pytest.mark.parametrize("without", [("offset",), ("bias",), ("offset", "bias")])
def test_what_may_be_absent(check: Check, without: tuple[str, ...]) -> None:
    """Neither an offset nor a bias is needed."""
    check(PLUGIN, draw(dtype=HALF, without=without))
    check(PLUGIN, draw(without=without))


@pytest.mark.parametrize(("K", "group"), [(200, 16), (201, 128)])
def test_half_precision_without_tensor_cores(check: Check, K: int, group: int) -> None:
    """Two inputs are one load where rows are aligned, and two where they are not."""
    check(PLUGIN, draw((3,), K=K, group=group, dtype=HALF), sm=TURING)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_tensor_cores_may_be_left_out_for_one_row(
    check: Check, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is faster is for a GPU to say."""
    monkeypatch.setattr("intaglio.trt_plugins.affine_low_bit_mat_mul.GEMV_ROWS", 1)
    assert [len(kernels(asked(sm)).ways) for sm in (TURING, 90)] == [2, 4]
    check(PLUGIN, draw((1,), dtype=dtype), ways=[0])


@pytest.mark.parametrize(("dtype", "without"), [(SINGLE, ("bias",)), (HALF, ())])
def test_parts_of_columns_are_added(
    check: Check, dtype: torch.dtype, without: tuple[str, ...]
) -> None:
    """Three parts, the last of them shorter; a group reaches from one into the next."""
    sample = draw((2,), N=140, K=1664, group=256, dtype=dtype, without=without)
    (first, *_) = kernels(request_of(sample)).ways
    assert [kernel.grid[2] for kernel in first.kernels] == [3 if dtype == HALF else 2, 1]
    check(PLUGIN, sample)


def request_of(sample: Sample) -> Request:
    """The request for a sample on compute capability 9.0."""
    attributes = PLUGIN.op.attributes(sample)
    inputs = {name: describe(x) for name, x in prepared(sample).items()}
    return Request(attributes=attributes, inputs=inputs, sm=90)


def prepared(sample: Sample) -> dict[str, Tensor]:
    """What kernels read."""
    arrays = {name: x.numpy() for name, x in sample.items() if isinstance(x, Tensor)}
    made = prepare(arrays, PLUGIN.op.attributes(sample))
    return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in made.items()}


@pytest.mark.parametrize("sm", [TURING, 90])
@pytest.mark.parametrize("group", [32, 128])
def test_whole_numbers_are_multiplied_exactly(sm: int, group: int) -> None:
    """Subnormals, mantissas and what corrects them lose nothing: sums of codes are whole."""
    sample = draw((8,), K=256, group=group, dtype=HALF, without=("bias", "offset"))
    sample["input"] = sample["input"].mul(4).round()
    sample["scale"] = torch.ones_like(sample["scale"])
    (wanted,) = PLUGIN.op.reference(**sample)
    inputs = prepared(sample)
    request = Request(
        attributes=PLUGIN.op.attributes(sample),
        inputs={name: describe(x) for name, x in inputs.items()},
        sm=sm,
    )
    made = kernels(request)
    for way in made.ways:
        only = type(made)(outputs=made.outputs, ways=[type(way)(**{**vars(way), "when": None})])
        (found,) = run(only, [inputs.get(name) for name in PLUGIN.inputs])
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("K", "group"), [(128, 16), (300, 64), (300, 300), (384, 96)])
def test_words_hold_the_codes(K: int, group: int) -> None:
    """Bits 2i and 2i + 1 of word j of a block are those of column 16i + j."""
    codes = np.random.default_rng(0).integers(-2, 2, (9, K), np.int8)
    scale = np.ones((9, groups_of(K, group)), np.float16)
    packed: dict[str, Array] = {"codes": pack_codes(codes, 2, group), "scale": scale}
    words = prepare(packed, {"K": K, "N": 9, "bits": 2, "group": group})["words"].view("<u2")

    for k in range(K):
        block, column = divmod(k, 128)
        unsigned = (words[:, block, column % 16] >> (2 * (column // 16))) & 3
        assert (unsigned == codes[:, k] + 2).all()
    assert words.nbytes == 9 * groups_of(K, 128) * 32


@pytest.mark.parametrize(("K", "group"), [(200, 16), (200, 64), (300, 128), (300, 300)])
def test_the_weight_is_written_out(K: int, group: int) -> None:
    """For a GEMM of the engine's own: every element, rounded once."""
    sample = draw(N=70, K=K, group=group, dtype=HALF)
    inputs, request = prepared(sample), request_of(sample)
    (write, _) = kernels(request).ways[-1].kernels
    weight = torch.full((70, K), torch.nan, dtype=HALF)
    assert write.function is dequantize
    read = [inputs[name] for name in ("words", "scale", "offset")]
    dequantize[write.grid](*read, weight, **write.constants)

    parts = [sample[name] for name in ("codes", "scale", "offset")]
    exact = dequantize_tensor(parts[0], *(x.double() for x in parts[1:]), K=K, bits=2, group=group)
    assert torch.equal(weight, exact.float().to(HALF))


@pytest.mark.parametrize(
    ("rows", "sm", "wanted"),
    [(1, 90, 0), (8, 90, 0), (9, 90, 1), (64, 90, 1), (65, 90, 2), (8, 75, 0), (9, 75, 1)],
)
def test_ways_are_chosen_by_rows(rows: int, sm: int, wanted: int) -> None:
    """Few rows by the codes, many by the weight written out."""
    ways = kernels(asked(sm)).ways
    chosen = [way.when is None or bool(evaluate(way.when, [(1, rows, 128)])) for way in ways]
    assert chosen.index(True) == wanted


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 4}, "weights of 4 bits; kernels take 2: TensorRT's own MatMulNBits"),
        ({"bits": 3}, "weights of 3 bits; kernels take 2: none are written"),
        ({"group": 24}, "groups of 24 columns; kernels take multiples of 16"),
    ],
)
def test_what_no_kernel_fits_is_told(changed: dict[str, int], message: str) -> None:
    """Other bits, and groups that end within a plane, at the request and before."""
    with pytest.raises(UnsupportedError, match=message):
        kernels(asked(**changed))
    with pytest.raises(UnsupportedError, match=message):
        prepare({}, asked(**changed).attributes)


def test_bf16_needs_an_architecture_that_has_it() -> None:
    """Turing has none."""
    brain = {"input": Input("bfloat16", (None, 128)), "words": Input("int32", (64, 1, 8))}
    request = Request(attributes=asked().attributes, inputs=brain, sm=TURING)
    with pytest.raises(UnsupportedError, match="input is bfloat16; compute capability 75"):
        kernels(request)
