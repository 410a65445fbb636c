"""Python loops over tokens become scans whose states are carried, or are refused by what parts."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import PassError, TraceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.loops.loop_streams import PartedError
from intaglio.exporter.tracing.loops.roll import roll
from intaglio.exporter.tracing.trace import trace
from intaglio.passes import pipeline, stepping
from intaglio.passes.base import Context

SIZE = 4
rolling = sys.modules[roll.__module__]
Forward = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """What the loops of these tests compute with."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 2 * SIZE)
        self.cells = nn.ModuleList([nn.LSTMCell(SIZE, SIZE), nn.LSTMCell(SIZE, SIZE)])
        self.start, self.table = nn.Parameter(torch.randn(1, SIZE)), nn.Embedding(40, SIZE)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def source_of(forward: Forward) -> Source:
    torch.manual_seed(0)
    return load_source(Net(forward), inputs={"x": np.zeros((2, 5, SIZE), np.float32)})


def cells(net: Net, x: Tensor) -> Tensor:
    """Two cells in each iteration, written into a buffer."""
    states: list[Any] = [None, None]
    y = torch.empty_like(x)
    for t, token in enumerate(x.unbind(1)):
        h = token
        for i, cell in enumerate(net.cells):
            states[i] = cell(h, states[i])
            h = states[i][0]
        y[:, t] = h
    return y


def peeled(net: Net, x: Tensor) -> Tensor:
    """The first token is handled for itself, the second looks back by one, the others by two."""
    out: list[Tensor] = []
    for t in range(x.shape[1]):
        h = net.w(x[:, t])
        if t > 0:
            h = h + 0.5 * out[-1]
        if t > 1:
            h = h - 0.3 * out[-2]
        out.append(h)
    return torch.stack(out, 1)


def placed(net: Net, x: Tensor) -> Tensor:
    """The position counts, and is looked up; the state starts from a parameter."""
    h, out = net.start.expand(x.shape[0], -1), x[:, :0]
    for t in range(x.shape[1]):
        gate, write = net.u(h).chunk(2, 1)
        place = net.table(torch.tensor([t])) + net.table(torch.arange(t, t + 1))
        place = place + net.table.weight[torch.full((x.shape[0],), t)] - net.table(torch.tensor(t))
        h = gate.sigmoid() * h + (x[:, t] + place - net.table.weight[t]) / (t + 1) + write
        out = torch.cat([out, h[:, None]], 1)
    return out


def led(net: Net, x: Tensor) -> Tensor:
    """The state starts from the first token, and is read before it changes."""
    h, out = net.w(x[:, 0]), []
    for t in range(x.shape[1]):
        out.append(torch.relu(h) * 2)
        h = 0.7 * h + x[:, t]
    return torch.stack(out, 1)


def test_loops_of_several_kinds_are_stepped() -> None:
    """In one model, they are one; every split gives what the module gives, at any length."""
    source = source_of(lambda net, x: led(net, placed(net, peeled(net, cells(net, x)))))
    model = trace(source).model
    context = Context()
    pipeline.run(model, pipeline.standard(), context)

    scans = [node for node in model.graph if node.op_type == "Scan"]
    assert len(scans) == 1
    assert context.max_context == 40
    # h and c of two cells; two results back; h, not the gates of it; what `led` gives and keeps,
    # and, since it is read before it changes, what it kept one token ago.
    entries = sum(int(np.prod([d for d in s.shape if isinstance(d, int)])) for s in context.states)
    assert entries == (4 + 2 + 1 + 3) * SIZE
    inputs = source.random_inputs(3, 23, 1)
    wanted = source.module(**inputs).detach().numpy()
    for parts in ([23], [1] * 23, [2, 20, 1]):
        arrays = {name: value.numpy() for name, value in inputs.items()}
        found = stepping.roll(model, context.states, arrays, parts)
        np.testing.assert_allclose(found["output"], wanted, rtol=1e-5, atol=2e-5)


