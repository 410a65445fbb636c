"""The reference stream: the source's outputs, and its states as they follow from its operators."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import ParityError, SourceError
from intaglio.exporter.proving.caught_calls import CATCHES
from intaglio.exporter.proving.reference import Reference, reference
from intaglio.exporter.sources.examples import guess_specs
from intaglio.exporter.sources.input_spec import sampler
from intaglio.exporter.sources.source import Source
from intaglio.ops import OPS, diagonal_ssm, linear_attention
from intaglio.ops.op import Op
from intaglio.state import BATCH, CAPACITY, Layout, StateSpec

BATCH_SIZE, STEPS, WIDTH, HEADS, GROUPS, SIZE, KERNEL = 2, 70, 8, 4, 2, 2, 4


class Attention(nn.Module):
    """Grouped heads, repeated before attention; the keys are scaled by position."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(WIDTH, GROUPS * SIZE)

    def keys(self, x: Tensor) -> Tensor:
        place = torch.arange(1, x.shape[1] + 1)[:, None]
        k: Tensor = self.key(x).unflatten(-1, (GROUPS, SIZE)).transpose(1, 2)
        return k * place

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(*x.shape[:2], HEADS, SIZE).transpose(1, 2)
        k = self.keys(x).repeat_interleave(HEADS // GROUPS, 1)
        y = F.scaled_dot_product_attention(query=q, key=k, value=2 * k, is_causal=True)
        again = F.scaled_dot_product_attention(q, 3 * k, k, is_causal=True)
        return (y + again).transpose(1, 2).flatten(2)


class Recurrent(nn.Module):
    """A short convolution in one of two spellings, then linear attention."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded = padded
        zeros = 0 if padded else KERNEL - 1
        self.conv = nn.Conv1d(WIDTH, WIDTH, KERNEL, groups=WIDTH, padding=zeros)

    def mixed(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2)
        y = F.pad(y, (KERNEL - 1, 0)) if self.padded else y
        mixed: Tensor = self.conv(y)[..., : x.shape[1]].transpose(1, 2)
        return mixed

    def decay(self, x: Tensor) -> Tensor:
        return F.logsigmoid(x[..., :GROUPS])

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixed(x)
        out, _ = linear_attention(
            y, y, y, None, self.decay(x), update_rule="gated", q_num_heads=2, kv_num_heads=GROUPS
        )
        return out


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList([Attention(), Recurrent(padded=True), Recurrent(padded=False)])

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return x

    def inputs_of(self, index: int, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids)
        for layer in list(self.layers)[:index]:
            x = x + layer(x)
        return x


def source_of(module: nn.Module) -> Source:
    return Source(
        path=Path("model.pt"),
        name="model",
        format="test",
        sha256="",
        model="test",
        config={},
        body=module.eval().requires_grad_(False),
        dynamic={"input_ids": {0: "batch", 1: "time"}},
        aliases={},
        sample=sampler(guess_specs(module, "the test")),
    )


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return source_of(Model())


@pytest.fixture(scope="module")
def found(source: Source) -> Reference:
    return reference(source, source.random_inputs(BATCH_SIZE, STEPS, 0))


def double(source: Source) -> tuple[Model, Tensor]:
    """The module in float64 and the token ids of the reference."""
    torch.manual_seed(0)
    module = Model().double().eval().requires_grad_(False)
    return module, source.random_inputs(BATCH_SIZE, STEPS, 0)["input_ids"]


def spec(
    op: str,
    port: str,
    module: str,
    shape: tuple[int | str, ...],
    layout: Layout,
    *,
    call: int = 0,
    window: int | None = None,
) -> StateSpec:
    return StateSpec(
        input=f"past.0.{port}",
        output=f"present.0.{port}",
        dtype="float32",
        shape=shape,
        layout=layout,
        axis=2,
        op=op,
        port=port,
        module=module,
        layer=0,
        call=call,
        window=window,
    )


CACHE = (BATCH, GROUPS, CAPACITY, SIZE)


def test_outputs_are_those_of_the_module_in_float64(source: Source, found: Reference) -> None:
    """All but the last digits, of sums in another order: float32 would differ at 1e-7."""
    module, ids = double(source)

    assert found.precision == "float64"
    np.testing.assert_allclose(found.outputs["output"], module(ids).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 5, STEPS])
@pytest.mark.parametrize("layout", [Layout.STATIC, Layout.GROW])
def test_a_cache_holds_the_unrepeated_keys_of_the_tokens(
    source: Source, found: Reference, tokens: int, layout: Layout
) -> None:
    """As many heads as the state has, positions applied, exactly the tokens consumed."""
    module, ids = double(source)
    attention = module.layers[0]
    assert isinstance(attention, Attention)
    keys = attention.keys(module.embed(ids))[:, :, :tokens].numpy()

    for port, factor in (("key", 1), ("value", 2)):
        state = found.state(spec("attention", port, "layers.0", CACHE, layout), tokens)
        assert state is not None
        np.testing.assert_allclose(state, factor * keys, rtol=1e-12)


def test_calls_within_a_module_are_told_apart(found: Reference) -> None:
    """The second call of attention has keys three times those of the first."""
    first, second = (
        found.state(spec("attention", "key", "layers.0", CACHE, Layout.GROW, call=call), 9)
        for call in (0, 1)
    )

    assert first is not None
    assert second is not None
    np.testing.assert_allclose(second, 3 * first, rtol=1e-12)


@pytest.mark.parametrize("tokens", [1, 4, 5, 30])
def test_a_window_holds_the_last_entries_after_zeros(found: Reference, tokens: int) -> None:
    """Its w - 1 places are right-aligned."""
    window = 6
    whole = found.state(spec("attention", "key", "layers.0", CACHE, Layout.GROW), tokens)
    shape = (BATCH, GROUPS, window - 1, SIZE)
    state = found.state(
        spec("attention", "key", "layers.0", shape, Layout.WINDOW, window=window), tokens
    )

    assert whole is not None
    assert state is not None
    kept = min(tokens, window - 1)
    np.testing.assert_array_equal(state[:, :, window - 1 - kept :], whole[:, :, tokens - kept :])
    assert not state[:, :, : window - 1 - kept].any()


@pytest.mark.parametrize(("index", "tokens"), [(1, 1), (1, 2), (2, 2), (2, STEPS)])
def test_a_convolution_keeps_its_last_inputs(
    source: Source, found: Reference, index: int, tokens: int
) -> None:
    """Whether the module pads before it or the convolution pads both sides."""
    module, ids = double(source)
    inputs = F.pad(module.inputs_of(index, ids).transpose(1, 2), (KERNEL - 1, 0))
    shape = (BATCH, WIDTH, KERNEL - 1)
    state = found.state(
        spec("causal_conv", "conv", f"layers.{index}.conv", shape, Layout.CONV), tokens
    )

    assert state is not None
    expected = inputs[..., tokens : tokens + KERNEL - 1].numpy()
    np.testing.assert_allclose(state, expected, rtol=1e-12, atol=1e-14)


def test_linear_attention_states_follow_its_recurrence(source: Source, found: Reference) -> None:
    """S_t = exp(g_t) S_(t-1) + k_t v_t^T, asked for in any order of steps."""
    module, ids = double(source)
    layer = module.layers[1]
    assert isinstance(layer, Recurrent)
    x = module.inputs_of(1, ids)
    k = layer.mixed(x).view(BATCH_SIZE, STEPS, GROUPS, -1)
    gate = layer.decay(x).exp()
    state, states = torch.zeros(BATCH_SIZE, GROUPS, 4, 4, dtype=torch.float64), {}
    for t in range(STEPS):
        state = gate[:, t, :, None, None] * state + k[:, t, :, :, None] * k[:, t, :, None]
        states[t + 1] = state
    wanted = spec(
        "linear_attention", "recurrent", "layers.1", (BATCH, GROUPS, 4, 4), Layout.RECURRENT
    )

    for tokens in (63, 1, STEPS, 64):
        got = found.state(wanted, tokens)
        assert got is not None
        np.testing.assert_allclose(got, states[tokens].numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "op", [pytest.param(op, id=op.name) for op in OPS if op.torch_op and op.signature.states]
)
def test_states_follow_from_the_arguments_of_every_operator(op: Op) -> None:
    """After any tokens, whatever the order they are asked for; states that are not its own, never.

    Those along time are cut at its axes, and the others, B and C of one system for all, are not.
    """
    _, catch = CATCHES[op.torch_op]
    outputs = [formal.name for formal in op.signature.outputs]
    for sample in op.samples(torch.float64):
        call = catch(**sample)
        axes = {n: op.signature.formal(n).time(sample) for n in op.inputs if n in sample}
        timed = {name: axis for name, axis in axes.items() if axis is not None}
        length = next(sample[name].shape[axis] for name, axis in timed.items())
        for state in op.signature.states:
            place = outputs.index(state.present)
            for tokens in sorted({length, 1, length // 2 or 1}, reverse=True):
                cut = {name: sample[name].narrow(axis, 0, tokens) for name, axis in timed.items()}
                shape = tuple(op.reference(**sample)[place].shape)
                got = call.state(spec(op.name, state.port, "", shape, Layout.RECURRENT), tokens)
                assert got is not None
                torch.testing.assert_close(got, op.reference(**{**sample, **cut})[place])
            assert call.state(spec(op.name, "another", "", shape, Layout.RECURRENT), 1) is None


@pytest.mark.parametrize("lti", [False, True])
def test_states_of_a_diagonal_ssm_follow_its_recurrence(lti: bool) -> None:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t, with B of each token or one for all."""

    class Scan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, WIDTH)
            self.A = nn.Parameter(-torch.rand(WIDTH, SIZE))
            self.B = nn.Parameter(torch.randn(WIDTH, SIZE))

        def forward(self, input_ids: Tensor) -> Tensor:
            x = self.embed(input_ids)
            mixing = self.B if lti else x[..., :SIZE]
            y, _ = diagonal_ssm(x, self.A, mixing, mixing, x.exp(), lti=lti)
            return y

    torch.manual_seed(0)
    origin = source_of(Scan())
    inputs = origin.random_inputs(BATCH_SIZE, 9, 0)
    found = reference(origin, inputs)
    module: Any = copy.deepcopy(origin.module).double()
    x = module.embed(inputs["input_ids"])
    state = torch.zeros(BATCH_SIZE, WIDTH, SIZE, dtype=torch.float64)
    for t in range(4):
        dt = x[:, t, :, None].exp()
        write = module.B if lti else x[:, t, None, :SIZE]
        state = (dt * module.A).exp() * state + dt * x[:, t, :, None] * write
    wanted = spec("diagonal_ssm", "recurrent", "", (BATCH, WIDTH, SIZE), Layout.RECURRENT)

    got = found.state(wanted, 4)
    assert got is not None
    np.testing.assert_allclose(got, state.numpy(), rtol=1e-10, atol=1e-12)


