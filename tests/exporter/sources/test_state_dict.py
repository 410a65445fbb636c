"""Weights go into a module one to one: by name, shape and kind, or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.state_dict import load_weights, tied_names

FILE = Path("model.pt")


class Net(nn.Module):
    """A language model with tied embeddings, a mask as a buffer, and a child called `module`."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.module = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))


def trained() -> dict[str, Tensor]:
    """A state dict with values that a fresh module does not have."""
    state = Net().state_dict()
    return {name: value + 1 for name, value in state.items()}


def assert_loaded(net: Net) -> None:
    for name, value in trained_values.items():
        assert torch.equal(net.state_dict()[name], value)


torch.manual_seed(0)
trained_values = trained()


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key,
        lambda key: f"module.{key}",
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: f"_orig_mod.module.{key}",
        lambda key: key.replace("embed.", "embed._orig_mod."),
        lambda key: "module." + key.replace("module.", "module._checkpoint_wrapped_module."),
    ],
)
def test_the_marks_of_wrappers_are_undone(rename: Callable[[str], str]) -> None:
    """In any combination, though a child of the model is itself called `module`."""
    net = Net()

    load_weights(net, {rename(key): value for key, value in trained_values.items()}, FILE)

    assert_loaded(net)


@pytest.mark.parametrize("absent", ["head.weight", "embed.weight"])
def test_a_tied_weight_may_be_stored_under_either_name(absent: str) -> None:
    """Safetensors stores it once; the two names stay one parameter."""
    net = Net()

    load_weights(net, {k: v for k, v in trained_values.items() if k != absent}, FILE)

    assert_loaded(net)
    assert net.head.weight is net.embed.weight
    assert tied_names(net) == {"head.weight": "embed.weight"}


def test_tied_names_that_disagree_are_refused() -> None:
    """Loading would keep one of the two values without a word."""
    different = {**trained_values, "head.weight": trained_values["head.weight"] + 1}

    with pytest.raises(SourceError, match=r"'head\.weight' and 'embed\.weight' are one tied"):
        load_weights(Net(), different, FILE)
    untied = Net(tied=False)
    load_weights(untied, different, FILE)
    assert torch.equal(untied.head.weight, different["head.weight"])


def test_names_that_do_not_fit_are_listed_with_their_neighbours() -> None:
    """A renamed layer is recognised at a glance, and nothing is loaded."""
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    renamed = {k.replace("module.", "modul3."): v for k, v in trained_values.items()}

    with pytest.raises(SourceError) as caught:
        load_weights(net, renamed, FILE)

    text = str(caught.value)
    assert "Missing from the file (2 of 5):\n  module.weight  (near: modul3.weight)\n" in text
    assert "Unexpected in the file (2 of 5):\n  modul3.weight  (near: module.weight)\n" in text
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_file_of_another_model_is_told_as_such() -> None:
    """Long lists are cut."""
    other = {f"blocks.{i}.scale": torch.ones(1) for i in range(20)}

    with pytest.raises(SourceError, match=r"(?s)and 14 more\nNo name fits: is this the right"):
        load_weights(Net(), other, FILE)


def test_wrong_shapes_are_listed_with_both() -> None:
    """A config of another width shows as such."""
    wrong = {**trained_values, "module.weight": torch.ones(8, 4), "module.bias": torch.ones(8)}

    with pytest.raises(SourceError) as caught:
        load_weights(Net(), wrong, FILE)

    assert "  module.weight: [8, 4] in the file, [4, 4] in the model\n" in str(caught.value)
    assert "  module.bias: [8] in the file, [4] in the model\n" in str(caught.value)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "Inf")])
def test_a_diverged_parameter_is_named(value: float, word: str) -> None:
    """A mask with -inf is none."""
    broken = {**trained_values, "module.bias": torch.tensor([1, 1, value, 1])}

    with pytest.raises(SourceError, match=rf"'module\.bias' holds {word}"):
        load_weights(Net(), broken, FILE)


