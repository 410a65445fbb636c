"""BIB: losses and gradients are those of the paper, and designs go the same way in an engine."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.exporter.export import export
from intaglio.exporter.sources.load import load_source
from intaglio.models.bib import BIB, RELEASED, Bib, Config, axes, build, inputs
from intaglio.runtime.design import Descent
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
DNA = Config(length=6, offline=24, hidden_size=8, intermediate_size=12, num_layers=1)
PROTEIN = replace(DNA, alphabet="protein", length=5, vocab_size=30)
STEPS = 20


def fitted(config: Config) -> Bib:
    """A model whose offline data are random designs with random scores."""
    torch.manual_seed(0)
    module = build(config).eval()
    for weight in module.parameters():
        weight.data += torch.randn_like(weight) * 0.3
    offline = 3 * torch.randn(config.offline, config.length, config.letters)
    with torch.no_grad():
        module.fit(module.embed(offline), torch.randn(config.offline) + 2)
    return module.requires_grad_(requires_grad=False)


def designs(config: Config, rows: int = 3) -> Tensor:
    return inputs(config, rows, 0, torch.Generator().manual_seed(1))["design"]


def soft(z: Array) -> Array:
    """What is likely of triples of letters [T, 64] by scores of letters [length, 4]."""
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    words = np.zeros((len(z) - 2, 64))
    for t, i, j, k in np.ndindex(len(words), 4, 4, 4):
        words[t, 16 * i + 4 * j + k] = p[t, i] * p[t + 1, j] * p[t + 2, k]
    return words


def hidden(w: dict[str, Array], words: Array) -> Array:
    """The mean over BERT's last layer of words [T, 64], token by token and head by head."""

    def norm(x: Array, name: str) -> Array:
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return np.asarray(y * w[f"{name}.weight"] + w[f"{name}.bias"])

    def linear(x: Array, name: str) -> Array:
        return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])

    table, places = (w[f"bert.embeddings.{n}_embeddings.weight"] for n in ("word", "position"))
    letters = np.array([word @ table[5:69] for word in words])
    x = np.concatenate((table[2:3], letters, table[3:4])) + places[: len(words) + 2]
    x = norm(x + w["bert.embeddings.token_type_embeddings.weight"][0], "bert.embeddings.LayerNorm")
    for layer in range(DNA.num_layers):
        at = f"bert.encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{n}") for n in ("query", "key", "value"))
        mixed, size = np.zeros_like(x), DNA.hidden_size // DNA.num_heads
        for head, t in np.ndindex(DNA.num_heads, len(x)):
            part = slice(head * size, head * size + size)
            shares = np.exp(k[:, part] @ q[t, part] / np.sqrt(size))
            mixed[t, part] = shares @ v[:, part] / shares.sum()
        out = f"{at}.attention.output"
        x = norm(linear(mixed, f"{out}.dense") + x, f"{out}.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = norm(linear(inner, f"{at}.output.dense") + x, f"{at}.output.LayerNorm")
    return np.asarray(x[1:-1].mean(0))


def test_losses_and_gradients_are_the_equations() -> None:
    """Kernel ridge regression in both directions by its dual form, of features in numpy.

    Gradients are finite differences of hard words that move as the soft ones do.
    """
    module = fitted(DNA).double()
    z = designs(DNA).double()
    given = module(z)
    w = {name: value.numpy() for name, value in module.state_dict().items()}
    features, y = w["features"], w["labels"]
    kernel = features @ features.T
    ridge = 1e-6 * np.trace(kernel) / len(kernel)
    dual = np.linalg.solve(kernel + ridge * np.eye(len(kernel)), y)
    weight = features.T @ dual  # before h: differences of the long sum are lost in its rounding

    def losses(words: Array) -> Array:
        h = hidden(w, words)
        back = (features @ h) * (10.0 / (h @ h * (1 + 1e-6)))
        score = (w["main.weight"][0] @ h + w["main.bias"][0]) * w["scale"][1] + w["scale"][0]
        return np.array([score, (h @ weight - 10.0) ** 2, np.mean((back - y) ** 2)])

    for row in range(len(z)):
        start = z[row].numpy()
        hard = np.eye(64)[soft(start).argmax(-1)]
        wanted = losses(hard)
        for name, value in zip(("score", "loss_forward", "loss_backward"), wanted, strict=True):
            np.testing.assert_allclose(given[name][row], value, rtol=1e-4)
        moved = np.zeros((3, *start.shape))
        for place in np.ndindex(*start.shape):
            both = []
            for way in (1e-6, -1e-6):
                other = start.copy()
                other[place] += way
                both.append(losses(hard + soft(other) - soft(start)))
            moved[(slice(None), *place)] = (both[0] - both[1]) / 2e-6
        for name, value in zip(("score", "forward", "backward"), moved, strict=True):
            found = given[f"{name}_gradient"][row].numpy()
            assert np.abs(found - value).max() <= 1e-4 * np.abs(value).max()


def test_words_of_dna_are_triples_of_letters() -> None:
    """Word 16 i + 4 j + k stands for three letters that follow each other."""
    z = designs(DNA).double()
    hard = fitted(DNA).words(z).argmax(-1)
    p = z.softmax(-1).numpy()
    for row in range(len(z)):
        for place in range(DNA.length - 2):
            i, j, k = (int(p[row, place + n].argmax()) for n in range(3))
            assert hard[row, place] == 16 * i + 4 * j + k


@pytest.mark.parametrize("config", [DNA, PROTEIN], ids=["dna", "protein"])
def test_gradients_are_those_of_autograd(config: Config) -> None:
    module, z = fitted(config).double(), designs(config).double().requires_grad_()
    given = module(z.detach())
    names = ("score_gradient", "forward_gradient", "backward_gradient")
    for loss, name in zip(module.losses(z), names, strict=True):
        (wanted,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
        assert wanted.abs().max() > 0
        torch.testing.assert_close(given[name], wanted)


def test_the_encoder_is_that_of_the_library() -> None:
    """With the weights of the library's BERT, under its names, hidden states are the same."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=DNA.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=DNA.max_positions, layer_norm_eps=1e-12,
    )  # fmt: skip
    torch.manual_seed(0)
    library = BertModel(config, add_pooling_layer=False)
    library.train(mode=False)
    ours = build(DNA).bert
    ours.load_state_dict(library.state_dict())
    ids = torch.randint(DNA.vocab_size, (2, 7))
    with torch.no_grad():
        wanted = library(ids).last_hidden_state
        found = ours(torch.nn.functional.one_hot(ids, DNA.vocab_size).float())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


KEYS = Path(__file__).parents[1] / "data/keys"


@pytest.mark.parametrize("alphabet", ["dna", "protein"])
def test_the_official_keys_are_those_of_the_module(alphabet: str) -> None:
    """DNABERT and ProtBERT at full size, and the files of the offline data beside them."""
    keys = json.loads((KEYS / f"bib_{alphabet}.json").read_text())
    shapes = {name: tuple(shape) for name, shape in keys["keys"].items()}
    assert RELEASED.fits(keys["config"], shapes)
    config = BIB.configure(RELEASED.configure(keys["config"], shapes))
    assert (config.alphabet, config.target) == (alphabet, 10.0)
    with torch.device("meta"):
        module = build(config)
        found = RELEASED.weights({n: torch.empty(s) for n, s in shapes.items()}, config)
    assert {n: x.shape for n, x in found.items()} == {
        n: x.shape for n, x in module.state_dict().items()
    }


@pytest.mark.parametrize("turned", [False, True], ids=["library", "released"])
def test_released_files_beside_a_language_model_are_read(turned: bool, tmp_path: Path) -> None:
    """Losses by the library's BERT and the dual form that the files hold."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 69, "hidden_size": 8, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 12, "max_position_embeddings": 16}
    library = BertForMaskedLM(BertConfig(**sizes, layer_norm_eps=1e-12, pad_token_id=0))
    library.train(mode=False)

    def features(letters: Array) -> Array:
        words = [
            5 + 16 * a + 4 * b + c
            for a, b, c in zip(letters[:-2], letters[1:-1], letters[2:], strict=True)
        ]
        with torch.no_grad():
            hidden = library.bert(torch.tensor([[2, *words, 3]])).last_hidden_state
        return np.asarray(hidden[0, 1:-1].double().numpy().mean(0))

    rng = np.random.default_rng(0)
    offline = np.array([features(rng.integers(4, size=6)) for _ in range(24)])
    y = rng.standard_normal(24)
    kernel = offline @ offline.T
    dual = np.linalg.solve(kernel + 1e-6 * np.trace(kernel) / 24 * np.eye(24), y)
    head = {"main.weight": torch.randn(1, 8), "main.bias": torch.randn(1)}
    files: dict[str, Any] = {
        "offline_logits": torch.from_numpy(offline), "part_oracle": head,
        "offline_labels": torch.from_numpy(y)[:, None], "offline_m": torch.tensor(2.0),
        "offline_coeffs": torch.from_numpy(dual)[:, None], "offline_std": torch.tensor(0.5),
    }  # fmt: skip
    library.save_pretrained(tmp_path)
    for name, content in files.items():
        torch.save(content, tmp_path / f"TFBind8-Exact-v0{name}.pt")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"length": 6} | {name: f"RRdata/TFBind8-Exact-v0{name}.pt" for name in files}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if turned:  # words are a linear layer of the released module
        state = library.bert.state_dict()
        state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"].T
        (tmp_path / "model.safetensors").unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
    module = load_source(tmp_path).module
    letters = rng.integers(4, size=6)
    z = torch.from_numpy(4 * np.eye(4)[letters])[None].float()
    given, h = module(z), features(letters)
    np.testing.assert_allclose(given["loss_forward"][0], (offline @ h @ dual - 10) ** 2, rtol=1e-3)
    back = offline @ h * 10 / (h @ h * (1 + 1e-6)) - y
    np.testing.assert_allclose(given["loss_backward"][0], np.mean(back**2), rtol=1e-4)
    score = (head["main.weight"].numpy()[0] @ h + head["main.bias"].item()) * 0.5 + 2
    np.testing.assert_allclose(given["score"][0], score, rtol=1e-4)
    (tmp_path / "TFBind8-Exact-v0offline_m.pt").unlink()
    with pytest.raises(SourceError, match=r"offline_m, and .* has none of that name"):
        load_source(tmp_path)


def by_torch(module: Bib, z: Tensor) -> tuple[Tensor, list[float]]:
    """`STEPS` steps of one design with the optimizer of PyTorch, both rules at work."""
    z = z.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    balance, mean, size, balances = 0.5, 0.0, 0.0, []
    for t in range(STEPS):
        score, forward, backward = module.losses(z)
        a, f, b = (torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in
                   (score, forward, backward))  # fmt: skip
        along = (a * 0.1 * (f - b)).sum().item()
        mean, size = 0.9 * mean + 0.1 * along, 0.999 * size + 0.001 * along**2
        step = mean / (1 - 0.9 ** (t + 1)) / ((size / (1 - 0.999 ** (t + 1))) ** 0.5 + 1e-8)
        balance = min(max(balance - 0.1 * step, 0.0), 1.0)
        balances.append(balance)
        gradient = balance * f + (1 - balance) * b
        if t:
            kept = optimizer.state[z]
            first = 0.9 * kept["exp_avg"] + 0.1 * gradient
            second = 0.999 * kept["exp_avg_sq"] + 0.001 * gradient**2
            first, second = first / (1 - 0.9 ** (t + 1)), second / (1 - 0.999 ** (t + 1))
            along = (a * first / (second.sqrt() + 1e-8)).sum().item()
            optimizer.param_groups[0]["lr"] = min(max(0.1 - 0.01 * along, 1e-4), 0.5)
        z.grad = gradient
        optimizer.step()
    return z.detach(), balances


def test_designs_go_the_same_way_in_an_engine(tmp_path: Path) -> None:
    """Twenty steps with an adaptive balance and rate, of three designs in one call."""
    module, z = fitted(DNA), designs(DNA)
    report = export(module, tmp_path / "bundle", inputs={"design": z}, axes=axes(DNA))
    assert report.manifest.main.whole
    session = Session.load(tmp_path / "bundle")
    descent = Descent(lambda z: session.step({"design": z}), z.numpy(), adapt_rate=True)
    balances = [descent.balance for _ in descent.run(STEPS)]
    for row in range(len(z)):
        wanted, balance = by_torch(module.double(), z[row : row + 1].double())
        np.testing.assert_allclose(descent.designs[row], wanted[0], atol=2e-3)
        np.testing.assert_allclose(np.array(balances)[:, row], balance, atol=2e-3)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"alphabet": "rna"}, "dna or protein"),
        ({"length": 2}, "3 letters"),
        ({"vocab_size": 20}, "no room for 64 words"),
        ({"length": 40}, "max_positions 16 is below 40"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises((SourceError, ValueError), match=says):
        BIB.build(BIB.configure(values))
