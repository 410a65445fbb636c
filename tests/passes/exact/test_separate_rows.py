"""SeparateRows: parts of a batch of joined rows are computed each by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced import VOCABULARY, Traced

from intaglio.errors import PassError
from intaglio.passes import pipeline
from intaglio.passes.exact.separate_rows import SeparateRows
from intaglio.passes.graph import dims
from intaglio.state import BATCH, Layout, StateSpec

Use = Callable[["Guided", Tensor, int], Tensor]
WIDTH = 8


class Guided(nn.Module):
    """`use` of the embedded ids, and of how many rows there are."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.use = nn.Linear(WIDTH, 3 * WIDTH), use

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.use(self, self.embed(input_ids), input_ids.shape[0])

    def attend(self, x: Tensor) -> Tensor:
        """Causal attention of two heads, and a norm over all tokens of all rows."""
        rows, time, _ = x.shape
        q, k, v = (y.reshape(rows, time, 2, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        y = y.reshape(rows, time, WIDTH) + torch.zeros(rows, 1, WIDTH)
        normed: Tensor = self.norm(y.flatten(0, 1)).unflatten(0, (rows, -1))
        return normed


def _joined(x: Tensor) -> Tensor:
    return torch.cat((x, 0.5 * x))


def _halves(model: Guided, x: Tensor, rows: int) -> Tensor:
    y = model.attend(_joined(x))
    return 2.5 * y[:rows] - 1.5 * y[rows:]


def _turned(model: Guided, x: Tensor, rows: int) -> Tensor:
    """A part may be computed with that of another name."""
    y = model.attend(_joined(x))
    y = model.attend(torch.cat((y[rows:], y[:rows])))
    given, free = y.chunk(2, 0)
    return given - 2 * free


def _three(model: Guided, x: Tensor, rows: int) -> Tensor:
    y = model.attend(torch.stack((x, 2 * x, x * x)).flatten(0, 1))
    return y.view(3, rows, *y.shape[1:]).mean(0)


@pytest.mark.parametrize(("use", "keys"), [(_halves, 2), (_turned, 4), (_three, 3)])
def test_each_part_has_states_of_its_own(use: Use, keys: int, traced: Traced) -> None:
    """Of the same weights; what it gives is held to the joined form, in splits as well."""
    model, context = traced(Guided(use))
    pipeline.run(model, pipeline.standard(), context, check=True)

    assert len(context.states) == 2 * keys
    assert {spec.call for spec in context.states} == set(range(keys))
    assert all(spec.shape[0] == BATCH for spec in context.states)
    assert sum("qkv.weight" in name for name in model.graph.initializers) == 1
    assert not any("2*batch" in map(str, dims(v) or ()) for n in model.graph for v in n.outputs)


REFUSED: dict[str, tuple[Use, str]] = {
    "a mean over joined rows": (
        lambda _, x, n: (_joined(x) - _joined(x).mean(0, keepdim=True))[:n], "ReduceMean",
    ),
    "the place among them": (
        lambda _, x, n: (_joined(x) + torch.arange(2 * n)[:, None, None])[:n], "Add",
    ),
    "rows across the halves": (lambda _, x, n: _joined(x)[1 : n + 1] * 2, "Slice"),
    "a turn of all": (lambda _, x, n: _joined(x).flip(0)[:n], "Slice"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_brings_the_parts_together_is_named(name: str, traced: Traced) -> None:
    use, node = REFUSED[name]
    model, context = traced(Guided(use))
    with pytest.raises(PassError, match=rf"{node} .*(joined along the batch|mixes the rows)"):
        pipeline.run(model, pipeline.standard(), context)


def test_joined_rows_are_no_output(traced: Traced) -> None:
    model, context = traced(Guided(lambda _, x, __: _joined(x)))
    with pytest.raises(PassError, match="2 rows for each row of the batch"):
        pipeline.run(model, [SeparateRows()], context)


def test_the_state_of_a_part_is_a_part_of_the_source_s() -> None:
    """A source has one call for all joined rows."""
    from intaglio.exporter.proving.reference import Reference

    class Call:
        def state(self, spec: StateSpec, tokens: int) -> Tensor:
            del spec
            return torch.arange(4.0)[:, None] + tokens

    def of(call: int) -> list[float]:
        spec = StateSpec(
            input="past", output="present", dtype="float32", shape=(BATCH, 1),
            layout=Layout.RECURRENT, axis=None, op="x", port="recurrent", module="m", layer=0,
            call=call,
        )  # fmt: skip
        found = Reference(outputs={}, precision="float64", calls={("m", "x", 0): Call()}, rows=2)
        array = found.state(spec, 10)
        assert array is not None
        return [float(value) for value in array[:, 0]]

    assert [of(0), of(1)] == [[10, 11], [12, 13]]
