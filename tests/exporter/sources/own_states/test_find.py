"""States that modules carry: in arguments and results, nested or not, and in themselves."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source

X, H = torch.randn(2, 8), torch.zeros(2, 8)


class Step(nn.Module):
    """Mixes an input and a state, and returns what `give` makes of the result."""

    def __init__(self, give: Any) -> None:
        super().__init__()
        self.mix, self.give = nn.Linear(8, 8), give

    def forward(self, x: Tensor, h: Tensor) -> Any:
        new = (self.mix(x) + h).tanh()
        return self.give(new, 2 * new)


def states(source: Source) -> dict[str, str]:
    return {own.input: own.output for own in source.states}


def shapes(source: Source) -> dict[str, dict[int, str]]:
    return source.dynamic


def test_keys_of_a_mapping_pair_up_and_equal_names_are_told_apart() -> None:
    source = load_source(Step(lambda h, y: {"y": y, "h": h}), inputs={"x": X, "h": H})

    assert states(source) == {"h": "h_out"}
    assert shapes(source) == {"x": {0: "batch"}, "h": {0: "batch"}}
    assert set(source.module(x=X, h=H)) == {"y", "h_out"}
    assert "their names pair up" in " ".join(source.notes)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 4, num_layers=2), nn.Linear(4, 3)

    def forward(self, x: Tensor, h_in: Tensor, c_in: Tensor) -> Any:
        y, (h, c) = self.lstm(x[None], (h_in, c_in))
        return self.head(y[0]), h, c


def test_names_in_the_return_statement_tell_h_from_c_and_batch_is_found_by_trying() -> None:
    zeros = torch.zeros(2, 2, 4)  # as many layers as rows
    source = load_source(Named(), inputs={"x": X, "h_in": zeros, "c_in": zeros})

    assert states(source) == {"h_in": "output_1", "c_in": "output_2"}
    assert shapes(source)["h_in"] == {1: "batch"}


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.GRUCell(8, 8) for _ in range(2))

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = []
        for cell, h in zip(self.cells, states, strict=True):
            x = cell(x, h)
            new.append(x)
        return x + 1, new


@pytest.mark.parametrize(
    "given", [{"states": [H, H]}, {"states_0": H, "states_1": H}], ids=["list", "by number"]
)
def test_lists_of_states_become_tensors_of_their_own(given: dict[str, Any]) -> None:
    """Those of a file .npz, which cannot nest, come by number."""
    module = Nested()
    source = load_source(module, inputs={"x": X, **given})

    assert states(source) == {"states_0": "output_1_0", "states_1": "output_1_1"}
    found = source.module(x=X, states_0=H, states_1=H + 1)
    assert torch.equal(found["output_1_1"], module(X, [H, H + 1])[1][1])
    assert set(dict(source.module.named_parameters())) == set(dict(module.named_parameters()))


def test_what_cannot_be_told_is_refused_with_the_lines_to_type() -> None:
    with pytest.raises(OptionError, match="--state h=output_0 or --state h=output_1"):
        load_source(Step(lambda h, y: (h, y)), inputs={"x": X, "h": H})
    module = Step(lambda h, y: (h, y))
    source = load_source(module, inputs={"x": X, "h": H}, states={"h": "output_0:0.5"})
    assert states(source) == {"h": "output_0"}
    assert source.states[0].initial == 0.5
    assert not load_source(module, inputs={"x": X, "h": H}, states={"none": ""}).states
    for wrong in ({"g": "output_0"}, {"h": "output_7"}, {"h": "output_0:nothing"}):
        with pytest.raises(OptionError, match="--state"):
            load_source(module, inputs={"x": X, "h": H}, states=wrong)


class Started(Nested):
    """Starts from a weight, which a method gives."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(8))

    def first(self, rows: int) -> Tensor:
        return self.start.expand(rows, 8)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h = self.cells[0](x, h)
        return h * 2, h


