"""Lowering weights of few bits: the same function, the fast kernels, one product for one input."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from intaglio.graph_keys import MODULE
from intaglio.passes import evaluate
from intaglio.passes.base import Context, PassResult
from intaglio.passes.calibration import Batch, Calibration
from intaglio.passes.exact.remove_dead import RemoveDead
from intaglio.passes.graph import Emitter, attributes_of, constant, dims
from intaglio.passes.low_bit import LowBitWeight, add_weight, low_bit_nodes, product
from intaglio.passes.lower.ort_low_bit import OrtLowBit
from intaglio.passes.own_ops import define

Array = npt.NDArray[Any]
FLOAT = ir.DataType.FLOAT
EXACT, FINE, FAST = 1e-5, 1e-3, 1e-2  # per layer, of the largest output
SUMS = "group_sums."
KERNEL_BLOCKS = {32, 64, 128}
"""Blocks for which ONNX Runtime has kernels with int8 activations."""


def draw(
    bits: int, rows: int, K: int, group: int, offset: str = "floats", seed: int = 0
) -> LowBitWeight:
    """A random weight; its offset none, floats, or what integer zero points make."""
    random = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    codes = random.integers(-half, half, (rows, K)).astype(np.int8)
    shape = rows, -(-K // min(group, K))
    scale = (random.uniform(0.5, 1.5, shape) / half).astype(np.float32)
    offsets = {
        "none": None,
        "floats": random.standard_normal(shape).astype(np.float32) / 4,
        "points": (scale * random.integers(1 - half, half + 1, shape)).astype(np.float32),
    }
    return LowBitWeight.of(codes, scale, offsets[offset], bits=bits, group=group)


def graph_of(weights: list[LowBitWeight], *, biased: bool = False, apart: bool = False) -> ir.Model:
    """Products of one input x [batch, time, K] with each weight; of one input each if `apart`."""
    K = weights[0].K
    shape = ir.Shape(["batch", "time", K])
    inputs = [
        ir.Value(name=f"x{i}", type=ir.TensorType(FLOAT), shape=shape)
        for i in range(len(weights) if apart else 1)
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 24}, name="g")
    anchor = ir.node("Identity", [inputs[0]], name="anchor")
    graph.append(anchor)
    anchor.outputs[0].type, anchor.outputs[0].shape = ir.TensorType(FLOAT), shape
    for index, weight in enumerate(weights):
        bias = None
        if biased:
            array = np.arange(weight.rows, dtype=np.float32)
            bias = ir.Value(name=f"b{index}", const_value=ir.tensor(array))
            bias.type, bias.shape = ir.TensorType(FLOAT), ir.Shape([weight.rows])
            graph.register_initializer(bias)
        x = inputs[index if apart else 0]
        values = add_weight(graph, f"w{index}", weight)
        y = product(Emitter(anchor, f"layer{index}"), x, values, weight, bias)
        y.name = f"y{index}"
        graph.outputs.append(y)
    graph.remove(anchor, safe=True)
    model = ir.Model(graph, ir_version=12)
    define(model)
    return model


def lowered(model: ir.Model, accuracy: str) -> tuple[ir.Model, PassResult]:
    """A copy of `model` after the pass."""
    copy = model.clone()
    result = OrtLowBit(accuracy=accuracy).run(copy, Context())  # type: ignore[arg-type]
    RemoveDead().run(copy, Context())
    return copy, result


def feeds_of(model: ir.Model, batch: int = 2, time: int = 5) -> dict[str, Array]:
    random = np.random.default_rng(1)
    sizes = {str(x.name): (batch, time, int((dims(x) or ())[2])) for x in model.graph.inputs}
    return {name: random.standard_normal(n).astype(np.float32) for name, n in sizes.items()}


def outliers_of(model: ir.Model, batch: int = 2, time: int = 5) -> dict[str, Array]:
    """Inputs with one huge column: what else is in its block is rounded to half of its size."""
    feeds = feeds_of(model, batch, time)
    for x in feeds.values():
        x[..., 7] = 80 * np.sign(x[..., 7])
    return feeds


def errors(
    model: ir.Model, other: ir.Model, feeds: Mapping[str, Array] | None = None
) -> list[float]:
    feeds = feeds_of(model) if feeds is None else feeds
    wanted, got = evaluate.run(model, feeds), evaluate.run(other, feeds, optimize=True)
    return [
        float(np.abs(got[name] - wanted[name]).max() / np.abs(wanted[name]).max())
        for name in wanted
    ]


def kernels(model: ir.Model, *, sums: bool = False) -> list[ir.Node]:
    """Products with weights, or with the ones that make group sums."""
    found = [node for node in model.graph if node.op_type == "MatMulNBits"]
    return [n for n in found if str(n.inputs[1] and n.inputs[1].name).startswith(SUMS) is sums]


def rounded(x: Array, block: int) -> Array:
    """`x` with each block of `block` columns rounded to 8 bits, in float64."""
    width = x.shape[-1]
    padded = np.pad(x.astype(np.float64), [(0, 0)] * (x.ndim - 1) + [(0, -width % block)])
    blocks = padded.reshape(*x.shape[:-1], -1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    kept: Array = (np.round(blocks / scale) * scale).reshape(padded.shape)[..., :width]
    return kept


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("K", "group"),
    [(256, 32), (256, 64), (256, 128), (512, 256), (160, 160), (96, 16), (100, 100), (120, 48)],
)
def test_every_group_reaches_a_fast_kernel_and_keeps_its_meaning(
    bits: int, K: int, group: int
) -> None:
    """Groups that fit, of several blocks, of a whole row, and padded ones."""
    model = graph_of([draw(bits, 24, K, group)], biased=True)
    exact, _ = lowered(model, "exact")
    fast, _ = lowered(model, "fast")
    assert errors(model, exact)[0] <= EXACT
    assert errors(model, fast)[0] <= FAST
    (node,) = kernels(fast)
    attributes = attributes_of(node)
    assert attributes["block_size"] in KERNEL_BLOCKS
    assert attributes["accuracy_level"] == 4
    assert attributes["bits"] == (4 if bits == 3 else bits)
    assert node.inputs[3] is None  # zero points of floats have no fast kernel


@pytest.mark.parametrize(("bits", "K", "group"), [(2, 256, 64), (2, 160, 160), (4, 288, 32)])
def test_rounding_the_input_is_all_the_error_there_is(bits: int, K: int, group: int) -> None:
    """Offsets meet the rounded input as codes do: it is one float weight that is multiplied."""
    weight = draw(bits, 24, K, group)
    model = graph_of([weight])
    fast, _ = lowered(model, "fast")
    block = attributes_of(kernels(fast)[0])["block_size"]
    feeds = feeds_of(model)
    wanted = rounded(feeds["x0"], block) @ weight.dequantize().astype(np.float64).T
    got = evaluate.run(fast, feeds, optimize=True)["y0"]
    assert np.abs(got - wanted).max() <= EXACT * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_zero_points_cost_no_second_product(bits: int) -> None:
    """An offset that is an integer multiple of the scale, as GPTQ and AWQ have it."""
    model = graph_of([draw(bits, 24, 256, 64, "points")])
    fast, _ = lowered(model, "fast")
    exact, _ = lowered(model, "exact")
    assert errors(model, exact)[0] <= EXACT
    (node,) = kernels(fast)
    points = constant(node.inputs[3])
    assert points is not None
    assert points.dtype == np.uint8
    assert [n.op_type for n in fast.graph] == ["MatMulNBits"]


def test_products_of_one_input_become_one_and_share_its_group_sums() -> None:
    """Query, key and value: one product, one sum over groups, one Split."""
    weights = [draw(2, rows, 128, 64, seed=rows) for rows in (32, 16, 8)]
    model = graph_of(weights, biased=True)
    fast, _ = lowered(model, "fast")
    assert len(kernels(fast)) == len(kernels(fast, sums=True)) == 1
    assert [node.op_type for node in fast.graph].count("Split") == 1
    exact, _ = lowered(model, "exact")
    assert max(errors(model, exact)) <= EXACT


def test_products_of_other_inputs_or_forms_stay_apart() -> None:
    """Different inputs; different bits of one input."""
    assert len(kernels(lowered(graph_of([draw(2, 8, 64, 32)] * 2, apart=True), "fast")[0])) == 2
    mixed = graph_of([draw(2, 8, 64, 32), draw(4, 8, 64, 32)])
    exact, _ = lowered(mixed, "exact")
    assert len(kernels(exact)) == 2
    assert max(errors(mixed, exact)) <= EXACT


def test_exact_asks_for_full_precision() -> None:
    """Accuracy level 0, and the record says so."""
    exact, result = lowered(graph_of([draw(2, 8, 64, 32)]), "exact")
    assert attributes_of(kernels(exact)[0])["accuracy_level"] == 0
    assert result.details["accuracy"] == "exact"


@pytest.mark.parametrize("offset", ["none", "floats", "points"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("bits", "K", "group", "least"),
    [
        (2, 256, 64, FAST),
        (8, 100, 100, FAST),
        (2, 288, 128, FAST),
        (4, 160, 64, FAST),
        (4, 120, 48, FAST / 2),  # a padded block holds less that can be rounded
        (3, 96, 16, FAST / 2),
    ],
)
def test_two_parts_bear_what_one_does_not(
    bits: int, K: int, group: int, least: float, biased: bool, offset: str
) -> None:
    """Outliers, in groups that fit, that end short, that are padded; one token and several."""
    model = graph_of([draw(bits, 24, K, group, offset)], biased=biased)
    fine, result = lowered(model, "fine")
    fast, _ = lowered(model, "fast")
    for batch, time in ((1, 1), (3, 1), (2, 7)):
        feeds = outliers_of(model, batch, time)
        assert errors(model, fine, feeds)[0] <= FINE
        assert errors(model, fast, feeds)[0] > least
    assert {attributes_of(node)["accuracy_level"] for node in kernels(fine)} == {4}
    assert (result.details["accuracy"], result.details["in_two_parts"]) == ("fine", [1, 1])


def test_blocks_of_zeros_have_two_parts_too() -> None:
    """A padded row is no number divided by none."""
    model = graph_of([draw(2, 24, 128, 64)])
    feeds = feeds_of(model)
    feeds["x0"][:, 1:] = 0
    assert errors(model, lowered(model, "fine")[0], feeds)[0] <= FINE


def test_a_vector_has_two_parts_too() -> None:
    """Without a batch: both parts are rows, their sum is none."""
    model = graph_of([draw(2, 24, 100, 100)], biased=True)
    (x,), (y,) = model.graph.inputs, model.graph.outputs
    x.shape, y.shape = ir.Shape([100]), ir.Shape([24])
    feeds = {"x0": outliers_of(graph_of([draw(2, 24, 100, 100)]))["x0"][0, 0]}
    fine, _ = lowered(model, "fine")
    assert errors(model, fine, feeds)[0] <= FINE
    assert evaluate.run(fine, feeds)["y0"].shape == (24,)


def test_merged_products_share_their_two_parts_and_sums() -> None:
    """One input, one form: it is split once, multiplied once, and cut into the three."""
    model = graph_of([draw(2, rows, 128, 64, seed=rows) for rows in (32, 16, 8)], biased=True)
    fine, _ = lowered(model, "fine")
    assert len(kernels(fine)) == len(kernels(fine, sums=True)) == 1
    assert [node.op_type for node in fine.graph].count("Round") == 1
    assert max(errors(model, fine, outliers_of(model))) <= FINE


def calibrated(feeds: Mapping[str, Array]) -> Context:
    """Data whose last batch is held out: `feeds`, before it a batch that is no trouble."""
    easy = {name: np.ones_like(x) for name, x in feeds.items()}
    batches = [Batch(inputs=given, rows=2, steps=5) for given in (easy, feeds)]
    return Context(calibration=Calibration(batches=batches, sha256=""))


def test_auto_takes_in_two_parts_the_product_whose_data_asks_for_it() -> None:
    """By what is held out; the note names the module, the error and the cost."""
    weights = [draw(2, 24, 128, 64, seed=seed) for seed in range(3)]
    model = graph_of(weights, apart=True)
    feeds = feeds_of(model) | {"x1": outliers_of(model)["x1"]}
    for index, node in enumerate(low_bit_nodes(model)):
        node.metadata_props[MODULE] = f"layers.{index}"
    mixed = model.clone()
    result = OrtLowBit().run(mixed, calibrated(feeds))
    found = errors(model, mixed, feeds)
    alone = errors(model, lowered(model, "fast")[0], feeds)

    assert (found[0], found[2]) == (alone[0], alone[2])
    assert found[1] <= FINE < FAST < alone[1]
    assert (result.details["accuracy"], result.details["in_two_parts"]) == ("mixed", [1, 3])
    (note,) = result.notes
    assert note.startswith("layers.1: ")
    assert f"{alone[1]:.1e}" in note
    assert "times as long" in note
    assert "1 of 3 products" in result.advice[0]
    assert "layers.1" in result.advice[0]


def test_auto_keeps_apart_what_of_one_input_needs_two_parts() -> None:
    """Of three products one multiplies the outlier by codes, the others by zeros."""
    weights = [draw(2, 24, 128, 64, "none", seed=seed) for seed in range(3)]
    for weight in weights[:2]:
        weight.scale[:, 0] = 0
    model = graph_of(weights)
    mixed = model.clone()
    feeds = outliers_of(model)
    result = OrtLowBit().run(mixed, calibrated(feeds))
    assert [attributes_of(node)["N"] for node in kernels(mixed)] == [48, 24]
    assert result.details["in_two_parts"] == [1, 3]
    assert max(errors(model, mixed, feeds)) <= FAST


def test_without_data_auto_is_fast() -> None:
    model = graph_of([draw(2, 24, 128, 64)])
    auto, result = lowered(model, "auto")
    assert [node.op_type for node in auto.graph] == [
        node.op_type for node in lowered(model, "fast")[0].graph
    ]
    assert (result.details["accuracy"], result.notes) == ("fast", [])


@pytest.mark.parametrize(
    ("bits", "group", "words"),
    [
        (2, 32, "take longer"),
        (3, 64, "computed as 4"),
        (4, 16, "padded"),
        (2, 64, None),
        (2, 128, None),
    ],
)
def test_pointless_choices_are_told(bits: int, group: int, words: str | None) -> None:
    """What another choice beats on this engine."""
    _, result = lowered(graph_of([draw(bits, 8, 256, group)]), "fast")
    assert (words in " ".join(result.advice)) if words else not result.advice


@pytest.mark.parametrize("offset", ["none", "floats", "points"])
@pytest.mark.parametrize(
    ("bits", "K", "group"), [(2, 128, 64), (3, 64, 32), (4, 96, 96), (8, 64, 32)]
)
def test_look_ups_use_the_engine_s_kernel(bits: int, K: int, group: int, offset: str) -> None:
    """GatherBlockQuantized to the last bit of rounding, whatever the offset."""
    model = table_of(draw(bits, 20, K, group, offset))
    fast, _ = lowered(model, "fast")
    assert "GatherBlockQuantized" in {node.op_type for node in fast.graph}
    assert _looked_up(model, fast) <= 1e-6


def test_look_ups_of_unfit_groups_stay_standard() -> None:
    """Their rows are written out by the body, and the record names the module."""
    model = table_of(draw(2, 20, 60, 20))
    fast, result = lowered(model, "fast")
    assert [node.op_type for node in fast.graph] == ["AffineLowBitGather"]
    assert "written out" in result.notes[0]
    assert not result.changed
    assert _looked_up(model, fast) == 0


def table_of(weight: LowBitWeight) -> ir.Model:
    ids = ir.Value(
        name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "time"])
    )
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 24}, name="g")
    values = add_weight(graph, "table", weight)
    sizes = {"K": weight.K, "N": weight.rows, "bits": weight.bits, "group": weight.group}
    node = ir.node("AffineLowBitGather", [ids, *values], sizes, domain="intaglio", name="embed")
    graph.append(node)
    (rows,) = node.outputs
    rows.name, rows.type = "rows", ir.TensorType(FLOAT)
    rows.shape = ir.Shape(["batch", "time", weight.K])
    graph.outputs.append(rows)
    model = ir.Model(graph, ir_version=12)
    define(model)
    return model


def _looked_up(model: ir.Model, other: ir.Model) -> float:
    feeds = {"ids": np.random.default_rng(2).integers(0, 20, (2, 3))}
    wanted, got = (evaluate.run(m, feeds)["rows"] for m in (model, other))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