def test_a_state_that_the_source_never_calls_is_unknown(found: Reference) -> None:
    """Another module, operator or call gives no state rather than a wrong one."""
    for op, module, call in (
        ("attention", "layers.1", 0),
        ("attention", "layers.0", 2),
        ("causal_conv", "layers.0", 0),
    ):
        wanted = spec(op, "key", module, CACHE, Layout.STATIC, call=call)
        assert found.state(wanted, 3) is None


def test_a_state_of_another_shape_is_refused(found: Reference) -> None:
    """Heads that are no repetition, or a size that differs, mean another model."""
    for shape in ((BATCH, 1, CAPACITY, SIZE), (BATCH, GROUPS, CAPACITY, SIZE + 1)):
        with pytest.raises(ParityError, match=r"'layers\.0'"):
            found.state(spec("attention", "key", "layers.0", shape, Layout.STATIC), 3)


def test_a_module_that_fixes_its_dtype_runs_as_it_is() -> None:
    """Its reference is in float32, and says so."""

    class Fixed(Model):
        def forward(self, input_ids: Tensor) -> Any:
            return F.linear(super().forward(input_ids), torch.eye(WIDTH, dtype=torch.float32))

    torch.manual_seed(0)
    origin = source_of(Fixed())
    inputs = origin.random_inputs(BATCH_SIZE, 5, 0)
    result = reference(origin, inputs)

    assert result.precision == "float32"
    np.testing.assert_array_equal(result.outputs["output"], origin.module(**inputs).numpy())
    assert result.cause.startswith("in float64 it raised RuntimeError: ")


def test_a_module_that_takes_fewer_tokens_is_refused_with_what_it_said() -> None:
    """Positions counted from the end of a table, which no index tells the length of."""

    class Short(Model):
        def forward(self, input_ids: Tensor) -> Any:
            if input_ids.shape[1] > 5:
                raise IndexError("index out of range in self")
            return super().forward(input_ids)

    origin = source_of(Short())
    assert reference(origin, origin.random_inputs(1, 5, 0)).outputs
    with pytest.raises(SourceError, match=r"1 rows of 6 tokens .*out of range in self.*--axes"):
        reference(origin, origin.random_inputs(1, 6, 0))


def test_a_module_that_casts_to_single_precision_says_so() -> None:
    """It runs in float64 without a word, and what it gives is of float32 all the same."""

    class Casting(Model):
        def forward(self, input_ids: Tensor) -> Any:
            return super().forward(input_ids).float()

    torch.manual_seed(0)
    origin = source_of(Casting())
    result = reference(origin, origin.random_inputs(BATCH_SIZE, 5, 0))

    assert (result.precision, result.cause) == ("float32", "it casts to float32 itself")