def test_a_state_starts_from_a_method_a_file_or_a_number(tmp_path: Any) -> None:
    module = Started()
    given = {"x": X, "h": H}
    source = load_source(module, inputs=given, states={"h": "h:first"})
    np.testing.assert_array_equal(source.states[0].initial, module.start.detach().numpy()[None])

    row = np.arange(8, dtype=np.float32)
    np.savez(tmp_path / "start.npz", h=np.stack([row, row]))
    source = load_source(module, inputs=given, states={"h": f"h:{tmp_path / 'start.npz'}"})
    np.testing.assert_array_equal(source.states[0].initial, row[None])
    np.savez(tmp_path / "rows.npz", h=np.stack([row, 2 * row]))
    with pytest.raises(OptionError, match="differs between rows"):
        load_source(module, inputs=given, states={"h": f"h:{tmp_path / 'rows.npz'}"})


class Keeps(nn.Module):
    """A policy with its hidden state in itself, and a table that it fills once."""

    def __init__(self, first: Tensor | None = None) -> None:
        super().__init__()
        self.cell, self.hidden = nn.GRUCell(8, 8), first
        self.table: Tensor | None = None
        self.shown: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(8.0)
        if self.hidden is None:
            self.hidden = torch.zeros(len(x), 8)
        self.hidden = self.cell(x + self.table, self.hidden)
        self.shown = self.hidden * 2  # for others to look at
        return self.hidden.tanh()


def test_hidden_state_kept_in_the_module_becomes_an_input_and_an_output() -> None:
    """Not what it fills once, nor what it only shows."""
    module = Keeps()
    source = load_source(module, inputs={"x": X})

    assert states(source) == {"hidden": "hidden_out"}
    assert source.states[0].initial == 0
    first = source.module(x=X, hidden=H)
    assert torch.equal(first["output"], module(X))
    assert torch.equal(source.module(x=X, hidden=first["hidden_out"])["output"], module(X))


def test_a_kept_state_starts_from_what_the_module_holds() -> None:
    source = load_source(Keeps(torch.linspace(0, 1, 8).expand(2, 8)), inputs={"x": X})

    np.testing.assert_allclose(source.states[0].initial, np.linspace(0, 1, 8)[None], rtol=1e-6)


def test_a_kept_state_that_starts_elsewhere_is_refused() -> None:
    class Elsewhere(Keeps):
        def forward(self, x: Tensor) -> Tensor:
            self.hidden = torch.ones(len(x), 8) if self.hidden is None else self.hidden
            return super().forward(x)

    with pytest.raises(SourceError, match=r"keeps self\.hidden from call to call"):
        load_source(Elsewhere(), inputs={"x": X})


