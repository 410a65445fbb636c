"""Adapters of a source: three ways to one result, and what is no adapter of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from intaglio import export, models
from intaglio.cli.frame import app
from intaglio.errors import BundleError, InputError, OptionError, SourceError
from intaglio.exporter.sources.load import load_source
from intaglio.models import llama
from intaglio.runtime import Session
from intaglio.runtime.adapters import Adapter, chosen

CONFIG = llama.Config(vocab_size=50, hidden_size=16, intermediate_size=24, num_layers=1)
LIMIT = 1e-5
IDS = np.random.default_rng(0).integers(0, 50, (3, 9))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base") / "base.pt"
    module = models.find("llama").build(CONFIG)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    models.save(path, "llama", CONFIG, module)
    return path


def adapter(base: Path, seed: int, count: int) -> Adapter:
    """Rows of one weight, columns and a low rank of another, `count` of each."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32) / 4

    def some(size: int) -> Any:
        return random.permutation(size)[:count]

    return Adapter(
        base=load_source(base).sha256,
        parts={
            "layers.0.mlp.up_proj.weight": {"rows": some(24), "row_delta": normal(count, 16)},
            "layers.0.mixer.o_proj.weight": {
                "columns": some(16),
                "column_delta": normal(16, count),
                "down": normal(count, 16),
                "up": normal(16, count),
            },
        },
    )


@pytest.fixture(scope="module")
def files(base: Path) -> dict[str, str]:
    found = {name: base.with_name(f"{name}.npz") for name in ("one", "two")}
    adapter(base, 1, 2).save(found["one"])
    adapter(base, 2, 5).save(found["two"])
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(scope="module")
def bundles(base: Path, files: dict[str, str]) -> dict[str, Path]:
    found = {way: base.with_name(way) for way in ("switched", "parallel", "one", "two")}
    for way, path in found.items():
        given, how = ({way: files[way]}, "fused") if way in files else (files, way)
        assert export(base, path, adapter=given, adapters=how, steps=20).parity is not None
    return found


@pytest.fixture(scope="module")
def expected(bundles: dict[str, Path]) -> dict[str, Any]:
    """The logits of each tuned model."""
    return {n: Session.load(bundles[n]).step({"input_ids": IDS})["logits"] for n in ("one", "two")}


