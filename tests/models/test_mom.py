"""Mixture of memories: each is a Gated DeltaNet over the tokens that its router gave it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrences import (
    Array,
    Weights,
    linear,
    rms,
    sigmoid,
    silu,
    softplus,
    unit,
    weights_of,
)

from intaglio.errors import SourceError
from intaglio.exporter.export import ExportReport, export
from intaglio.models import Model, find, save
from intaglio.models.mom import Config, MixtureOfMemories, Routed, build
from intaglio.runtime import Session

KEYS = json.loads((Path(__file__).parents[1] / "data" / "keys" / "mom.json").read_text())
MODEL: Model = find("mom")
(LAYOUT,) = MODEL.layouts
SMALL = Config(
    layers=("mom",),
    vocab_size=16,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    key_size=6,
    value_size=8,
    conv_size=3,
    num_memories=4,
    top_k=2,
    norm_eps=1e-4,
)
TOKENS = np.random.default_rng(0).integers(16, size=(3, 40))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def shaken(config: Config) -> torch.nn.Module:
    """A model with weights in which every parameter counts."""
    torch.manual_seed(1)
    module = build(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


class Memory:
    """One memory of the paper: what it was given, and its state."""

    def __init__(self, w: Weights, names: list[str], config: Config) -> None:
        self.w, self.names, self.config = w, names, config
        self.given: list[list[Array]] = []
        self.state = np.zeros((config.num_heads, config.key_size, config.value_size))

    def read(self, x: Array) -> Array:
        """Write the token x, and read."""
        w, heads = self.w, self.config.num_heads
        k, v, b, a = (linear(w, name, x) for name in self.names)
        self.given.append([linear(w, "q_proj", x), k, v])
        q, k, v = (
            silu(np.sum([taps[:, 0, -1 - back] * row[i] for back, row in self._last()], 0))
            for i, taps in enumerate(w[f"{n}_conv1d.weight"] for n in "qkv")
        )
        q, k, v = (y.reshape(heads, -1) for y in (q, k, v))
        q, k = unit(q), unit(k)
        decay = np.exp(-np.exp(w["A_log"]) * softplus(a + w["dt_bias"]))
        self.state = decay[:, None, None] * self.state
        new = sigmoid(b)[:, None] * (v - np.einsum("hkv,hk->hv", self.state, k))
        self.state = self.state + k[:, :, None] * new[:, None]
        return np.asarray(np.einsum("hk,hkv->hv", q, self.state) / self.config.key_size**0.5)

    def _last(self) -> list[tuple[int, list[Array]]]:
        return list(enumerate(self.given[: -1 - (self.config.conv_size or 0) : -1]))


def memories_of(w: Weights, config: Config) -> tuple[list[Memory], Memory | None]:
    shared = [f"shared_{name}" for name in "kvba"]
    own = [
        shared if config.single_projection else [f"{name}_proj.{m}" for name in "kvba"]
        for m in range(config.num_memories)
    ]
    memories = [Memory(w, names, config) for names in own]
    return memories, Memory(w, shared, config) if config.shared_memory else None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 1, "shared_memory": False, "output_gate": False},
        {"num_memories": 3, "top_k": 3, "single_projection": True},
    ],
)
def test_the_layer_is_the_recurrence_of_the_paper(changes: dict[str, Any]) -> None:
    """Token by token, with a list of tokens and a state for each memory."""
    config = replace(SMALL, **changes)
    mixer = shaken(config).layers[0].mixer.double()  # type: ignore[union-attr, index]
    w = weights_of(mixer)
    x = np.random.default_rng(3).normal(size=(23, 16))
    memories, shared = memories_of(w, config)
    rows, counts = [], np.zeros(config.num_memories, int)
    for token in x:
        scores = np.exp(linear(w, "gate", token))
        picked = np.argsort(-scores)[: config.top_k]
        counts[picked] += 1
        read = sum(scores[m] / scores[picked].sum() * memories[m].read(token) for m in picked)
        read = read if shared is None else read + shared.read(token)
        y = rms(np.asarray(read), w["o_norm.weight"], 1e-4).reshape(-1)
        gate = silu(linear(w, "g_proj", token)) if config.output_gate else 1.0
        rows.append(linear(w, "o_proj", y * gate))
    assert (counts > 0).sum() > 1

    with torch.no_grad():
        found = mixer(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(found, np.stack(rows), rtol=1e-9, atol=1e-9)


def test_the_convolution_runs_along_the_tokens_of_each_memory() -> None:
    """Where a memory is given tokens 0, 3, 4 and 9, their convolution is that of four in a row."""
    conv = Routed(5, 4).double()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    mask = torch.zeros(2, 12, 3, dtype=torch.int64)
    at = torch.tensor([0, 3, 4, 9])
    mask[0, at, 1] = 1

    with torch.no_grad():
        found = conv(x, mask)[0, at, 1]
        alone = conv(x[:1, at, 1:2], torch.ones(1, 4, 1, dtype=torch.int64))[0, :, 0]
        taps = conv.weight[:, 0]
        last = torch.nn.functional.silu((x[0, at, 1].T * taps).sum(1))

    torch.testing.assert_close(found, alone)
    torch.testing.assert_close(found[-1], last)


def test_a_memory_that_was_not_picked_is_left_as_it_was() -> None:
    """One token more changes the states of its own memories alone, and no earlier output."""
    mixer = shaken(SMALL).layers[0].mixer  # type: ignore[union-attr, index]
    assert isinstance(mixer, MixtureOfMemories)
    mask, weight = mixer.route(torch.randn(2, 6, 16))
    assert mask[..., :4].sum(-1).eq(2).all()
    assert mask[..., 4].eq(1).all()
    torch.testing.assert_close(weight[..., :4].sum(-1), torch.ones(2, 6))
    assert weight[mask == 0].eq(0).all()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """One layer, verified."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mom")
    save(folder / "model.pt", MODEL.name, SMALL, shaken(SMALL))
    return export(folder / "model.pt", folder / "bundle", steps=48)