class Chunked(nn.Module):
    def forward(self, chunk: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.cat((cache, chunk), -1)
        return frames[..., 1:] - frames[..., :-1], frames[..., -1:]


class Averaged(nn.Module):
    def forward(self, chunk: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        new_mean = 0.9 * mean + chunk.mean(2)
        return chunk - mean[..., None], new_mean


def test_time_is_an_axis_whose_parts_give_what_all_of_it_gives() -> None:
    """A mean over each call is none: there a call takes what the example has."""
    source = load_source(Chunked(), inputs={"chunk": torch.randn(2, 3, 9), "cache": H[:, :3, None]})
    assert shapes(source) == {"chunk": {0: "batch", 2: "time"}, "cache": {0: "batch"}}

    source = load_source(
        Averaged(),
        inputs={"chunk": torch.randn(2, 3, 9), "mean": H[:, :3]},
        states={"mean": "new_mean"},
    )
    assert shapes(source) == {"chunk": {0: "batch"}, "mean": {0: "batch"}}


class Watched(nn.Module):
    """Hooks what its first call needs hooked, and knows that it did, as libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        if not getattr(self, "watching", False):
            self.mix.register_forward_hook(lambda _module, _given, y: y + 1)
            self.watching = True
        return self.mix(x)


def test_hooks_of_a_first_call_are_not_hooked_twice() -> None:
    """The trial forgets that it was the first: its hooks go as well."""
    module = Watched().eval()
    source = load_source(module, inputs={"x": X})
    for _ in range(2):
        torch.testing.assert_close(source.module(x=X), module(X))


class Places(nn.Module):
    """Points of a graph that are moved: `pos` goes in and comes out, and is carried by nobody."""

    def forward(self, pos: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        pushed = torch.zeros_like(pos).index_add(0, edges[1], pos[edges[0]])
        pos = pos + pushed
        return pos.square().sum(), pos


POINTS = {"pos": torch.randn(5, 3), "edges": torch.randint(5, (2, 9))}


def test_what_has_axes_left_free_is_no_state() -> None:
    axes = {"pos": "nodesx3", "edges": "2xlinks"}
    source = load_source(Places(), inputs=POINTS, axes=axes)
    assert not source.states
    assert source.draw({"nodes": 8}, 0)["pos"].shape == (8, 3)
    with pytest.raises(OptionError, match=r"--axes leaves 'nodes' free, and a state has one size"):
        load_source(Places(), inputs=POINTS, axes=axes, states={"pos": "output_1"})


def test_sizes_of_other_axes_are_drawn_and_kept_to() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = (x.mean(1) + h).tanh()
            return 2 * h, h

    given = {"x": torch.randn(2, 5, 8), "h": H}
    axes = {"x": "batch=1..4,points=3..6,8", "h": "batch=1..4,8"}
    source = load_source(Mean(), inputs=given, axes=axes)
    assert states(source) == {"h": "output_1"}
    assert source.spans["points"].most == 6
    assert 3 <= source.inputs["x"].shape[1] <= 6


def test_what_has_other_rows_than_the_first_input_has_no_batch() -> None:
    class Nodes(nn.Module):
        def forward(self, x: Tensor, edges: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = (h + x.index_select(0, edges[0] * 0).sum(0) + x).tanh()
            return 2 * h, h

    given = {"x": torch.randn(5, 8), "edges": torch.randint(5, (2, 9)), "h": torch.zeros(5, 8)}
    found = load_source(Nodes(), inputs=given)
    assert shapes(found) == {"x": {0: "batch"}, "edges": {}, "h": {0: "batch"}}


def test_what_a_module_writes_in_place_is_not_written_while_it_is_tried() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)
            self.h = nn.Buffer(torch.zeros(2, 8))

        def forward(self, x: Tensor) -> Tensor:
            self.h.copy_((self.mix(x) + self.h).tanh())
            return 2 * self.h

    (state,) = load_source(Kept(), inputs={"x": X}).states
    assert not np.any(state.initial)


class Game(nn.Module):
    """States, actions and returns of a game as three entries a token, as `join` joins them."""

    def __init__(self, *, joined: bool) -> None:
        super().__init__()
        self.joined, self.mix, self.act = joined, nn.Linear(5, 5), nn.Linear(3, 5)

    def forward(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        if self.joined:
            together = torch.stack((states, self.act(actions)), 2).flatten(1, 2)
            return actions.mean(-1), self.mix(together[:, ::2])
        return actions.mean(-1), self.mix(states) + self.act(actions).sum(1, keepdim=True)


def test_what_is_called_like_a_state_and_is_as_long_as_others_is_a_sequence() -> None:
    """Unless it has its size whatever they have."""
    inputs = {"states": torch.randn(2, 6, 5), "actions": torch.randn(2, 6, 3)}
    source = load_source(Game(joined=True), inputs=inputs)
    assert states(source) == {}
    assert shapes(source)["states"] == {0: "batch", 1: "time"}
    assert states(load_source(Game(joined=False), inputs=inputs)) == {"states": "output_1"}
