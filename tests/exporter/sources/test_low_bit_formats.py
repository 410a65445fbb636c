"""What each format's `read` takes from bytes is what the format says they mean, and goes back.

The meaning is written out here bit by bit, from the formats' own descriptions.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.exporter.sources.low_bit_formats import StoredWeight, stored_weight, take
from intaglio.exporter.sources.low_bit_formats.awq import write as write_awq
from intaglio.exporter.sources.low_bit_formats.decoupleq import write as write_decoupleq
from intaglio.exporter.sources.low_bit_formats.gptq import read as read_gptq
from intaglio.exporter.sources.low_bit_formats.gptq import write as write_gptq
from intaglio.exporter.sources.low_bit_formats.hqq import read as read_hqq
from intaglio.exporter.sources.low_bit_formats.hqq import write as write_hqq

N, K, GROUP = 32, 64, 16
Meaning = Callable[[Mapping[str, Tensor]], npt.NDArray[np.float32]]
Tensors = dict[str, Tensor]


def drawn(shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + high)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def words(*shape: int) -> Tensor:
    """Any bits at all, the highest ones too."""
    return drawn(shape, -(2**31), 2**31, torch.int32)


def scales(*shape: int) -> Tensor:
    return (drawn(shape, 1, 500, torch.float32) / 4096).half()


def stream(line: Tensor, index: int, bits: int) -> int:
    """Value `index` of a stream over 32-bit words, lowest bits first."""
    whole: int = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(line))
    found: int = (whole >> (index * bits)) % 2**bits
    return found


def gptq_tensors(bits: int, *, shuffled: bool = False) -> Tensors:
    index = torch.arange(K, dtype=torch.int32) // GROUP
    return {
        "qweight": words(K * bits // 32, N),
        "qzeros": words(K // GROUP, N * bits // 32),
        "scales": scales(K // GROUP, N),
        "g_idx": index[torch.randperm(K, generator=torch.Generator().manual_seed(0))]
        if shuffled
        else index,
    }


def gptq_weight(t: Mapping[str, Tensor], bits: int, added: int) -> npt.NDArray[np.float32]:
    found = np.zeros((N, K), np.float32)
    for n in range(N):
        for k in range(K):
            group = int(t["g_idx"][k])
            zero = (stream(t["qzeros"][group], n, bits) + added) % 2**bits
            found[n, k] = float(t["scales"][group, n]) * (
                stream(t["qweight"][:, n], k, bits) - zero
            )
    return found


def awq_tensors() -> Tensors:
    return {
        "qweight": words(K, N // 8),
        "qzeros": words(K // GROUP, N // 8),
        "scales": scales(K // GROUP, N),
    }


def awq_weight(t: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
    found = np.zeros((N, K), np.float32)
    for n in range(N):
        place = [0, 2, 4, 6, 1, 3, 5, 7].index(n % 8)
        for k in range(K):
            value, zero = (
                int(t[name][row, n // 8]) >> (4 * place) & 15
                for name, row in (("qweight", k), ("qzeros", k // GROUP))
            )
            found[n, k] = float(t["scales"][k // GROUP, n]) * (value - zero)
    return found


def hqq_tensors(bits: int) -> Tensors:
    rows = N * K // GROUP
    packed = {
        2: drawn((rows // 4, GROUP), 0, 256, torch.uint8),
        3: drawn((-(-rows // 10), GROUP), 0, 2**30, torch.int32),
        4: drawn((rows // 2, GROUP), 0, 256, torch.uint8),
        8: drawn((rows, GROUP), 0, 256, torch.uint8),
    }[bits]
    if bits == 3:  # 128 rows and two of padding, which hqq fills with zeros
        packed[-2:] &= ~7
    names = {2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8", 8: "8bit_u8"}
    return {
        "W_q": packed,
        "scale": scales(rows, 1),
        "zero": scales(rows, 1) * 20,
        "nbits": torch.tensor(bits, dtype=torch.int32),
        "group_size": torch.tensor(GROUP, dtype=torch.int32),
        "shape": torch.tensor([N, K]),
        "axis": torch.tensor(1, dtype=torch.int32),
        "packing": torch.tensor(list(names[bits].encode()), dtype=torch.uint8),
    }


def hqq_weight(t: Mapping[str, Tensor], bits: int) -> npt.NDArray[np.float32]:
    count = {2: 4, 3: 10, 4: 2, 8: 1}[bits]
    found = np.zeros((N * K // GROUP, GROUP), np.float32)
    for row in range(len(found)):
        part, line = divmod(row, len(t["W_q"]))
        for column in range(GROUP):
            value = int(t["W_q"][line, column]) >> (bits * (count - 1 - part)) & (2**bits - 1)
            found[row, column] = (value - float(t["zero"][row])) * float(t["scale"][row])
    return found.reshape(N, K)


def decoupleq_tensors(bits: int) -> Tensors:
    half = 2 ** (bits - 1)
    weight = drawn((N, K), -half, half, torch.int8)
    weight[0, 0] = -half
    shape = (N, K // GROUP)
    return {
        "weight": weight,
        "weight_qscale": torch.randn(shape, generator=torch.Generator().manual_seed(1)),
        "weight_qzero": torch.randn(shape, generator=torch.Generator().manual_seed(2)),
    }


def decoupleq_weight(t: Mapping[str, Tensor]) -> npt.NDArray[np.float32]:
    scale, zero = (t[f"weight_{x}"].repeat_interleave(GROUP, 1) for x in ("qscale", "qzero"))
    found: npt.NDArray[np.float32] = (t["weight"] * scale + zero).numpy()
    return found


GPTQ = {"quant_method": "gptq", "group_size": GROUP}
V2 = {**GPTQ, "checkpoint_format": "gptq_v2"}
AWQ = {"quant_method": "awq", "group_size": GROUP, "bits": 4, "version": "gemm"}
HQQ = {"quant_method": "hqq"}
CASES = [
    *(
        pytest.param(
            gptq_tensors(bits, shuffled=shuffled),
            config,
            lambda t, bits=bits, added=added: gptq_weight(t, bits, added),
            id=f"gptq v{2 - added} {bits} bits{' out of order' if shuffled else ''}",
        )
        for bits in (2, 3, 4, 8)
        for shuffled in (False, True)
        for config, added in ((GPTQ, 1), (V2, 0))
    ),
    pytest.param(awq_tensors(), AWQ, awq_weight, id="awq"),
    *(
        pytest.param(
            hqq_tensors(bits), HQQ, lambda t, bits=bits: hqq_weight(t, bits), id=f"hqq {bits} bits"
        )
        for bits in (2, 3, 4, 8)
    ),
    *(
        pytest.param(decoupleq_tensors(bits), None, decoupleq_weight, id=f"decoupleq {bits} bits")
        for bits in (2, 4)
    ),
]
WRITERS = {"gptq": write_gptq, "awq": write_awq, "hqq": write_hqq, "decoupleq": write_decoupleq}


def taken(tensors: Tensors, config: Mapping[str, Any] | None) -> StoredWeight:
    named = {f"layer.{name}": x for name, x in tensors.items()}
    rest, found = take({**named, "norm.weight": torch.ones(1)}, config)

    assert list(rest) == ["norm.weight"]
    return found["layer"]


@pytest.mark.parametrize(("tensors", "config", "meaning"), CASES)
def test_codes_stand_for_what_the_format_says_and_go_back(
    tensors: Tensors, config: Mapping[str, Any] | None, meaning: Meaning
) -> None:
    """The module's weight is the format's, and the same bytes are written from it again."""
    stored = taken(tensors, config)
    module = stored.module()
    weight = module(torch.eye(K)).T.numpy()
    write = WRITERS["decoupleq" if config is None else config["quant_method"]]

    # Zero points of HQQ are floats: one rounding in the offset, one in the weight.
    rounding = 2e-7 if config is HQQ else 0
    np.testing.assert_allclose(weight, meaning(tensors), rtol=0, atol=rounding * abs(weight).max())
    assert_same(write(stored, config or {}), tensors)
    if config is HQQ:
        return
    dtype = tensors["weight_qscale"].dtype if config is None else torch.float16
    back = stored_weight(module, integers=config is not None, dtype=dtype)
    assert_same(write(back, config or {}), tensors)


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        assert torch.equal(found[name], x), name


def test_hqq_reads_words_that_are_viewed_as_floats() -> None:
    """Bytes that the library keeps in a float tensor are the same bytes."""
    tensors = hqq_tensors(4)
    viewed = {"W_q": tensors["W_q"].view(torch.float16), "view_as_float": torch.tensor(1)}

    np.testing.assert_array_equal(
        read_hqq({**tensors, **viewed}, HQQ).values, read_hqq(tensors, HQQ).values
    )


def test_symmetric_weights_have_no_offset() -> None:
    """Where every zero point is in the middle there is nothing to add; it is found again."""
    stored = taken(gptq_tensors(4), V2)
    middle = torch.full_like(torch.as_tensor(stored.zero), 8)
    symmetric = StoredWeight(
        values=stored.values, scale=stored.scale, zero=middle, bits=4, group=GROUP
    )
    module = symmetric.module()

    assert module.offset is None
    assert torch.equal(
        torch.as_tensor(stored_weight(module, integers=True, dtype=torch.float16).zero), middle
    )


def test_gptq_without_g_idx_takes_bits_from_the_config() -> None:
    """Columns are in order then, and a group of -1 is the whole row."""
    tensors = gptq_tensors(4)
    del tensors["g_idx"]
    whole = {"scales": tensors["scales"][:1], "qzeros": tensors["qzeros"][:1]}
    stored = read_gptq({**tensors, **whole}, {**GPTQ, "bits": 4, "group_size": -1})

    assert (stored.group, stored.shape, stored.groups) == (K, (N, K), None)


def uneven() -> Tensors:
    tensors = gptq_tensors(4)
    tensors["g_idx"][0] = 3
    return tensors


REFUSED = [
    pytest.param(uneven(), GPTQ, "puts other than 16 columns", id="gptq uneven groups"),
    pytest.param(gptq_tensors(4), {**GPTQ, "group_size": 32}, "4 groups for 64", id="gptq groups"),
    pytest.param({"qweight": words(8, N)}, GPTQ, "has no qzeros", id="gptq lacks a tensor"),
    pytest.param({**gptq_tensors(4), "qweight": words(10, N)}, GPTQ, "not hold", id="gptq bits"),
    pytest.param(awq_tensors(), {**AWQ, "version": "gemv"}, "version 'gemv'", id="awq gemv"),
    pytest.param(awq_tensors(), {**AWQ, "group_size": 32}, "4 groups for 64", id="awq groups"),
    pytest.param({**hqq_tensors(4), "axis": torch.tensor(0)}, HQQ, "axis=0", id="hqq axis 0"),
    pytest.param({**hqq_tensors(4), "nbits": torch.tensor(1)}, HQQ, "nbits are 1", id="hqq 1 bit"),
    pytest.param(
        {**hqq_tensors(4), "scale_q": torch.ones(1)}, HQQ, "quantized themselves", id="hqq nested"
    ),
    pytest.param(
        {**hqq_tensors(4), "group_size": torch.tensor(48)}, HQQ, "do not fit", id="hqq groups"
    ),
    pytest.param(
        {**decoupleq_tensors(2), "weight": torch.ones(N, K)}, None, "int8", id="decoupleq floats"
    ),
    pytest.param(
        {**decoupleq_tensors(2), "weight_qzero": torch.ones(N, 1)}, None, "another shape",
        id="decoupleq offsets",
    ),
    pytest.param({}, {"quant_method": "bitsandbytes"}, "'bitsandbytes' are not", id="unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "said"), REFUSED)
def test_what_has_no_form_is_refused(
    tensors: Tensors, config: Mapping[str, Any] | None, said: str
) -> None:
    """The message says what stands in the way."""
    with pytest.raises(SourceError, match=said):
        taken(tensors, config).module()


def test_a_format_writes_only_what_it_can_say() -> None:
    """Offsets that are no integer zero points, and orders of columns, are not lost silently."""
    offsets, zeros = taken(decoupleq_tensors(2), None), taken(gptq_tensors(4, shuffled=True), GPTQ)
    with pytest.raises(SourceError, match="integer zero points"):
        write_gptq(offsets, GPTQ)
    with pytest.raises(SourceError, match="no integer numbers"):
        stored_weight(offsets.module(), integers=True, dtype=torch.float32)
    with pytest.raises(SourceError, match="inputs in order"):
        write_awq(zeros, AWQ)
    with pytest.raises(SourceError, match="inputs in order"):
        write_hqq(zeros, HQQ)
    with pytest.raises(SourceError, match="additive offsets"):
        write_decoupleq(zeros, {})


ODD: tuple[Any, ...] = (None, True, -1, 0, 2**40, 0.5, "x", [], [4], {}, {"x": 1})


@pytest.mark.parametrize("config", [[1], "x", 3])
def test_a_config_that_is_no_table_is_told(config: Any) -> None:
    with pytest.raises(SourceError, match="is no table"):
        take({}, config)


@pytest.mark.parametrize(
    ("method", "made"), [("gptq", lambda: gptq_tensors(4)), ("awq", awq_tensors)]
)
def test_a_config_of_odd_values_is_read_or_told(method: str, made: Callable[[], Tensors]) -> None:
    tensors = {f"p.{name}": tensor for name, tensor in made().items()}
    honest = {"quant_method": method, "bits": 4, "group_size": GROUP}
    for name in (*honest, "desc_act", "sym", "zero_point", "version", "checkpoint_format"):
        for value in ODD:
            with contextlib.suppress(SourceError):
                take(tensors, {**honest, name: value})