def test_a_value_beyond_the_range_of_float32_is_told() -> None:
    """It would become Inf in the module."""
    wide = {**trained_values, "module.bias": torch.full((4,), 1e300, dtype=torch.float64)}

    with pytest.raises(SourceError, match=r"'module\.bias' holds Inf"):
        load_weights(Net(), wide, FILE)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.ones(4, dtype=torch.int8), "is torch.int8, in the model torch.float32"),
        (torch.ones(4).to_sparse(), "is sparse, nested or quantized"),
        (torch.ones(4, device="meta"), "is without data"),
        (torch.ones(4, dtype=torch.complex64), "is complex"),
        (torch.ones(1).expand(2**50), r"\[1125899906842624\] in the file, \[4\] in the model"),
        ([1.0, 1.0, 1.0, 1.0], "is not a tensor but list"),
    ],
)
def test_tensors_of_another_kind_are_refused(bias: object, message: str) -> None:
    """PyTorch would convert the first without a word."""
    with pytest.raises(SourceError, match=message):
        load_weights(Net(), {**trained_values, "module.bias": bias}, FILE)


def test_half_precision_is_widened_exactly_and_told() -> None:
    """Whether the file, the module or both are in half precision."""
    halves = {name: value.bfloat16() for name, value in trained_values.items()}
    net = Net().bfloat16()

    notes = load_weights(net, halves, FILE)

    assert net.module.weight.dtype is torch.float32
    assert torch.equal(net.module.weight.bfloat16(), halves["module.weight"])
    assert notes == ("model.pt: bfloat16 weights are widened to float32.",)


def test_what_averaging_and_others_leave_behind_is_left_out() -> None:
    """`AveragedModel` counts its updates; plain values beside the tensors are told."""
    net = Net()
    averaged = {f"module.{name}": value for name, value in trained_values.items()}

    notes = load_weights(net, {"n_averaged": torch.tensor(7), **averaged, "epoch": 3}, FILE)

    assert_loaded(net)
    assert notes == ("model.pt: left out epoch: not tensors.",)


def test_a_key_that_two_names_lead_to_is_refused() -> None:
    """Which of the two is meant cannot be known."""
    with pytest.raises(SourceError, match=r"'embed\.weight' twice, once as 'module\.embed\.weight"):
        load_weights(
            Net(), {**trained_values, "module.embed.weight": trained_values["embed.weight"]}, FILE
        )


class Renamed(nn.Module):
    """Reads files in which `layer` was called `old`, its weight transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_load_state_dict_pre_hook(self.rename)  # type: ignore[no-untyped-call]

    @staticmethod
    def rename(_module: nn.Module, entries: dict[str, Tensor], prefix: str, *_: object) -> None:
        for name in [name for name in entries if name.startswith(f"{prefix}old.")]:
            value = entries.pop(name)
            new = name.replace("old.", "layer.", 1)
            entries[new] = value.T if value.dim() == 2 else value


def test_names_are_those_after_the_hooks_of_the_module() -> None:
    """Hooks run once, before names are compared, and stay with the module."""
    weight, bias = torch.arange(6.0).reshape(2, 3), torch.ones(3)
    net = Renamed()
    load_weights(net, {"old.weight": weight, "old.bias": bias}, FILE)

    assert torch.equal(net.layer.weight, weight.T)
    net.load_state_dict({"old.weight": weight + 1, "old.bias": bias})
    assert torch.equal(net.layer.weight, weight.T + 1)
    with pytest.raises(SourceError, match=r"Missing from the file \(1 of 2\)"):
        load_weights(net, {"old.bias": bias}, FILE)


def test_a_hook_that_fails_is_named() -> None:
    with pytest.raises(SourceError, match=r"Renamed '' changes .* AttributeError"):
        load_weights(Renamed(), {"old.weight": None}, FILE)
