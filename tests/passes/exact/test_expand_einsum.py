"""ExpandEinsum: what one product of matrices says becomes one, and computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.exact.expand_einsum import ExpandEinsum

SIZES = {"b": 2, "t": 5, "s": 7, "h": 3, "d": 4, "e": 6, "n": 1}


def graph(equation: str, *shapes: list[int]) -> ir.Model:
    values = [
        ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        for i, shape in enumerate(shapes)
    ]
    node = ir.node("Einsum", values, {"equation": equation}, name="sum")
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    made = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 24}, name="g")
    return ir.Model(made, ir_version=10)


def expanded(equation: str, *shapes: list[int]) -> tuple[bool, list[str]]:
    """Whether the pass does anything, and the operators that are left, which compute the same."""
    sides = equation.replace(" ", "").partition("->")[0].split(",")
    shapes = shapes or tuple([SIZES[letter] for letter in side] for side in sides)
    model = graph(equation, *shapes)
    random = np.random.default_rng(0)
    given = {f"x{i}": random.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    wanted = evaluate.run(model, given)
    changed = ExpandEinsum().run(model, Context()).changed
    for name, array in evaluate.run(model, given).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
    common.RemoveUnusedNodesPass()(model)
    return changed, [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("equation", "turns"),
    [
        ("bthd,bshd->bhts", 2),
        ("bhtd,bhsd->bhts", 1),
        ("bhts,bshd->bthd", 2),
        ("btd,de->bte", 0),
        ("btd,ed->bte", 1),
        ("bt d, de -> tbe", 1),
        ("td,de->te", 0),
        ("bhtd,hde->bhte", None),
        ("bhtd,bhde->bhte", 0),
        ("bde,bdt->bte", 2),
    ],
)
def test_one_product_is_one_product(equation: str, turns: int | None) -> None:
    changed, found = expanded(equation)

    assert changed == (turns is not None)
    if turns is not None:
        assert found.count("MatMul") == 1
        assert found.count("Transpose") == turns
        assert "Einsum" not in found


@pytest.mark.parametrize(
    "equation", ["btd,bte->btde", "btd,de->bted", "btd,bte,btd->btde", "bt->tb"]
)
def test_what_sums_over_nothing_is_products(equation: str) -> None:
    changed, found = expanded(equation)

    assert changed
    assert set(found) <= {"Constant", "Mul", "Transpose", "Unsqueeze"}
    assert found.count("Mul") == equation.count(",")


@pytest.mark.parametrize(
    "equation",
    [
        "bthd,hde->bte",  # sums over two letters
        "btd->tb",
        "bt,bs,bn->tsn",  # every pair of them is large
    ],
)
def test_what_a_product_does_not_say_stays(equation: str) -> None:
    assert expanded(equation) == (False, ["Einsum"])


@pytest.mark.parametrize(
    ("equation", "sums"),
    [
        ("btd,e->bte", {"ReduceSum": 1}),
        ("bt,ts->bt", {"ReduceSum": 1}),
        ("btd,de,s->bte", {"ReduceSum": 1}),
        ("btd,nts->bsd", {"Squeeze": 1}),  # of one entry, which needs no sum
    ],
)
def test_what_one_side_alone_has_is_summed_before(equation: str, sums: dict[str, int]) -> None:
    changed, found = expanded(equation)

    assert changed
    assert {op: found.count(op) for op in ("ReduceSum", "Squeeze") if op in found} == sums


@pytest.mark.parametrize(("left", "right"), [([2, 5, 4], [4]), ([4], [2, 4, 5]), ([4], [4, 5])])
def test_a_product_with_a_vector_is_one_of_matrices(left: list[int], right: list[int]) -> None:
    values = [
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        for name, shape in (("x", left), ("y", right))
    ]
    node = ir.node("MatMul", values, name="product")
    random = np.random.default_rng(0)
    given = {
        str(each.name): random.normal(size=shape).astype(np.float32)
        for each, shape in zip(values, (left, right), strict=True)
    }
    wanted = np.matmul(given["x"], given["y"])
    node.outputs[0].name = "z"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(wanted.shape)
    made = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 24}, name="g")
    model = ir.Model(made, ir_version=10)

    assert ExpandEinsum().run(model, Context()).changed
    np.testing.assert_allclose(evaluate.run(model, given)["z"], wanted, rtol=1e-5, atol=1e-6)
    (product,) = [node for node in model.graph if node.op_type == "MatMul"]
    assert min(len(value.shape or ()) for value in product.inputs if value is not None) > 1


@pytest.mark.parametrize(
    ("equation", "products"),
    [("btd,btd->bt", 1), ("btd,bsd,btsd->bts", 2), ("dsbt,tb,bsd->bt", 2)],
)
def test_a_tensor_of_all_letters_is_multiplied_and_summed(equation: str, products: int) -> None:
    changed, found = expanded(equation)

    assert changed
    assert [op for op in found if op in ("Mul", "Einsum", "ReduceSum")] == [
        *["Mul"] * products,
        "ReduceSum",
    ]


@pytest.mark.parametrize(
    ("equation", "products"),
    [
        ("btd,de,eh->bth", ["MatMul", "MatMul"]),
        ("bthn,bshn,bhts,bshd->bthd", ["MatMul", "Mul", "MatMul"]),
        ("bht,bhts,bhsd->bhtd", ["MatMul", "Mul"]),
    ],
)
def test_more_than_two_tensors_are_taken_two_by_two(equation: str, products: list[str]) -> None:
    changed, found = expanded(equation)

    assert changed
    assert [op for op in found if op in ("MatMul", "Mul", "Einsum")] == products


PAIRS = {"b": "batch", "i": "time", "j": "time", "h": 3, "g": 2, "d": 4}


@pytest.mark.parametrize(
    ("equation", "front"),
    [
        ("bid,ijd->bij", ["batch", "time"]),  # relative keys, rows in front
        ("bij,ijd->bid", ["batch", "time"]),  # relative values
        ("ij,bjd->bid", ["batch"]),
        ("hg,bgij->bhij", ["batch", "time"]),  # heads that talk
        ("hij,bhjd->bhid", ["batch", 3]),
    ],
)
def test_pairs_of_tokens_are_one_product_with_rows_in_front(
    equation: str, front: list[str | int]
) -> None:
    sides = equation.partition("->")[0].split(",")
    shapes: list[Any] = [[PAIRS[letter] for letter in side] for side in sides]
    model, sizes = graph(equation, *shapes), {"batch": 2, "time": 5}
    random = np.random.default_rng(0)
    given = {
        f"x{at}": random.normal(size=[sizes.get(n, n) for n in shape]).astype(np.float32)
        for at, shape in enumerate(shapes)
    }
    wanted = evaluate.run(model, given)["y"]

    assert ExpandEinsum().run(model, Context()).changed
    np.testing.assert_allclose(evaluate.run(model, given)["y"], wanted, rtol=1e-4, atol=1e-5)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert [str(dim) for dim in product.outputs[0].shape][:-2] == [str(dim) for dim in front]  # type: ignore[union-attr]


@pytest.mark.parametrize("equation", ["->", "bt->bt"])
def test_what_gives_back_its_input_is_a_copy_of_it(equation: str) -> None:
    """The output of the graph keeps its name, and the input its own."""
    assert expanded(equation) == (True, ["Identity"])


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("...d,de->...e", ([2, 5, 4], [4, 6])),
        ("...d,...d->...", ([2, 5, 4], [2, 5, 4])),
        ("d...,de->...e", ([4, 2, 5], [4, 6])),
        ("btd,de", ([2, 5, 4], [4, 6])),
        ("...d,de", ([2, 5, 4], [4, 6])),
    ],
)
def test_axes_that_are_not_spelled_out_are_given_letters(
    equation: str, shapes: tuple[list[int], ...]
) -> None:
    changed, found = expanded(equation, *shapes)

    assert changed
    assert "Einsum" not in found


def test_axes_that_are_not_spelled_out_are_told_apart_where_no_product_says_it() -> None:
    """Which of them is that of time, the equation of a block-diagonal matrix tells by letters."""
    model = graph("...kp,kqp->...kq", [2, 5, 3, 4], [3, 6, 4])

    assert ExpandEinsum().run(model, Context()).changed
    (node,) = [node for node in model.graph if node.op_type == "Einsum"]
    assert node.attributes["equation"].value == "abkp,kqp->abkq"


def test_equations_without_letters_of_their_own_stay() -> None:
    """Axes that are stretched without a letter, and a diagonal."""
    assert expanded("...d,...de->...e", [2, 5, 4], [2, 1, 4, 6]) == (False, ["Einsum"])
    assert not ExpandEinsum().run(graph("btd,dee->bte", [2, 5, 4], [4, 6, 6]), Context()).changed


def test_a_size_of_one_is_not_stretched() -> None:
    """Einsum stretches it where the other side has more; a product would not."""
    assert expanded("bhtd,bhsd->bhts", [2, 3, 5, 4], [2, 1, 7, 4]) == (False, ["Einsum"])
    assert expanded("bhtd,bhsd->bhts", [2, 1, 5, 4], [2, 1, 7, 4])[0]


class Written(nn.Module):
    """Attention in the words of einsum, heads behind the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.mixed = nn.Parameter(torch.randn(8, 3, 2, 4) / 3)
        self.out = nn.Parameter(torch.randn(2, 4, 8) / 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        q, k, v = torch.einsum("btc,cjhd->jbthd", x, self.mixed).unbind(0)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.5
        time = input_ids.shape[1]
        scores = scores.masked_fill(torch.ones(time, time).triu(1) > 0, float("-inf"))
        y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return torch.einsum("bqhd,hdc->bqc", y, self.out)


def test_attention_in_einsum_carries_a_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    report = export(
        Written(),
        tmp_path / "bundle",
        inputs={"input_ids": np.zeros((2, 7), np.int64)},
        steps=24,
        check_passes=True,
    )

    assert report.parity is not None
    assert report.parity.passed
    assert [spec.port for spec in report.manifest.main.states] == ["key", "value"]