def apart(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_what_is_fused_is_the_base_with_the_sum_added(base: Path, expected: dict[str, Any]) -> None:
    """By hand: each part of each kind, on the weights."""
    source, added = load_source(base), adapter(base, 1, 2)
    with torch.no_grad():
        for name, parts in added.parts.items():
            weight: Any = source.module.get_parameter(name)
            if "rows" in parts:
                for row, delta in zip(parts["rows"], parts["row_delta"], strict=True):
                    weight[int(row)] += torch.from_numpy(delta)
            else:
                for column, delta in zip(parts["columns"], parts["column_delta"].T, strict=True):
                    weight[:, int(column)] += torch.from_numpy(delta)
                weight += torch.from_numpy(parts["up"] @ parts["down"])
        logits = source.module(torch.from_numpy(IDS))
    assert apart(logits.numpy(), expected["one"]) < LIMIT


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_session_that_is_switched_gives_the_tuned_model(
    bundles: dict[str, Path], expected: dict[str, Any], name: str
) -> None:
    session = Session.load(bundles["switched"])
    session.condition(chosen(session.graph, name))
    assert apart(session.step({"input_ids": IDS})["logits"], expected[name]) < LIMIT


def test_each_row_has_the_adapter_of_its_number(
    bundles: dict[str, Path], expected: dict[str, Any], base: Path
) -> None:
    """Row 0 that of number 2, row 1 that of number 1, row 2 none; tokens in parts as well."""
    session = Session.load(bundles["parallel"])
    session.condition({"adapter": np.array([2, 1, 0])})
    parts = [
        session.step({"input_ids": IDS[:, a:b]})["logits"] for a, b in ((0, 4), (4, 5), (5, 9))
    ]
    found = np.concatenate(parts, 1)
    with torch.no_grad():
        plain = load_source(base).module(torch.from_numpy(IDS)).numpy()
    for row, wanted in enumerate((expected["two"], expected["one"], plain)):
        assert apart(found[row], wanted[row]) < LIMIT


@pytest.mark.parametrize("way", ["switched", "parallel"])
def test_rows_of_a_file_have_the_adapter_that_is_named(
    bundles: dict[str, Path], expected: dict[str, Any], way: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "ids.npz", input_ids=IDS)
    given = ["--inputs", str(tmp_path / "ids.npz"), "-o", str(tmp_path / "out.npz")]
    done = CliRunner().invoke(app, ["run", str(bundles[way]), "--adapter", "two", *given])
    assert done.exit_code == 0, done.output
    assert apart(np.load(tmp_path / "out.npz")["logits"], expected["two"]) < LIMIT


def test_a_session_goes_back_to_the_base(bundles: dict[str, Path], base: Path) -> None:
    session = Session.load(bundles["switched"])
    session.condition(chosen(session.graph, "two"))
    session.step({"input_ids": IDS})
    session.state.reset()
    session.condition(chosen(session.graph, None))
    with torch.no_grad():
        plain = load_source(base).module(torch.from_numpy(IDS)).numpy()
    assert apart(session.step({"input_ids": IDS})["logits"], plain) < LIMIT


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = Adapter(base="0" * 64, parts=adapter(base, 1, 2).parts)
    other.save(tmp_path / "other.npz")
    with pytest.raises(SourceError, match=r"made for a base whose SHA-256 is 000000000000\.\.\."):
        load_source(base, adapter={"other": str(tmp_path / "other.npz")})


def test_what_is_wider_than_its_place_is_refused(
    bundles: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    adapter(base, 3, 6).save(tmp_path / "wide.npz")
    session = Session.load(bundles["switched"])
    with pytest.raises(InputError, match="has room for"):
        chosen(session.graph, str(tmp_path / "wide.npz"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapters": "switched"}, "needs an adapter"),
        ({"adapters": "glued", "adapter": {"a": "a.npz"}}, "should be one of"),
    ],
)
def test_options_that_say_nothing(base: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load_source(base, **options)


class Shared(nn.Module):
    """Uses a weight beside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) @ self.layer.weight
        return y


def test_a_weight_that_is_used_elsewhere_too_can_only_be_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Shared(), torch.randn(2, 3, 4)
    source = load_source(module, inputs=[x])
    parts = {"layer.weight": {"rows": np.array([1]), "row_delta": np.ones((1, 4), np.float32)}}
    Adapter(base=source.sha256, parts=parts).save(tmp_path / "a.npz")
    for way in ("switched", "parallel"):
        with pytest.raises(SourceError, match="uses a weight elsewhere"):
            load_source(module, inputs=[x], adapter={"a": str(tmp_path / "a.npz")}, adapters=way)


class Flat(nn.Module):
    """Gives its layer tokens of all rows in one axis, row by row, or token by token if `turned`."""

    def __init__(self, *, turned: bool = False) -> None:
        super().__init__()
        self.layer, self.turned = nn.Linear(4, 6), turned

    def forward(self, x: Tensor) -> Tensor:
        wide = x.transpose(0, 1) if self.turned else x
        y: Tensor = self.layer(wide.reshape(-1, 4)).reshape(*wide.shape[:2], 6)
        return y.transpose(0, 1) if self.turned else y


class TimeFirst(nn.Module):
    """Gives its layer [time, rows, channels]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return y


def added_to(module: nn.Module, x: Tensor, folder: Path) -> dict[str, str]:
    """Three adapters of its layer, a kind each."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    parts = [
        {"rows": np.array([1]), "row_delta": normal(1, 4)},
        {"columns": np.array([2]), "column_delta": normal(6, 1)},
        {"down": normal(2, 4), "up": normal(6, 2)},
    ]
    found = {}
    for name, each in zip("abc", parts, strict=True):
        found[name] = str(folder / f"{name}.npz")
        base = load_source(module, inputs=[x]).sha256
        Adapter(base=base, parts={"layer.weight": each}).save(found[name])
    return found


def test_rows_and_tokens_in_one_axis_have_adapters_by_row(tmp_path: Path) -> None:
    """As OPT's feed-forward has them; calls of one token have as many as there are rows."""
    torch.manual_seed(0)
    module, x = Flat(), torch.randn(3, 5, 4)
    given = added_to(module, x, tmp_path)
    numbers = [2, 0, 3]
    plain = module.layer.weight.detach().clone()
    deltas = [Adapter.read(path).delta("layer.weight", (6, 4)) for path in given.values()]
    tables = [plain, *(plain + torch.from_numpy(delta) for delta in deltas)]
    source = load_source(module, inputs=[x], adapter=given, adapters="parallel")
    for tokens in (1, 3, 5):
        with torch.no_grad():
            made = source.module(x=x[:, :tokens], adapter=torch.tensor(numbers))
        for row, number in enumerate(numbers):
            wanted = x[row, :tokens] @ tables[number].T + module.layer.bias
            assert torch.allclose(made[row], wanted, atol=1e-5)


def test_rows_that_a_layer_does_not_get_by_themselves_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4)
    for module, words in ((TimeFirst(), "not along its first axis"), (Flat(turned=True), "mixes")):
        given = added_to(module, x, tmp_path)
        with pytest.raises(SourceError, match=words):
            load_source(module, inputs=[x], adapter=given, adapters="parallel")
        assert load_source(module, inputs=[x], adapter=given, adapters="switched").adapters


def test_what_is_no_linear_layer_can_only_be_fused(base: Path, tmp_path: Path) -> None:
    parts = {
        "embed_tokens.weight": {"rows": np.array([1]), "row_delta": np.ones((1, 16), np.float32)}
    }
    Adapter(base="", parts=parts).save(tmp_path / "a.npz")
    given = {"a": str(tmp_path / "a.npz")}
    with pytest.raises(SourceError, match="of a Embedding"):
        load_source(base, adapter=given, adapters="switched")
    assert load_source(base, adapter=given).notes[-1] == "Fused: a."


def test_a_name_is_that_of_a_file(base: Path, files: dict[str, str]) -> None:
    with pytest.raises(OptionError, match="should be called by letters"):
        load_source(base, adapter={"../one": files["one"]})


def test_an_adapter_of_a_bundle_that_was_changed_is_refused(bundles: dict[str, Path]) -> None:
    """As every file of a bundle is, by its hash."""
    path = bundles["switched"] / "adapters" / "one.npz"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + b"?")
        session = Session.load(bundles["switched"])
        with pytest.raises(BundleError, match=r"one\.npz"):
            chosen(session.graph, "one")
    finally:
        path.write_bytes(whole)
