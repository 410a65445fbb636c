"""Recurrences are exchanged while a module is traced, never unseen, and put back."""

from typing import Any

import pytest
import torch
import transformers
from transformers.models.mamba2 import modeling_mamba2

from intaglio.errors import TraceError
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing import mixers
from intaglio.exporter.tracing.exchanged import exchanged
from intaglio.ops import LINEAR_ATTENTION

LIBRARY: Any = modeling_mamba2
NAME = "mamba2_chunk_scan"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mamba2")
    config = transformers.Mamba2Config(
        vocab_size=31, hidden_size=8, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=4,
        n_groups=2, chunk_size=4,
    )  # fmt: skip
    transformers.Mamba2ForCausalLM(config).save_pretrained(path)
    return load_source(path)


def program(source: Source) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(source.module, (), source.inputs, strict=False)


def test_a_module_uses_the_operator_while_it_is_traced_and_only_then(source: Source) -> None:
    original = getattr(LIBRARY, NAME)
    with exchanged(source, source.module):
        calls = [node.target for node in program(source).graph.nodes]

        assert getattr(LIBRARY, NAME) is mixers.chunk_scan
    assert calls.count(LINEAR_ATTENTION.torch_op) == 1
    assert getattr(LIBRARY, NAME) is original


def test_a_function_that_a_module_keeps_is_exchanged_there_as_well(source: Source) -> None:
    """Classes of other versions choose between kernels once and remember."""
    part: Any = source.module.get_submodule("backbone.layers.0.mixer")
    part.scan = getattr(LIBRARY, NAME)
    with exchanged(source, source.module):
        assert part.scan is mixers.chunk_scan
    assert part.scan is getattr(LIBRARY, NAME)


def other_scale(*args: Any, **given: Any) -> Any:
    return 1.001 * mixers.chunk_scan(*args, **given)


def other_dtype(*args: Any, **given: Any) -> Any:
    return mixers.chunk_scan(*args, **given).double()


def not_finite(*args: Any, **given: Any) -> Any:
    return mixers.chunk_scan(*args, **given) * torch.nan


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (other_scale, "they differ by"),
        (other_dtype, "torch.float32 instead of .* torch.float64"),
        (not_finite, "they differ by nan"),
    ],
)
def test_a_function_that_computes_something_else_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch, function: Any, fault: str
) -> None:
    """By its name, the module that calls it and the version; nothing stays exchanged."""
    monkeypatch.setattr(LIBRARY, NAME, function)
    where = rf"In module 'backbone\.layers\.0\.mixer', .*\.{function.__name__} of .*{fault}"
    with pytest.raises(TraceError, match=where), exchanged(source, source.module):
        pass

    assert getattr(LIBRARY, NAME) is function


def test_a_function_with_other_arguments_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of the library may say with other arguments what it computes."""
    original = getattr(LIBRARY, NAME)
    monkeypatch.setitem(mixers.MIXERS, NAME, lambda *, other: other)

    fault = r"mamba2_chunk_scan of transformers \d.*TypeError"
    with pytest.raises(TraceError, match=fault), exchanged(source, source.module):
        pass
    assert getattr(LIBRARY, NAME) is original
