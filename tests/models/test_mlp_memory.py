"""MLP Memory: its equations, the official keys, and an engine of a language model with it."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.models.mlp_memory import (
    BYTES,
    LAYOUTS,
    MLP_MEMORY,
    Config,
    build,
    join,
    last_mlp,
    mixed,
)
from intaglio.models.parts.imitated_search import (
    PART,
    Imitation,
    kept_and_left_out,
    nearest,
    searched,
)
from intaglio.models.training import WINDOW
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
KEYS = Path(__file__).parents[1] / "data" / "keys"
CHECKPOINTS = Path(__file__).parents[2] / "models" / "checkpoints"
SMALL = {
    "gpt2": Config(kind="gpt2", vocab_size=20, hidden_size=8, intermediate_size=12, input_size=6),
    "llama": Config(vocab_size=20, hidden_size=8, intermediate_size=12),
}

SAME = replace(SMALL["gpt2"], input_size=None)  # as wide as its language model


def by_hand(w: dict[str, Array], config: Config, h: Array) -> Array:
    """The memory of one state [width] in numpy."""

    def norm(x: Array, name: str) -> Array:
        if config.kind == "llama":
            found: Array = x / math.sqrt((x**2).mean() + config.norm_eps) * w[f"{name}.weight"]
            return found
        centred = x - x.mean()
        found = centred / math.sqrt((centred**2).mean() + config.norm_eps)
        return found * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = h
    if config.input_size:
        x = w["embedding_transform.weight"] @ h + w["embedding_transform.bias"]
    for index in range(config.num_layers):
        name = f"layers.{index}.mlp"
        y = norm(x, f"layers.{index}.norm")
        if config.kind == "llama":
            gate = w[f"{name}.gate_proj.weight"] @ y
            up = w[f"{name}.up_proj.weight"] @ y
            x = x + w[f"{name}.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
            continue
        inner = w[f"{name}.c_fc.weight"] @ y + w[f"{name}.c_fc.bias"]
        bent = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        smooth = inner / 2 * (1 + np.tanh(bent))
        x = x + w[f"{name}.c_proj.weight"] @ smooth + w[f"{name}.c_proj.bias"]
    logits: Array = w["lm_head.weight"] @ norm(x, "norm")
    return logits


@pytest.mark.parametrize("kind", SMALL)
def test_the_memory_is_its_equations(kind: str) -> None:
    torch.manual_seed(0)
    config = SMALL[kind]
    memory = build(config).double().requires_grad_(requires_grad=False)
    for weight in memory.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    hidden = MLP_MEMORY.inputs(config, 2, 3, torch.Generator().manual_seed(1))["hidden"].double()
    weights = {name: value.numpy() for name, value in memory.state_dict().items()}
    found = memory(hidden)
    for row in range(2):
        for t in range(3):
            wanted = by_hand(weights, config, hidden[row, t].numpy())
            np.testing.assert_allclose(found[row, t].numpy(), wanted, atol=1e-12)


def test_mixtures_are_in_log_space_and_end_at_their_parts() -> None:
    a, b = torch.randn(2, 1, 5, dtype=torch.float64).log_softmax(-1).unbind(0)
    weight = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)[:, None]
    found = mixed(a.expand(3, -1), b.expand(3, -1), weight)
    assert torch.equal(found[0], a[0])
    assert torch.equal(found[2], b[0])
    torch.testing.assert_close(found[1], (0.7 * a.exp() + 0.3 * b.exp()).log()[0])
    far = torch.tensor([[-900.0, 0.0]]), torch.tensor([[0.0, -900.0]])
    assert mixed(*far, torch.tensor([[0.5]])).isfinite().all()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_official_keys_are_those_of_the_memory(name: str) -> None:
    """At full size: the memories of GPT-2 large and of Mistral 7B."""
    known = json.loads((KEYS / f"mlp_memory_{name}.json").read_text())
    shapes = {key: tuple(shape) for key, shape in known["keys"].items()}
    (layout,) = [each for each in LAYOUTS if each.fits(known["config"], shapes)]
    assert layout.name == name
    config = MLP_MEMORY.configure(layout.configure(known["config"], shapes))
    with torch.device("meta"):
        wanted = build(config).state_dict()
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = layout.weights(tensors, config)
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in wanted.items()}
    assert len(found) == len(shapes)
    del tensors["lm_head.weight"]
    with pytest.raises(KeyError, match=r"lm_head\.weight"):
        layout.weights(tensors, config)


def write_parts(folder: Path) -> Path:
    """A tiny GPT-2, a memory as its authors' code saves it, and the file that joins them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "lm")
    memory = build(SAME)
    renames = ((".norm.", ".ln_1."), ("layers.", "h."))
    weights = {}
    for name, value in memory.state_dict().items():
        key = name.replace("norm.", "ln_f.") if name.startswith("norm.") else name
        for ours, theirs in renames:
            key = key.replace(ours, theirs)
        weights[key] = value.T.contiguous() if key.endswith(("fc.weight", "proj.weight")) else value
    (folder / "memory").mkdir()
    torch.save(weights, folder / "memory" / "pytorch_model.bin")
    values = {"model_type": "gpt2", "n_layer": 2, "activation_function": "gelu_new"}
    (folder / "memory" / "config.json").write_text(json.dumps(values))
    joint = folder / "joint.toml"
    joint.write_text('model = "mlp-memory"\n[parts]\nlanguage_model = "lm"\nmemory = "memory"\n')
    return joint


