"""Layers of torch.nn are exchanged while a module is traced: recurrent ones and attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import PassError, TraceError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.tracing.exchanged import exchanged
from intaglio.exporter.tracing.torch_layers import attention
from intaglio.ops import RNN
from intaglio.runtime import Session

SIZE = 8
Mix = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Tokens embedded, mixed by what a test brings, and read out."""

    def __init__(self, mix: Mix, **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(16, SIZE), nn.Linear(SIZE, 16)
        self.mix = mix
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, input_ids: Tensor) -> Tensor:
        y: Tensor = self.out(self.mix(self, self.embed(input_ids)))
        return y


def exported(net: nn.Module, out: Path, **options: Any) -> ExportReport:
    torch.set_num_threads(1)
    inputs = {"input_ids": np.zeros((2, 7), np.int64)}
    report = export(net.eval(), out, inputs=inputs, steps=24, **options)
    assert report.parity is not None
    assert report.parity.passed
    return report


def later(time: int) -> Tensor:
    """True for what a token must not see."""
    return torch.ones(time, time, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(
    ("layer", "states"),
    [
        (nn.LSTM(SIZE, SIZE, 2, batch_first=True, dropout=0.5), [(2, SIZE)] * 2),
        (nn.GRU(SIZE, SIZE, batch_first=True, bias=False), [(1, SIZE)]),
        (nn.RNN(SIZE, SIZE, batch_first=True), [(1, SIZE)]),
        (nn.RNN(SIZE, SIZE, nonlinearity="relu", batch_first=True), [(1, SIZE)]),
    ],
)
def test_recurrent_layers_carry_their_state(
    layer: nn.RNNBase, states: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Outputs and states are those of the source at every token, however tokens are cut."""
    report = exported(
        Net(lambda net, x: net.layer(x)[0], layer=layer), tmp_path / "bundle", check_passes=True
    )

    assert [spec.shape for spec in report.manifest.main.states] == [("batch", *s) for s in states]
    assert {(spec.op, spec.module) for spec in report.manifest.main.states} == {("rnn", "layer")}
    assert report.parity is not None
    assert {row.kind for row in report.parity.rows} == {"output", "state"}


def test_time_may_come_first_and_the_state_be_given_as_zeros(tmp_path: Path) -> None:
    """As modules are written that make their own state."""

    def mix(net: Any, x: Tensor) -> Tensor:
        start = torch.zeros(1, x.shape[0], SIZE)
        y: Tensor = net.layer(x.transpose(0, 1), (start, start))[0]
        return y.transpose(0, 1)

    exported(Net(mix, layer=nn.LSTM(SIZE, SIZE)), tmp_path / "bundle")


def test_layers_of_one_model_are_told_apart(tmp_path: Path) -> None:
    """A recurrent one, attention after it, and a second call of the first."""

    def mix(net: Any, x: Tensor) -> Tensor:
        x = x + net.recurrent(x)[0]
        x = x + net.attention(x, x, x, attn_mask=later(x.shape[1]), need_weights=False)[0]
        y: Tensor = x + net.recurrent(x)[0]
        return y

    layers = {
        "recurrent": nn.GRU(SIZE, SIZE, batch_first=True),
        "attention": nn.MultiheadAttention(SIZE, 2, batch_first=True),
    }
    report = exported(Net(mix, **layers), tmp_path / "bundle")

    found = [(spec.module, spec.op, spec.call) for spec in report.manifest.main.states]
    assert sorted(found) == [
        *(("attention", "attention", 0), ("attention", "attention", 0)),
        *(("recurrent", "rnn", 0), ("recurrent", "rnn", 1)),
    ]


def added(time: int) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(time)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [later, added])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_carries_a_cache(
    mask: Callable[[int], Tensor], batch_first: bool, bias: bool, tmp_path: Path
) -> None:
    """With masks of booleans and of numbers; weights that nobody reads cost nothing."""

    def mixed(net: Any, x: Tensor) -> Tensor:
        time = x.shape[1]
        x = x if batch_first else x.transpose(0, 1)
        y: Tensor = net.layer(x, x, x, attn_mask=mask(time))[0]
        return y if batch_first else y.transpose(0, 1)

    layer = nn.MultiheadAttention(SIZE, 2, bias=bias, batch_first=batch_first)
    report = exported(Net(mixed, layer=layer), tmp_path / "bundle")

    assert [spec.port for spec in report.manifest.main.states] == ["key", "value"]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("hint", [None, True])
def test_encoders_with_a_causal_mask_are_decoders(
    norm_first: bool, hint: bool | None, tmp_path: Path
) -> None:
    """PyTorch's shortcut through the whole layer is not taken, and switched on again."""
    layer = nn.TransformerEncoderLayer(SIZE, 2, 16, batch_first=True, norm_first=norm_first)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    report = exported(
        Net(lambda net, x: net.stack(x, mask=added(x.shape[1]), is_causal=hint), stack=stack),
        tmp_path / "bundle",
    )

    assert len(report.manifest.main.states) == 4
    assert torch.backends.mha.get_fastpath_enabled()


def test_attention_to_later_tokens_makes_a_model_whole(tmp_path: Path) -> None:
    """It is refused where the user says that it is to be stepped."""
    net = Net(
        lambda net, x: net.layer(x, x, x, key_padding_mask=torch.zeros(x.shape[:2]).bool())[0],
        layer=nn.MultiheadAttention(SIZE, 2, batch_first=True),
    )
    report = exported(net, tmp_path / "bundle")
    assert report.manifest.main.whole
    assert any("changes with later tokens" in note for note in report.notes)
    plain = Net(
        lambda net, x: net.layer(x, x, x)[0],
        layer=nn.MultiheadAttention(SIZE, 2, batch_first=True),
    )
    with pytest.raises(
        PassError, match=r"layer: Attention .* lets each token attend to later ones"
    ):
        exported(plain, tmp_path / "steps", whole=False)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(SIZE, SIZE // 2, 2, bidirectional=True, batch_first=True),
        nn.GRU(SIZE, SIZE // 2, bidirectional=True, batch_first=True, bias=False),
    ],
)
def test_both_directions_of_a_recurrent_layer_are_exported_whole(
    layer: nn.Module, tmp_path: Path
) -> None:
    net = Net(lambda net, x: net.layer(x)[0], layer=layer)
    report = exported(net, tmp_path / "bundle")
    assert report.manifest.main.whole
    assert report.parity is not None
    assert report.parity.passed


@pytest.mark.parametrize(
    ("layer", "mix", "words"),
    [
        (
            nn.MaxPool1d(2, return_indices=True),
            lambda net, x: net.layer(x.mT)[0].mT,
            "returns places",
        ),
    ],
)
def test_what_a_replacement_does_not_serve_is_named(
    layer: nn.Module, mix: Mix | None, words: str, tmp_path: Path
) -> None:
    """With the module and the class."""
    net = Net(mix or (lambda net, x: net.layer(x)[0]), layer=layer)
    with pytest.raises(TraceError, match=f"In module 'layer', {type(layer).__name__} .*{words}"):
        exported(net, tmp_path / "bundle")


def test_padding_of_what_others_attend_to_is_theirs_to_hide() -> None:
    """A mask over another sequence than the queries', as over a source, is part of the mixing."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(SIZE, 2, batch_first=True).eval()
    x, memory = torch.randn(2, 3, SIZE), torch.randn(2, 5, SIZE)
    padded = torch.tensor([[False] * 5, [False, False, True, True, True]])
    wanted, _ = layer(x, memory, memory, key_padding_mask=padded)
    found, _ = attention(layer, x, memory, memory, key_padding_mask=padded)

    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_padding_told_by_the_tokens_is_carried_beside_the_keys(tmp_path: Path) -> None:
    """What a token says of itself as a key is known when later ones look at it."""

    def mix(net: Any, x: Tensor) -> Any:
        padding = (x[..., 0] > 1) & (torch.arange(x.shape[1]) > 0)
        return net.layer(x, x, x, key_padding_mask=padding, attn_mask=later(x.shape[1]))[0]

    net = Net(mix, layer=nn.MultiheadAttention(SIZE, 2, batch_first=True))
    manifest = exported(net, tmp_path / "bundle").manifest
    assert not manifest.main.whole
    assert len(manifest.main.states) == 3


def test_a_layer_is_what_it_was_afterwards() -> None:
    """While it is traced, it calls the operator; a class of its own forward is left alone."""

    class Own(nn.GRU):
        def forward(self, *given: Any) -> Any:
            return super().forward(*given)

    net = Net(
        lambda net, x: net.layer(x)[0] + net.own(x)[0],
        layer=nn.GRU(SIZE, SIZE, batch_first=True),
        own=Own(SIZE, SIZE, batch_first=True),
    ).eval()
    source = load_source(net, inputs={"input_ids": np.zeros((2, 7), np.int64)})
    module: Any = source.module
    before = set(vars(module.layer))
    with exchanged(source, module) as found:
        program = torch.export.export(module.layer, (torch.zeros(2, 5, SIZE),), strict=False)
        assert "forward" not in vars(module.own)

    assert found
    assert RNN.torch_op in {node.target for node in program.graph.nodes}
    assert set(vars(module.layer)) == before


def test_a_recurrent_bundle_steps_without_pytorch(tmp_path: Path) -> None:
    """Tokens one by one give what all at once give."""
    net = Net(lambda net, x: net.layer(x)[0], layer=nn.LSTM(SIZE, SIZE, batch_first=True))
    exported(net, tmp_path / "bundle")
    ids = np.arange(9)[None] % 7
    whole = Session.load(tmp_path / "bundle").step({"input_ids": ids})["logits"]
    session = Session.load(tmp_path / "bundle")
    for t in range(9):
        step = session.step({"input_ids": ids[:, t : t + 1]})["logits"]
        np.testing.assert_allclose(step[:, 0], whole[:, t], atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_keys_that_attention_adds_are_its_own(masked: bool) -> None:
    """Behind all others, with what PyTorch says of how much each was taken."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(SIZE, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)
    for bias in (layer.bias_k, layer.bias_v):
        nn.init.normal_(bias)  # type: ignore[arg-type]
    x, mask = torch.randn(2, 3, SIZE), torch.ones(3, 3, dtype=torch.bool).triu(1)
    wanted = layer.eval()(x, x, x, attn_mask=mask if masked else None)
    found = attention(layer, x, x, x, attn_mask=mask if masked else None)

    for each, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, other, atol=1e-6, rtol=0)