def filtered(net: Net, x: Tensor) -> Tensor:
    """What no token flows into is carried as well: the covariance of a filter, and its gain."""
    a, out = 0.9 * net.w.weight, []
    m, p = torch.zeros_like(x[:, 0]), torch.eye(SIZE).expand(x.shape[0], SIZE, SIZE)
    for t in range(x.shape[1]):
        p = a @ p @ a.T + torch.eye(SIZE)
        gain = p / (p + 2)
        m = m + (gain @ (x[:, t] - m)[..., None])[..., 0]
        p = p - gain * p
        out.append(m)
    return torch.stack(out, 1)


def test_what_depends_on_no_token_is_carried_where_it_follows_from_itself() -> None:
    source = source_of(filtered)
    model, context = trace(source).model, Context()
    pipeline.run(model, pipeline.standard(), context)
    inputs = source.random_inputs(3, 12, 1)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    found = stepping.roll(model, context.states, arrays, [1, 2, 9])
    wanted = source.module(**inputs).detach().numpy()
    np.testing.assert_allclose(found["output"], wanted, rtol=1e-5, atol=2e-5)
    assert {state.shape[1:] for state in context.states} == {(SIZE,), (SIZE, SIZE)}


def counted(net: Net, x: Tensor) -> Tensor:
    """No loop, but sizes that Python was asked for; transforms as long as something else is."""
    places = torch.arange(len(x[0]))
    later = torch.ones(len(places), len(places)).triu(1).bool()
    weights = (net.w(x) @ x.mT).masked_fill(later, -torch.inf).softmax(-1)
    y: Tensor = weights @ net.u(x) + places[:, None]
    return y