def test_two_directories_become_one_engine(tmp_path: Path) -> None:
    """Each row with a weight of its own: the language model, the memory, and between them."""
    joint = write_parts(tmp_path)
    report = export(joint, tmp_path / "bundle", steps=8)
    assert [spec.name for spec in report.manifest.main.conditions] == ["weight", "temperature"]
    session = Session.load(tmp_path / "bundle")
    weight = np.array([0, 1, 0.3], np.float32)
    session.condition({"weight": weight, "temperature": np.full(3, 2, np.float32)})
    ids = np.tile(np.array([[3, 1, 4, 1, 5]]), (3, 1))
    parts = [session.step({"input_ids": ids[:, at : at + 1]})["logits"] for at in range(5)]
    found = np.concatenate(parts, 1)

    from transformers import GPT2LMHeadModel

    model: Any = GPT2LMHeadModel.from_pretrained(tmp_path / "lm")
    model.eval()
    taken: list[torch.Tensor] = []
    model.transformer.h[-1].mlp.register_forward_pre_hook(lambda _m, x: taken.append(x[0]))
    with torch.no_grad():
        wanted = model(torch.from_numpy(ids[:1])).logits[0].log_softmax(-1).numpy()
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)
    state = torch.load(tmp_path / "memory" / "pytorch_model.bin")
    weights = {name: value.numpy() for name, value in LAYOUTS[0].weights(state, SAME).items()}
    for t in range(5):
        logits = torch.from_numpy(by_hand(weights, SAME, taken[0][0, t].numpy()) / 2)
        np.testing.assert_allclose(found[1, t], logits.log_softmax(-1), atol=1e-4)
    between = np.log(0.7 * np.exp(found[0]) + 0.3 * np.exp(found[1]))
    np.testing.assert_allclose(found[2], between, atol=1e-4)


def test_the_checkpoint_brings_what_a_search_brings() -> None:
    """On parts of files that are not in its corpus, beside the language model that it is of."""
    parts = {"language_model": "llama", "memory": "mlp_memory"}
    places = {name: CHECKPOINTS / f"{stem}.pt" for name, stem in parts.items()}
    assert places["memory"].stat().st_size < 1_000_000
    mixture = join({name: load_source(place).module for name, place in places.items()})
    _, left_out = kept_and_left_out(PART)
    rows = torch.cat(left_out[:8]).view(-1, WINDOW).long()
    losses = []
    for weight in (0.0, 0.75):
        given = torch.full((len(rows),), weight), torch.ones(len(rows))
        found = mixture(rows[:, :-1], *given)
        losses.append(nn.functional.nll_loss(found.flatten(0, 1), rows[:, 1:].flatten()).item())
    assert losses[1] < losses[0] - 0.05  # 0.11 on Python 3.11's own library


def test_a_memory_learns_beside_a_language_model_alone() -> None:
    recipe = replace(Imitation(tap=last_mlp), steps=100, keys=2 * PART)
    memory = build(BYTES)
    with pytest.raises(SourceError, match="belongs to a language model"):
        recipe.train(memory, None, None)
    before = {name: weight.clone() for name, weight in memory.named_parameters()}
    reached = recipe.train(memory, None, CHECKPOINTS / "llama.pt")
    assert all(not torch.equal(before[name], weight) for name, weight in memory.named_parameters())
    assert float(reached.split()[1]) < 3  # of ln 256 = 5.5 at random


def test_the_search_is_that_of_every_key() -> None:
    """Its own key left out, weights by softmax of -distance / temperature."""
    keys = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    values = torch.arange(300) % 256
    distances, places = nearest(keys[:2], keys, drop=True)
    found = searched(distances, values[places], 0.5)
    for row in range(2):
        far = {i: float(((keys[row] - keys[i]) ** 2).sum()) for i in range(300) if i != row}
        near = sorted(far, key=far.__getitem__)[:256]
        weights = np.exp([-far[i] / 0.5 for i in near])
        wanted = np.zeros(256)
        for i, weight in zip(near, weights / weights.sum(), strict=True):
            wanted[i % 256] += weight
        np.testing.assert_allclose(found[row].numpy(), wanted, atol=1e-5)


class Blocks(nn.Module):
    """A language model of one block."""

    def __init__(self, tokens: int, size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, size)
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(size, 5)})])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Linear(8, 8), "no list of blocks"),
        (nn.ModuleList([nn.Linear(8, 8)]), "no module mlp"),
        (Blocks(20, 7), "reads states of 8 entries"),
        (Blocks(21, 8), "knows 20 tokens, the language model 21"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(model: nn.Module, says: str) -> None:
    holder = nn.Module()
    holder.add_module("model", model)
    with pytest.raises(SourceError, match=says):
        join({"language_model": holder, "memory": build(SMALL["llama"])})
