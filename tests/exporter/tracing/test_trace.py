"""Tracing: one truthful graph of opset 27 with free batch and time, or an error with a name."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import TraceError
from intaglio.exporter.sources.examples import guess_specs
from intaglio.exporter.sources.input_spec import sampler
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.graph_keys import MODULE
from intaglio.ops.linear_attention import linear_attention
from intaglio.passes import evaluate
from intaglio.passes.graph import module_of

VOCABULARY, WIDTH = 50, 16
Forward = Callable[["Mixer", Tensor], Tensor]


class Mixer(nn.Module):
    """One linear layer and whatever a test does with its output."""

    table: Tensor
    scratch: Tensor

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.places = nn.Embedding(200, WIDTH)
        self.register_buffer("table", torch.randn(160, WIDTH))
        self.register_buffer("scratch", torch.randn(160, WIDTH), persistent=False)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, self.linear(x))


class Model(nn.Module):
    """A language model around one mixer, with two equal norms and tied embeddings."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)])
        self.layers = nn.ModuleList([Mixer(lambda _, x: x * 2), Mixer(forward)])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embed(input_ids)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


def source_of(module: nn.Module) -> Source:
    specs = guess_specs(module, "the test")
    return Source(
        path=Path("model.pt"),
        name="model",
        format="test",
        sha256="",
        model="test",
        config={},
        body=module.eval().requires_grad_(False),
        dynamic={spec.name: spec.dynamic for spec in specs},
        aliases={},
        sample=sampler(specs),
    )


def source(forward: Forward = lambda _, x: x) -> Source:
    torch.manual_seed(0)
    return source_of(Model(forward))


def attend(mixer: Mixer, x: Tensor, heads: int = 4, groups: int = 4) -> Tensor:
    size = WIDTH // heads
    q = x.view(*x.shape[:2], heads, size).transpose(1, 2)
    k = q[:, :groups]
    y = F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).flatten(2) + mixer.table[: x.shape[1]] + mixer.scratch[: x.shape[1]]


def grouped(mixer: Mixer, x: Tensor) -> Tensor:
    return attend(mixer, x, heads=4, groups=2)


def gated(_: Mixer, x: Tensor) -> Tensor:
    y, _state = linear_attention(
        x, x, x, None, F.logsigmoid(x), update_rule="gated", q_num_heads=2, kv_num_heads=2
    )
    return y


def loop_that_looks_ahead(_: Mixer, x: Tensor) -> Tensor:
    return torch.stack([x[:, t:].sum(1) for t in range(x.shape[1])], 1)


def chunks_that_look_ahead(_: Mixer, x: Tensor) -> Tensor:
    return torch.cat([chunk.flip(1) for chunk in torch.split(x, 4, 1)], 1)


