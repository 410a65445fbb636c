"""LongMem: the module is the equations of the paper, and an engine carries its bank as a state."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from intaglio.errors import IntaglioError, SourceError
from intaglio.exporter.export import export
from intaglio.models.longmem import (
    FAIRSEQ,
    LONGMEM,
    Config,
    LongMem,
    axes,
    build,
    empty_bank,
    inputs,
)
from intaglio.models.parts.recalled_pairs import BANK
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
SMALL = Config(
    vocab_size=11, hidden_size=12, num_heads=3, num_layers=4, retrieval_layer=2, segment=4,
    capacity=12, chunk=2, retrieved=6,
)  # fmt: skip


def drawn() -> LongMem:
    torch.manual_seed(0)
    module = build(SMALL).eval()
    for weight in module.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    module.requires_grad_(requires_grad=False)
    return module


def segments(count: int, rows: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [inputs(SMALL, rows, 0, generator)["input_ids"] for _ in range(count)]


def read(module: LongMem, ids: list[Tensor]) -> tuple[list[Tensor], Mapping[str, Tensor]]:
    """Logits of segments one after the other, and the bank after them."""
    dtype = module.lm_head.weight.dtype
    bank = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in empty_bank(SMALL, len(ids[0])).items()
    }
    logits = []
    for segment in ids:
        after = module(segment, **bank)
        logits.append(after["logits"])
        bank = {name: after[name] for name in BANK}
    return logits, bank


class Loop:
    """The paper in numpy: one row, one token, one head at a time, with a list as its bank."""

    def __init__(self, module: LongMem) -> None:
        self.w = {name: value.numpy() for name, value in module.state_dict().items()}
        self.bank: list[tuple[Array, Array]] = []  # of each chunk: keys and values [heads, c, d]

    def norm(self, x: Array, name: str, eps: float) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        found: Array = normal * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
        return found

    def linear(self, x: Array, name: str) -> Array:
        found: Array = x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)
        return found

    def attend(self, x: Array, name: str, *, memory: bool = False) -> Array:
        heads, size = SMALL.num_heads, SMALL.head_size
        q, k, v = (self.linear(x, f"{name}.{p}_proj").reshape(-1, heads, size) for p in "qkv")
        out = np.zeros_like(q)
        slopes = [2**-4, 2**-8, 2**-2]  # of three heads: those of two, and one between
        for t in range(len(x)):
            for h in range(heads):
                scores = [
                    q[t, h] @ k[s, h] / math.sqrt(size) - slopes[h] * (t - s) for s in range(t + 1)
                ]
                out[t, h] = softmax(scores) @ v[: t + 1, h]
                if memory and self.bank:
                    gate = 1 / (1 + np.exp(-self.w[f"{name}.memory_bias"][h]))
                    out[t, h] = (1 - gate) * out[t, h] + gate * self.retrieve(q[t, h], h)
        return self.linear(out.reshape(len(x), -1), f"{name}.out_proj")

    def retrieve(self, q: Array, head: int) -> Array:
        nearest = sorted(self.bank, key=lambda chunk: -float(q @ chunk[0][head].mean(0)))
        taken = nearest[: SMALL.retrieved // SMALL.chunk]
        keys = np.concatenate([chunk[0][head] for chunk in taken])
        values = np.concatenate([chunk[1][head] for chunk in taken])
        found: Array = softmax(keys @ q / math.sqrt(len(q))) @ values
        return found

    def segment(self, ids: Array) -> Array:
        streams = [self.w["backbone.wte.weight"][ids]]
        for index in range(SMALL.num_layers):
            name, x = f"backbone.h.{index}", streams[-1]
            normal = self.norm(x, f"{name}.ln_1", 1e-6)
            inner = self.linear(normal, f"{name}.mlp.fc_in")
            smooth = (
                inner / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            )
            fed = self.linear(smooth, f"{name}.mlp.fc_out")
            streams.append(self.attend(normal, f"{name}.attn") + fed + x)
        past = streams[SMALL.retrieval_layer]
        streams[-1] = self.norm(streams[-1], "backbone.ln_f", 1e-6)
        x = streams[0]
        for index in range(SMALL.num_layers // 2):
            name, normal = f"layers.{index}", self.norm(x, f"layers.{index}.ln_1", 1e-5)
            inner = self.linear(normal, f"{name}.fc1")
            error = np.vectorize(math.erf)(inner / math.sqrt(2))
            fed = self.linear(inner / 2 * (1 + error), f"{name}.fc2")
            memory = index == SMALL.retrieval_layer // 2
            mixed = self.attend(normal, f"{name}.self_attn", memory=memory)
            x = fed + mixed + x + streams[2 * index + 2] - streams[2 * index]
        self.remember(past)
        logits: Array = self.norm(x, "layer_norm", 1e-5) @ self.w["lm_head.weight"].T
        return logits

    def remember(self, stream: Array) -> None:
        name = f"backbone.h.{SMALL.retrieval_layer}"
        normal = self.norm(stream, f"{name}.ln_1", 1e-6)
        shape = (-1, SMALL.chunk, SMALL.num_heads, SMALL.head_size)
        k, v = (
            self.linear(normal, f"{name}.attn.{p}_proj").reshape(shape).swapaxes(1, 2) for p in "kv"
        )
        self.bank = [*self.bank, *zip(k, v, strict=True)][-SMALL.chunks :]


def softmax(scores: Any) -> Array:
    weights = np.exp(np.asarray(scores) - np.max(scores))
    found: Array = weights / weights.sum()
    return found


def test_the_module_is_the_equations_of_the_paper() -> None:
    """Five segments of two rows: an empty bank, one that fills, one that has lost its oldest."""
    module, ids = drawn().double(), segments(5)
    found, bank = read(module, ids)
    for row in range(2):
        loop = Loop(module)
        for index, segment in enumerate(ids):
            wanted = loop.segment(segment[row].numpy())
            np.testing.assert_allclose(found[index][row].numpy(), wanted, atol=1e-9)
        assert int(bank["memory_filled"][row]) == len(loop.bank) == SMALL.chunks


def test_the_side_network_begins_as_every_other_layer() -> None:
    module = drawn()
    module.begin()
    weights = module.state_dict()
    for mine, other in {"self_attn.q_proj": "attn.q_proj", "fc2": "mlp.fc_out"}.items():
        taken = weights[f"layers.1.{mine}.weight"]
        assert torch.equal(taken, weights[f"backbone.h.3.{other}.weight"])
    assert not any(weight.requires_grad for weight in module.backbone.parameters())


KEYS = json.loads((Path(__file__).parents[1] / "data" / "keys" / "longmem.json").read_text())


def test_the_official_keys_are_those_of_the_module() -> None:
    """At full size: 24 layers, of which the 17th is kept, and 12 beside them."""
    shapes = {name: tuple(shape) for name, shape in KEYS["keys"].items()}
    assert FAIRSEQ.fits({}, shapes)
    config = LONGMEM.configure(FAIRSEQ.configure(KEYS["config"], shapes))
    assert (config.retrieval_layer, config.num_layers, config.capacity) == (17, 24, 65536)
    with torch.device("meta"):
        wanted = build(config).state_dict()
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = FAIRSEQ.weights(tensors, config)
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in wanted.items()}


def test_a_checkpoint_whose_frozen_weights_were_trained_is_refused() -> None:
    module = drawn()
    prefix = "decoder.pretrained_model.decoder.model."
    given = {}
    for name, value in module.state_dict().items():
        parts = {"backbone.": f"{prefix}transformer.", "lm_head.": f"{prefix}lm_head."}
        start = next((part for part in parts if name.startswith(part)), "")
        given[parts.get(start, "decoder.") + name.removeprefix(start)] = value
    found = FAIRSEQ.weights(given, SMALL)
    assert all(torch.equal(value, found[name]) for name, value in module.state_dict().items())
    given["decoder.output_projection.weight"] = module.lm_head.weight + 1
    with pytest.raises(SourceError, match=r"output_projection\.weight is not the frozen one"):
        FAIRSEQ.weights(given, SMALL)
    del given["decoder.layers.1.fc2.bias"]
    with pytest.raises(KeyError, match=r"layers\.1\.fc2\.bias"):
        FAIRSEQ.weights(given, SMALL)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("longmem") / "bundle"
    given = inputs(SMALL, 2, 0, torch.Generator().manual_seed(0))
    report = export(drawn(), path, inputs=given, axes=axes(SMALL), steps=5)
    assert [state.input for state in report.manifest.main.states] == list(BANK)
    return path


def test_an_engine_carries_the_bank(bundle: Path) -> None:
    """Saved, restored and forked in the middle, and rows that are at different segments."""
    ids = segments(5)
    wanted, _ = read(drawn(), ids)
    session = Session.load(bundle)
    for index in range(3):
        given = session.step({"input_ids": ids[index].numpy()})["logits"]
        np.testing.assert_allclose(given, wanted[index], atol=1e-4)
    saved, twin = session.state.save(), session.fork()
    session.state.reset([1])
    mixed = np.stack([ids[3][0].numpy(), ids[0][1].numpy()])
    given = session.step({"input_ids": mixed})["logits"]
    np.testing.assert_allclose(given[0], wanted[3][0], atol=1e-4)
    np.testing.assert_allclose(given[1], wanted[0][1], atol=1e-4)
    session.state.restore(saved)
    for each in (session, twin):
        given = each.step({"input_ids": ids[3].numpy()})["logits"]
        np.testing.assert_allclose(given, wanted[3], atol=1e-4)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_layers": 3}, "even"),
        ({"segment": 6}, "segment should be a multiple of chunk"),
        ({"capacity": 8}, "capacity should hold"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(values: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(**values)


def test_a_segment_of_another_length_is_refused(bundle: Path) -> None:
    with pytest.raises(IntaglioError, match="input_ids"):
        Session.load(bundle).step({"input_ids": np.zeros((2, 3), dtype=np.int64)})