def test_the_step_engine_carries_memories_and_what_their_convolutions_saw(
    exported: ExportReport,
) -> None:
    """Five memories of two heads, and for each a ring of the last three inputs of q, k and v."""
    assert exported.parity is not None
    assert exported.parity.passed
    states = {s.input: s.shape[1:] for s in exported.manifest.main.states}
    assert states == {
        "past.0.sum": (5,),
        "past.0.recurrent.q_conv1d": (5, 3, 12),
        "past.0.recurrent.k_conv1d": (5, 3, 12),
        "past.0.recurrent.v_conv1d": (5, 3, 16),
        "past.0.recurrent.mixer": (10, 6, 8),
    }


def test_parts_and_unequal_rows_give_what_whole_rows_give(exported: ExportReport) -> None:
    """Routing is exact with one token and with many: the same memories, the same numbers."""
    expected = Session.load(exported.out).step({"input_ids": TOKENS})["logits"]
    parted = Session.load(exported.out)
    pieces = [parted.step({"input_ids": TOKENS[:, t : t + 1]})["logits"] for t in range(9)]
    unequal = parted.step({"input_ids": TOKENS[:, 9:15]}, lengths=[6, 1, 3])["logits"]
    rest = [TOKENS[row, at : at + 5] for row, at in enumerate((15, 10, 12))]
    after = parted.step({"input_ids": np.stack(rest)})["logits"]

    np.testing.assert_allclose(np.concatenate(pieces, 1), expected[:, :9], atol=2e-5)
    np.testing.assert_allclose(unequal[2, :3], expected[2, 9:12], atol=2e-5)
    for row, at in enumerate((15, 10, 12)):
        np.testing.assert_allclose(after[row], expected[row, at : at + 5], atol=2e-5)


def test_official_names_and_shapes_at_full_size_fit() -> None:
    values, shapes = KEYS["config"], KEYS["keys"]
    assert LAYOUT.fits(values, shapes)
    config = MODEL.configure(LAYOUT.configure(values, shapes))
    with torch.device("meta"):
        module = build(config)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    found = LAYOUT.weights(tensors, config)
    assert {n: tuple(t.shape) for n, t in found.items()} == {
        n: tuple(t.shape) for n, t in module.state_dict().items()
    }
    assert {id(t) for t in found.values()} == {id(t) for t in tensors.values()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mom_backend": "gla"}, "mom_backend = 'gla'"),
        ({"use_short_conv": False}, "use_short_conv = False"),
        ({"expand_v": 0.001}, "expand_v = 0.001"),
        ({"topk": 0}, "topk = 0; it should be an integer of at least 1"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        LAYOUT.configure({**KEYS["config"], **changes}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"top_k": 5}, "top_k 5 is more"), ({"conv_size": None}, "conv_size is null")],
)
def test_configs_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(SMALL, **changes))
