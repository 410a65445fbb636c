"""The library's module is filled by its checkpoint, wholly, or the fault is named."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import dynamic_module_utils

from intaglio.errors import SourceError
from intaglio.exporter.sources.huggingface.directory import read_directory
from intaglio.exporter.sources.huggingface.library_module import build

WEIGHTS = "model.safetensors"
NORM = "model.layers.1.input_layernorm.weight"
Change = Callable[[dict[str, Tensor]], None]


def rewrite(path: Path, change: Change) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)


def configure(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def test_no_backbone_is_looked_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config may name a repository whose weights the library would fetch."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments)
        raise OSError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    named = {"backbone": "user/repository", "use_pretrained_backbone": True}
    configure(directory, model_type="dpt", architectures=["DPTModel"], **named)
    with pytest.raises(SourceError, match=r"config\.json is refused|cannot be built"):
        build(read_directory(directory), allow_code=False)
    assert asked == []


@pytest.mark.parametrize("auto", ["evil.Model", ["evil.Model"]])
@pytest.mark.parametrize("kind", ["llama", "unknown"])
def test_an_auto_map_is_a_table(directory: Path, auto: Any, kind: str) -> None:
    configure(directory, auto_map=auto, model_type=kind)
    with pytest.raises(SourceError, match="auto_map that is no table"):
        build(read_directory(directory), allow_code=False)


def test_a_model_that_the_files_cannot_fill_is_not_built(directory: Path) -> None:
    """One of several gigabytes, whose missing weights the library would make."""
    configure(directory, model_type="rag", architectures=["RagModel"])
    with pytest.raises(SourceError, match=r"far more .* than the \d+ tensors of the files fill"):
        build(read_directory(directory), allow_code=False)


def test_the_network_is_never_asked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading needs no name resolved and no connection made."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    module, notes = build(read_directory(directory), allow_code=False)

    assert (type(module).__name__, notes) == ("LlamaForCausalLM", ())
    assert not module.training
    assert not any(p.requires_grad or p.is_meta for p in module.parameters())


def test_half_precision_is_widened_and_its_cost_stated(directory: Path) -> None:
    """The note counts bytes before and after; values are the file's own."""
    before = load_file(directory / WEIGHTS)
    rewrite(directory, lambda t: t.update({name: x.bfloat16() for name, x in t.items()}))
    configure(directory, dtype="bfloat16")
    module, [note] = build(read_directory(directory), allow_code=False)
    size = sum(x.nbytes for x in before.values())

    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert note.endswith(
        f"bfloat16 weights are widened to float32: {size // 2:,} bytes become {size:,}."
    )
    torch.testing.assert_close(module.state_dict()[NORM], before[NORM].bfloat16().float())


def test_tied_weights_need_one_name(directory: Path) -> None:
    """The head is the embedding where the config ties them, and the file has it once."""
    rewrite(directory, lambda t: t.__delitem__("lm_head.weight"))
    configure(directory, tie_word_embeddings=True)
    module, _ = build(read_directory(directory), allow_code=False)
    parameters = dict(module.named_parameters(remove_duplicate=False))

    assert parameters["lm_head.weight"] is parameters["model.embed_tokens.weight"]


def test_weights_without_a_place_are_noted(directory: Path) -> None:
    """A head of another task does no harm; it is named."""
    rewrite(directory, lambda t: t.update({"cls.weight": torch.ones(2)}))
    _, notes = build(read_directory(directory), allow_code=False)

    assert notes == ("1 weights have no place in the model: cls.weight.",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.__delitem__(NORM), rf"Missing from the file .*\n  {NORM}"),
        (lambda t: t.update({f"{NORM}s": t.pop(NORM)}), rf"{NORM}  \(near: {NORM}s\)"),
        (
            lambda t: t.update({NORM: torch.ones(7)}),
            rf"{NORM}: \[7\] in the file, \[32\] in the model",
        ),
        (lambda t: t.update({NORM: torch.full((32,), torch.nan)}), f"'{NORM}' holds NaN"),
        (lambda t: t.update({NORM: torch.full((32,), torch.inf)}), f"'{NORM}' holds Inf"),
        (
            lambda t: t.update({NORM.replace("1", "2"): torch.ones(32)}),
            r"Unexpected in the file .*\n  model\.layers\.2\.input",
        ),
        (
            lambda t: [t.update({f"h.{n}": t.pop(n)}) for n in list(t)],
            "No name fits: is this the right model",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(directory: Path, change: Change, message: str) -> None:
    """A layer beyond those of the config is a fault too: the config is another model's."""
    rewrite(directory, change)

    with pytest.raises(SourceError, match=message):
        build(read_directory(directory), allow_code=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "sundial"}, r"model_type 'sundial', which transformers \d+\.\d"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\], which transformers \d+\.\d"),
        ({"architectures": ["LlamaForSundials"]}, r"architecture 'LlamaForSundials'"),
        ({"architectures": ["Trainer"]}, r"architecture 'Trainer'"),
        ({"architectures": ["AutoTokenizer"]}, r"architecture 'AutoTokenizer'"),
        ({"quantization_config": {"quant_method": "quanto"}}, "quantized by 'quanto'"),
        ({"num_attention_heads": 5}, "LlamaForCausalLM cannot be built|is refused"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(
    directory: Path, values: dict[str, Any], message: str
) -> None:
    configure(directory, **values)

    with pytest.raises(SourceError, match=message):
        build(read_directory(directory), allow_code=False)


def test_code_of_the_directory_runs_only_where_it_is_allowed(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is named in the refusal; allowed, its classes are used."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    (directory / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    configure(
        directory,
        model_type="mine",
        architectures=["MineForCausalLM"],
        auto_map={
            "AutoConfig": "mine.MineConfig",
            "AutoModelForCausalLM": "mine.MineForCausalLM",
        },
    )
    with pytest.raises(SourceError, match=r"code of its own \(mine\.py\).*--allow-code"):
        build(read_directory(directory), allow_code=False)

    module, _ = build(read_directory(directory), allow_code=True)
    assert type(module).__name__ == "MineForCausalLM"
