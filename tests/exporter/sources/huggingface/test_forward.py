"""The library's own step, beside the plain forward that is traced; profiles measure it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from intaglio.exporter.proving.eager import OWN_CACHE, RECOMPUTED, Runner
from intaglio.exporter.sources.load import load_source


@pytest.fixture(scope="module")
def module(original: Path) -> Any:
    return load_source(original).module


def test_the_librarys_own_step_gives_what_the_plain_forward_gives(module: Any) -> None:
    """Token after token with its cache, against all of them at once without."""
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        expected = module(input_ids=ids)["logits"]
        _, past = module.step_with_cache(None, input_ids=ids[:, :3])
        for at in range(3, 6):
            found, past = module.step_with_cache(past, input_ids=ids[:, at : at + 1])

            torch.testing.assert_close(found[:, -1], expected[:, at], rtol=1e-4, atol=1e-5)


def test_a_step_is_measured_with_the_librarys_own_cache(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token at the very context, however often; the prompt still in one pass."""
    runner = Runner()
    facts = runner.load(str(original), 1, {})
    kind = type(runner._source.module)
    seen: list[tuple[int, int]] = []
    step = kind.step_with_cache  # type: ignore[attr-defined]

    def count(self: Any, past: Any, input_ids: torch.Tensor) -> Any:
        kept = 0 if past is None else past["past_key_values"].get_seq_length()
        seen.append((kept, input_ids.shape[1]))
        return step(self, past, input_ids=input_ids)

    monkeypatch.setattr(kind, "step_with_cache", count)
    runner.ready("step", 7, 1)
    runner.run(0, 2)
    runner.ready("prefill", 5, 1)
    runner.run(0, 1)

    assert facts["about"] == {"step": OWN_CACHE}
    assert seen == [(0, 7), (7, 1), (7, 1)]


def test_a_step_that_computes_something_else_is_not_measured(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the forward pass over everything is, and the report says so."""
    runner = Runner()
    runner.load(str(original), 1, {})
    kind = type(runner._source.module)
    step = kind.step_with_cache  # type: ignore[attr-defined]
    monkeypatch.setattr("intaglio.exporter.proving.eager.load", lambda *_: runner._source)

    def wrong(self: Any, past: Any, **given: torch.Tensor) -> Any:
        found, past = step(self, past, **given)
        return found + 1, past

    monkeypatch.setattr(kind, "step_with_cache", wrong)
    assert Runner().load(str(original), 1, {})["about"] == {"step": RECOMPUTED}


def test_a_token_of_padding_hides_no_token_before_it(tmp_path: Path) -> None:
    """XLM takes it for the end of a row unless it is given a mask; then the last one is hidden."""
    config = transformers.XLMConfig(
        vocab_size=20, emb_dim=8, n_layers=1, n_heads=2, causal=True, max_position_embeddings=16
    )
    transformers.XLMWithLMHeadModel(config).save_pretrained(tmp_path)
    source: Any = load_source(tmp_path).module
    ids = torch.tensor([[5, config.pad_token_id, 7, 8]])
    with torch.inference_mode():
        whole, part = (source(input_ids=each)["logits"] for each in (ids, ids[:, :3]))
    torch.testing.assert_close(whole[:, :3], part)