def long_calls_differ(_: Mixer, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 10 else x


def short_calls_differ(_: Mixer, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] < 5 else x


def single_token_differs(_: Mixer, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] > 1 else x


def odd_length_differs(_: Mixer, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] % 2 else x


def single_row_differs(_: Mixer, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x


def as_integer(_: Mixer, x: Tensor) -> Tensor:
    return x / (1 + operator.index(x.shape[1]) // 5)


def branch_on_values(_: Mixer, x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def bessel(_: Mixer, x: Tensor) -> Tensor:
    y: Tensor = torch.special.bessel_j0(x)
    return y


def test_the_graph_is_valid_at_the_opset_on_its_label() -> None:
    """PyTorch labels what it emits for opset 26 to 28 as 18; ours passes the full checker at 27."""
    model = trace(source(attend)).model

    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert dict(model.opset_imports) == {"": 27}
    assert [node.op_type for node in model.graph].count("Attention") == 1


def test_initializers_are_the_parameters_and_buffers_themselves() -> None:
    """No weight is renamed, transposed, or merged with an equal one; unused ones are told."""
    origin = source(attend)
    traced = trace(origin)

    state = {**dict(origin.module.named_parameters()), **dict(origin.module.named_buffers())}
    used = {name: w for name, w in state.items() if "places" not in name and "layers.0" not in name}
    used |= {name: w for name, w in state.items() if "layers.0.linear" in name}
    assert set(traced.model.graph.initializers) == set(used)
    for name, value in traced.model.graph.initializers.items():
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), used[name].numpy())
    assert any("layers.1.places.weight" in note for note in traced.notes)


def test_tied_weights_keep_the_first_name() -> None:
    """One initializer under the name that PyTorch lists first, and an alias for the other."""
    traced = trace(source())

    assert traced.aliases == {"head.weight": "embed.weight"}
    assert "embed.weight" in traced.model.graph.initializers
    assert "head.weight" not in traced.model.graph.initializers


@pytest.mark.parametrize("forward", [attend, grouped], ids=["equal_heads", "grouped_heads"])
def test_free_dimensions_are_called_batch_and_time(forward: Forward) -> None:
    """Inputs, outputs and every value between are sized in these two symbols."""
    graph = trace(source(forward)).model.graph

    assert graph.inputs[0].shape == ir.Shape(["batch", "time"])
    assert graph.outputs[0].shape == ir.Shape(["batch", "time", VOCABULARY])
    symbols = {
        str(dim)
        for node in graph
        for value in node.outputs
        for dim in value.shape or ()
        if not isinstance(dim, int)
    }
    assert symbols == {"batch", "time"}


def test_nodes_know_their_module_and_nothing_local() -> None:
    """The module path is the only metadata; no file of this machine is in the model."""
    model = trace(source(attend)).model

    attention = next(node for node in model.graph if node.op_type == "Attention")
    assert module_of(attention) == "layers.1"
    assert "layers.1.linear" in {module_of(node) for node in model.graph}
    assert all(set(node.metadata_props) <= {MODULE} for node in model.graph)
    text = ir.to_proto(model).SerializeToString()
    assert b".py" not in text
    assert b"pkg.torch" not in text


def test_two_traces_are_equal_byte_for_byte() -> None:
    """Nothing of the process, such as counters or paths, enters the model."""
    first, second = (ir.to_proto(trace(source(attend)).model) for _ in range(2))

    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_a_custom_op_is_one_standard_node() -> None:
    """`LinearAttention` stands in the standard's domain, and runs with the module's result."""
    origin = source(gated)
    model = trace(origin).model

    node = next(node for node in model.graph if node.op_type == "LinearAttention")
    assert (node.domain, module_of(node)) == ("", "layers.1")
    assert dict(model.opset_imports) == {"": 27}
    inputs = origin.random_inputs(2, 9, 1)
    found = evaluate.run(model, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(
        found["logits"], origin.module(**inputs).numpy(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (loop_that_looks_ahead, "turns the time into the constant 7"),
        (as_integer, "turns the time into the constant 7"),
        (chunks_that_look_ahead, "chunks of 4 tokens and looks ahead"),
        (long_calls_differ, "a time of at most 10"),
        (short_calls_differ, "a time of at least 5"),
        (single_token_differs, "on 1 rows of 1"),
        (single_row_differs, "on 1 rows of 1"),
        (odd_length_differs, "on 2 rows of 138"),
        (branch_on_values, "depends on the values of tensors"),
        (bessel, "prims.bessel_j0.default"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_one_graph_cannot_hold_is_refused_by_module(
    forward: Forward, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names the module and what it did; PyTorch's own noise stays off the terminal."""
    with pytest.raises(TraceError) as caught:
        trace(source(forward))

    message = str(caught.value)
    assert "odule 'layers.1'" in message
    assert words in message
    assert len(message) < 500
    assert capfd.readouterr() == ("", "")


def test_nan_that_a_maximum_of_onnx_runtime_passes_over_is_told_as_that() -> None:
    def share(_: Mixer, x: Tensor) -> Tensor:
        return (x.relu() / x.relu()).amax(-1, keepdim=True)

    with pytest.raises(TraceError, match=r"PyTorch gives NaN in \d+ of \d+ places of 'logits'"):
        trace(source(share))


def test_an_error_of_control_flow_names_the_line() -> None:
    """The user's own line is found among those of PyTorch."""
    line = branch_on_values.__code__.co_firstlineno + 1
    with pytest.raises(TraceError, match=rf"\(test_trace.py:{line}\)"):
        trace(source(branch_on_values))


def test_tracing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """PyTorch's exporter logs and warns about itself; none of it reaches the user."""
    trace(source(attend))

    assert capfd.readouterr() == ("", "")


def test_gates_far_below_zero_are_traced_as_they_are() -> None:
    """Trained gates reach logits of -1000, where PyTorch's Log(Sigmoid(x)) is -inf."""

    def gate(_: Mixer, x: Tensor) -> Tensor:
        return F.logsigmoid(1000 * x).clamp(min=-300.0) + F.logsigmoid(1000 * x) / 1000

    assert trace(source(gate)).model.graph.num_nodes()


def test_a_sliced_table_limits_the_context() -> None:
    """A table of 160 rows, sliced to T, is a limit of the model; without one there is none."""
    assert trace(source(attend)).max_context == 160
    assert trace(source()).max_context is None


def test_a_table_of_three_axes_that_others_read_limits_the_context() -> None:
    """What is left of a slice beyond its end is shorter, as kernels are that are padded again."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.Module()
            self.held.register_buffer("places", torch.randn(1, 50, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            time = x.shape[1]
            rows = self.held.get_buffer("places")[:, :time]
            return x + F.pad(rows, (0, 0, 0, time))[:, :time]

    assert trace(load_source(Padded(), inputs={"x": torch.randn(2, 7, WIDTH)})).max_context == 50


def test_slices_that_leave_less_than_the_time_hold_for_shorter_ones() -> None:
    """PyTorch keeps apart a slice that has one entry left, which is no other program here."""

    def moved(_: Mixer, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 3:, :2] = x[:, :-3, :2]
        return y

    assert trace(source(moved)).model.graph.num_nodes()


def test_a_table_that_would_grow_limits_the_context() -> None:
    """As sinusoids are kept that a longer sequence has made anew."""

    def grow(mixer: Mixer, x: Tensor) -> Tensor:
        longer = x.shape[1] > mixer.table.shape[0]
        table = torch.cat([mixer.table, mixer.table]) if longer else mixer.table
        return x + table[: x.shape[1]]

    assert trace(source(grow)).max_context == 160


def test_a_gathered_table_is_no_reason_to_refuse() -> None:
    """The module itself fails past an embedding of positions: that is not a frozen graph."""

    def gather(mixer: Mixer, x: Tensor) -> Tensor:
        small = mixer.places.weight[:20]
        return x + F.embedding(torch.arange(x.shape[1]), small)

    assert trace(source(gather)).max_context is None


def test_a_model_that_cannot_take_one_token_is_refused() -> None:
    """A step engine runs token by token, which such a model cannot."""

    def unpadded(_: Mixer, x: Tensor) -> Tensor:
        y = F.avg_pool1d(x.transpose(1, 2), 2, 1)
        return F.pad(y, (1, 0)).transpose(1, 2)

    with pytest.raises(TraceError, match="fails on 1 rows of 1"):
        trace(source(unpadded))


@pytest.mark.parametrize(("batch", "time", "symbol"), [(1, 7, "batch"), (3, 1, "time")])
def test_an_example_of_size_one_is_refused(batch: int, time: int, symbol: str) -> None:
    """PyTorch would freeze it into the graph without a word."""
    origin = source()
    draw = origin.sample
    one = {"batch": batch, "time": time}
    object.__setattr__(origin, "sample", lambda _, seed: draw(one, seed))

    with pytest.raises(TraceError, match=f"'input_ids' has the shape .* its {symbol} should be"):
        trace(origin)


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (lambda x, _: x, ["logits"]),
        (lambda _, y: y, ["output"]),
        (lambda x, y: {"a": x, "b": y, "c": None}, ["a", "b"]),
        (lambda x, y: (x, y), ["output_0", "output_1"]),
        (lambda x, _: (x, None), ["logits"]),
        (lambda x, _: {"a": x, "again": x}, ["a", "again"]),
    ],
    ids=["logits", "output", "dict", "tuple", "one_of_tuple", "same_twice"],
)
def test_outputs_are_named(returned: Any, names: list[str]) -> None:
    """By their keys, by their place, or by what a single one is."""

    class Returning(Model):
        def forward(self, input_ids: Tensor) -> Any:
            return returned(super().forward(input_ids), self.embed(input_ids))

    model = trace(source_of(Returning(lambda _, x: x))).model

    assert [output.name for output in model.graph.outputs] == names
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.5, training=True),
        lambda x: x * torch.rand_like(x),
        lambda x: x + torch.randn(x.shape[-1]),
        lambda x: torch.bernoulli(x.sigmoid()),
    ],
    ids=["dropout", "uniform", "normal", "bernoulli"],
)
def test_what_draws_random_numbers_is_refused(draw: Any) -> None:
    """With its module; no two calls would give the same."""
    with pytest.raises(TraceError, match=r"draws random numbers.*in eval mode"):
        trace(source_of(Model(lambda _, x: draw(x))))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    """Tensors that are nested are numbered; what is none has no place in a graph."""

    class Nested(Model):
        def forward(self, input_ids: Tensor) -> Any:
            return {"logits": super().forward(input_ids), "states": [len(input_ids.shape)]}

    with pytest.raises(TraceError, match="'states_0' is int"):
        trace(source_of(Nested(lambda _, x: x)))