def test_sizes_that_python_was_asked_for_grow_with_the_tokens() -> None:
    source = source_of(counted)
    program = roll(source)
    assert program is not None
    inputs = source.random_inputs(3, 23, 0)
    torch.testing.assert_close(program.module()(**inputs), (source.module(**inputs),))
    assert roll(source_of(lambda net, x: net.w(x) * (len(x[0]) // 5))) is None


def left(net: Net, x: Tensor) -> Any:
    """A head on what is carried, beside the state of a cell, the results and the last of them."""
    h, c = [torch.zeros(x.shape[0], SIZE)] * 2
    top, out = h, []
    for t in range(x.shape[1]):
        h, c = net.cells[0](x[:, t] / (t + 1), (h, c))
        top = torch.maximum(0.5 * top, net.w(h)) if t else net.w(h)
        out.append(h + top)
    return net.u(top), c * net.w(x)[:, t], torch.stack(out, 1), out[-1]


def test_what_is_left_after_the_last_token_is_what_shorter_inputs_leave() -> None:
    source = source_of(left)
    model, context = trace(source).model, Context()
    pipeline.run(model, pipeline.standard(), context)

    inputs = source.random_inputs(3, 9, 1)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    shorter = [source.module(inputs["x"][:, :end]) for end in range(1, 10)]
    found = stepping.roll(model, context.states, arrays, [2, 6, 1])
    for index, name in enumerate(value.name for value in model.graph.outputs[:4]):
        ends = [each[index] if index != 2 else each[index][:, -1] for each in shorter]
        wanted = torch.stack(ends, 1).detach().numpy()
        np.testing.assert_allclose(found[str(name)], wanted, rtol=1e-5, atol=2e-6)


def test_what_is_left_by_iterations_that_are_not_alike_is_refused() -> None:
    """The first token as the last, and every second one handled in another way."""

    def walked(order: Callable[[int], int], odd: float) -> Forward:
        def forward(net: Net, x: Tensor) -> Any:
            h = torch.zeros(x.shape[0], SIZE)
            for t in range(x.shape[1]):
                h = net.w(x[:, order(t)]) + (torch.relu(h) if t % 2 else odd * h)
            return net.w(h)

        return forward

    for forward in (walked(lambda t: -1 - t, 1.0), walked(lambda t: t, 0.5)):
        with pytest.raises(PartedError, match=r"number of tokens, at|does not repeat itself"):
            roll(source_of(forward))


def body(step: Callable[[Net, Tensor, int, Tensor], Any]) -> Forward:
    def forward(net: Net, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[0], SIZE), []
        for t in range(x.shape[1]):
            h = step(net, x, t, h)
            out.append(h)
        return torch.stack(out, 1)

    return forward


def discounted(_: Net, x: Tensor, t: int, h: Tensor) -> Any:
    return h + (x[:, : t + 1] * 0.9 ** torch.arange(t, -1, -1).view(1, -1, 1)).sum(1)


def squared(_: Net, x: Tensor, t: int, h: Tensor) -> Any:
    return h + (x[:, : t + 1] * torch.ones(t + 1, t + 1).tril().sum(0)[:, None]).sum(1)


def ahead(net: Net, x: Tensor, t: int, h: Tensor) -> Any:
    return h + net.w(x[:, t]) + (x[:, t + 1] if t + 1 < x.shape[1] else 0)


def fourth(net: Net, x: Tensor, t: int, h: Tensor) -> Any:
    return net.w(x[:, t]) + h if t != 3 else net.w(x[:, t])


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (ahead, "looks ahead: what it gives for token 0 depends on token 1"),
        (fourth, "iterations 3 and 4 part at aten.add"),
        (
            lambda net, x, t, h: h + net.w(x[:, t]) * 0.9**t,
            "aten.mul.Tensor with a number that grows",
        ),
        (lambda net, x, t, h: h + net.w(x[:, t]) / x.shape[1], "computes with the number of tok"),
        (lambda _, x, t, h: h + x[:, : t + 1].std(1), "through aten.std"),
        (lambda _, x, t, h: h + x[:, : min(t + 2, x.shape[1])].sum(1), "looks ahead"),
        (discounted, "reads all tokens of 'x' at one of its first iterations"),
        (lambda _, x, t, h: h + x[:, 1 : t + 1].sum(1), "from token 1 on, without the first"),
        (squared, "only one axis may grow"),
    ],
    ids=[
        "ahead",
        "fourth",
        "powers",
        "length",
        "prefix",
        "prefix ahead",
        "discounted",
        "first",
        "square",
    ],
)
def test_what_does_not_repeat_itself_is_refused(step: Any, words: str) -> None:
    """With the iterations that part, or with what looks ahead."""
    with pytest.raises(PartedError, match=words):
        roll(source_of(body(step)))


def heads(net: Net, x: Tensor) -> Tensor:
    """Keys and values of two heads, joined to those of earlier tokens."""
    past, out = None, []
    for t in range(x.shape[1]):
        q, k = (z.view(-1, 1, 2, 2).transpose(1, 2) for z in net.u(x[:, t : t + 1]).chunk(2, -1))
        past = k if past is None else torch.cat([past, k], 2)
        seen = nn.functional.scaled_dot_product_attention(q, past, past)
        out.append(seen.transpose(1, 2).reshape(-1, 1, SIZE))
    return torch.cat(out, 1)


def remembered(net: Net, x: Tensor) -> Tensor:
    """A state attends to earlier ones, time first; what it finds is given, and goes no farther."""
    h, states, out = torch.zeros_like(x[:, 0]), [], []
    for t in range(x.shape[1]):
        h = torch.tanh(net.w(x[:, t]) + h)
        states.append(h)
        past = torch.stack(states)
        score = (past * net.w(h)).sum(-1) - 0.3 * torch.arange(t, -1, -1)[:, None]
        found = (score.softmax(0)[..., None] * past).sum(0) + past.amax(0) / (t + 1)
        out.append(torch.cat([h, found], -1))
    return torch.stack(out, 1)


@pytest.mark.parametrize("forward", [heads, remembered])
def test_iterations_that_compute_over_all_tokens_before_are_one_computation(
    forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of tokens; what leads to the sums is a loop of its own, or none."""
    monkeypatch.setattr(rolling, "FAR", (139,))  # a loop over 4,099 tokens takes seconds
    source = source_of(forward)
    program = roll(source)
    assert program is not None
    for time in (1, 2, 3, 11):
        inputs = source.random_inputs(3, time, time)
        found, *_ = program.module()(**inputs)
        torch.testing.assert_close(found, source.module(**inputs))


def test_a_list_that_is_kept_backwards_is_refused() -> None:
    """Its entries are those of other tokens at each iteration."""

    def newest_first(_: Net, x: Tensor) -> Tensor:
        past: list[Tensor] = []
        out = []
        for token in x.unbind(1):
            past.insert(0, token)
            out.append((torch.stack(past, 1) * torch.arange(1.0, len(past) + 1)[:, None]).sum(1))
        return torch.stack(out, 1)

    with pytest.raises(PartedError, match="append each to its end"):
        roll(source_of(newest_first))


def test_a_state_that_follows_from_what_it_found_in_earlier_ones_is_refused() -> None:
    """Its list would have to grow within the loop."""

    def attended(net: Net, x: Tensor) -> Tensor:
        states = [torch.zeros_like(x[:, 0])]
        for t in range(x.shape[1]):
            past = torch.stack(states, 1)
            weights = (past * net.w(x[:, t])[:, None]).sum(-1, keepdim=True).softmax(1)
            states.append(torch.tanh(x[:, t] + (weights * past).sum(1)))
        return torch.stack(states[1:], 1)

    with pytest.raises(PartedError, match="would grow within the loop"):
        roll(source_of(attended))


def test_a_refusal_says_both_what_froze_and_why() -> None:
    """The module and the number of tokens first; a loop backwards gives later tokens first."""

    def backwards(net: Net, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[0], SIZE), []
        for token in reversed(x.unbind(1)):
            h = torch.tanh(net.w(token) + h)
            out.append(h)
        return torch.stack(out[::-1], 1)

    with pytest.raises(TraceError, match=r"into the constant 7.*rolled up, since it looks ahead"):
        trace(source_of(backwards))


def test_a_window_that_is_longer_than_what_was_unrolled_is_found_out() -> None:
    """Its first tokens are left out from token 201 on, which no program of a few tokens shows."""

    def windowed(_: Net, x: Tensor) -> Tensor:
        out = [x[:, max(0, t - 200) : t + 1].mean(1) for t in range(x.shape[1])]
        return torch.stack(out, 1)

    with pytest.raises(TraceError, match="does something else where there are 302 tokens"):
        trace(source_of(windowed))


def test_rows_that_are_mixed_in_a_loop_are_refused() -> None:
    """A mean over the batch would make each row depend on its neighbours."""
    source = source_of(body(lambda net, x, t, h: net.w(x[:, t]) + h.mean(0)))

    with pytest.raises(PassError, match=r"ReduceMean .* mixes the rows"):
        pipeline.run(trace(source).model, pipeline.standard(), Context())


def merged(net: Net, x: Tensor, order: Any) -> Tensor:
    """Heads are merged with the batch before the loop and parted after it."""
    b, time, _ = x.shape
    gates = net.w(x).sigmoid().view(b, time, 2, 2).permute(*order, 1, 3).reshape(2 * b, time, 2)
    h, out = torch.zeros(2 * b, 2), []
    for t in range(time):
        h = torch.tanh(gates[:, t] - h)
        out.append(h)
    y = torch.stack(out, 1).view(*((b, 2) if order[0] == 0 else (2, b)), time, 2)
    return y.permute(*(order.index(a) for a in (0, 2)), 2, 3).transpose(1, 2).reshape(b, time, SIZE)


def test_heads_behind_their_row_are_carried_with_it() -> None:
    source = source_of(lambda net, x: merged(net, x, (0, 2)))
    model, context = trace(source).model, Context()
    pipeline.run(model, pipeline.standard(), context)

    assert [spec.shape for spec in context.states] == [("batch", 2, 2)]
    inputs = {name: value.numpy() for name, value in source.random_inputs(3, 9, 1).items()}
    wanted = source.module(torch.from_numpy(inputs["x"])).detach().numpy()
    for parts in ([9], [1, 5, 3]):
        found = stepping.roll(model, context.states, inputs, parts)
        np.testing.assert_allclose(found["output"], wanted, rtol=1e-5, atol=2e-6)


def test_rows_behind_their_heads_are_refused() -> None:
    """What is carried could not be told apart by rows."""
    model = trace(source_of(lambda net, x: merged(net, x, (2, 0)))).model
    with pytest.raises(PassError, match="from its own inputs alone"):
        pipeline.run(model, pipeline.standard(), Context())


class Capital(Net):
    """PyTorch's exporter calls the input `x`; it is returned beside what a loop makes of it."""

    def forward(self, X: Tensor) -> Any:
        return self.run(self, X), X


def test_an_input_with_a_capital_is_rolled_up() -> None:
    """By its own name, with its free axes; any number of rows."""
    source = load_source(
        Capital(body(lambda net, x, t, h: net.w(x[:, t]) + h)),
        inputs={"X": np.zeros((2, 5, SIZE), np.float32)},
    )
    program = roll(source)
    assert program is not None
    for shape in ((3, 6, SIZE), (1, 1, SIZE)):
        wanted = source.module(X=torch.ones(shape))
        for found, right in zip(program.module()(X=torch.ones(shape)), wanted, strict=True):
            torch.testing.assert_close(found, right)


class Listener(nn.Module):
    """A cell that attends to what is given once, of any length; `keeps` where it looked."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.cell, self.query, self.keeps = nn.GRUCell(2 * SIZE, SIZE), nn.Linear(SIZE, SIZE), keeps

    def forward(self, memory: Tensor, x: Tensor) -> Tensor:
        h = context = torch.zeros_like(x[:, 0])
        seen, out = torch.zeros_like(memory[..., 0]), []
        for t in range(x.shape[1]):
            h = self.cell(torch.cat([x[:, t], context], -1), h)
            scores = torch.bmm(memory, self.query(h).unsqueeze(2)).squeeze(2)
            weights = (scores - seen if self.keeps else scores).softmax(-1)
            seen = seen + weights
            context = torch.bmm(weights.unsqueeze(1), memory).squeeze(1)
            out.append(h + context)
        return torch.stack(out, 1)


def listening(*, keeps: bool) -> Source:
    torch.manual_seed(0)
    inputs = {"memory": torch.randn(2, 11, SIZE), "x": torch.randn(2, 7, SIZE)}
    axes = {"memory": f"batchxsourcex{SIZE}", "x": f"batchxtimex{SIZE}"}
    return load_source(Listener(keeps=keeps), inputs=inputs, axes=axes)


def test_a_loop_may_attend_to_what_is_given_once_of_any_length() -> None:
    source = listening(keeps=False)
    program = roll(source)
    assert program is not None
    for length, time in ((11, 9), (5, 1), (17, 20)):
        inputs = {"memory": torch.randn(3, length, SIZE), "x": torch.randn(3, time, SIZE)}
        (found,) = program.module()(**inputs)
        torch.testing.assert_close(found, source.module(**inputs))


def test_a_state_as_long_as_what_is_given_once_is_refused_with_the_line() -> None:
    model = trace(listening(keeps=True)).model
    with pytest.raises(PassError, match=r"whose source is free.*--axes, as memory:batchx11x8"):
        pipeline.run(model, pipeline.standard(), Context())
