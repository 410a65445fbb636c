"""Hugging Face directories: the library's own modules become step engines, whatever the family.

Directories are made in the test, tiny and random; the library itself is the judge, in its own
attention: its full forward, and the tokens that it generates with its own cache.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import intaglio
from intaglio.errors import InputError, OptionError, SourceError
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.sources.load import load_source
from intaglio.runtime import Draft, Session
from intaglio.runtime.generation import generate, generate_rows
from intaglio.state import Layout

VOCABULARY, TIME = 96, 24
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4,
                        "n_positions": 64, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
DISTIL: dict[str, Any] = {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2,
                          "n_heads": 4, "max_position_embeddings": 64}  # fmt: skip

WINDOW, STATIC = Layout.WINDOW, Layout.STATIC
LIBRARY: Any = transformers  # partly without types
DECODERS: dict[str, tuple[Any, list[Layout]]] = {
    "llama": (transformers.LlamaConfig(**GROUPED), [STATIC, STATIC]),
    "gemma3": (  # norms of queries and keys, and windows, as Qwen3 and Mistral have them
        transformers.Gemma3TextConfig(
            **GROUPED, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        ),
        [WINDOW, STATIC],
    ),
    "gpt2": (transformers.GPT2Config(**GPT2), [STATIC, STATIC]),
}
ROTATED = {"llama", "gemma3"}
ENCODERS = {
    "bert": transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)),
    "distilbert": transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(**DISTIL)
    ),
}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "forced_eos_token_id": None, "init_std": 0.3,
}  # fmt: skip
torch.manual_seed(2)  # so that greedy tokens differ
ENCODER_DECODERS = {
    "bart": transformers.BartForConditionalGeneration(
        transformers.BartConfig(**BART, max_position_embeddings=64)
    ),
    "whisper": transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **BART, max_source_positions=10, max_target_positions=64, num_mel_bins=8,
            suppress_tokens=None, begin_suppress_tokens=None,
        )
    ),
}  # fmt: skip


def save(module: transformers.PreTrainedModel, path: Path) -> Any:
    """Write the directory, return the module as the library reads it back."""
    torch.set_num_threads(1)
    module.save_pretrained(path)
    return type(module).from_pretrained(path, attn_implementation="eager")


def tokens(batch: int, time: int) -> Any:
    return np.random.default_rng(0).integers(0, VOCABULARY, (batch, time))


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_steps_as_the_library_does(family: str, tmp_path: Path) -> None:
    """Forward and greedy generation; norms, rotations and attention are single nodes."""
    config, layouts = DECODERS[family]
    torch.manual_seed(0)
    judge = save(LIBRARY.AutoModelForCausalLM.from_config(config), tmp_path / "source")
    report = intaglio.export(
        tmp_path / "source", tmp_path / "bundle", steps=TIME, check_passes=family == "gemma3"
    )
    ids = tokens(2, TIME)
    session = Session.load(tmp_path / "bundle", threads=1)
    parts = [session.step({"input_ids": ids[:, a:b]})["logits"] for a, b in ((0, 9), (9, TIME))]
    with torch.no_grad():
        expected = judge(torch.from_numpy(ids)).logits.numpy()
        prompt = torch.from_numpy(ids[:1])
        mask = torch.ones_like(prompt)  # else the library takes tokens like its padding for that
        wanted = judge.generate(prompt, attention_mask=mask, max_new_tokens=16, do_sample=False)
    session.state.reset()

    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-4)
    assert list(generate(session, ids[0], max_new_tokens=16)) == wanted[0, TIME:].tolist()
    assert [spec.layout for spec in report.manifest.main.states[::2]] == layouts
    assert {spec.module.rpartition(".")[2] for spec in report.manifest.main.states} <= {
        "self_attn",
        "attn",
    }
    fused = {record["name"]: record["changed"] for record in report.manifest.main.passes}
    assert fused["fuse-rotary"] is (family in ROTATED)
    assert fused["fuse-rms-norm"] is (family in ROTATED)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_takes_whole_sequences(family: str, tmp_path: Path) -> None:
    """Nothing is carried; the mask may be left out, and hides what is behind a row's end."""
    judge = save(ENCODERS[family], tmp_path / "source")
    report = intaglio.export(tmp_path / "source", tmp_path / "bundle", steps=TIME)
    session = Session.load(tmp_path / "bundle", threads=1)
    ids, lengths = tokens(3, 12), [12, 5, 8]
    mask = (np.arange(12) < np.array(lengths)[:, None]).astype(np.int64)
    with torch.no_grad():
        plain = judge(torch.from_numpy(ids)).logits.numpy()
        masked = judge(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    ragged = session.step({"input_ids": ids}, lengths=lengths)["logits"]

    assert (report.manifest.main.whole, report.manifest.main.states) == (True, ())
    for _ in range(2):  # nothing is left of the first call
        np.testing.assert_allclose(session.step({"input_ids": ids})["logits"], plain, atol=1e-5)
    got = session.step({"input_ids": ids, "attention_mask": mask})["logits"]
    np.testing.assert_allclose(got, masked, atol=1e-5)
    for row, length in enumerate(lengths):
        end = length if ragged.ndim == 3 else None
        np.testing.assert_allclose(ragged[row][:end], masked[row][:end], atol=1e-5)
    with pytest.raises(intaglio.errors.InputError, match="takes whole sequences"):
        generate(session, [1], max_new_tokens=1)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_an_encoder_decoder_decodes_as_the_library_does(family: str, tmp_path: Path) -> None:
    """What its encoder takes is given once, rows of unequal length padded; greedy generation."""
    judge = save(ENCODER_DECODERS[family], tmp_path / "source")
    report = intaglio.export(tmp_path / "source", tmp_path / "bundle", steps=8)
    session = Session.load(tmp_path / "bundle", threads=1)
    given: dict[str, Any] = {"input_features": np.random.default_rng(0).random((3, 8, 20), "f")}
    if family == "bart":
        ids, lengths = tokens(3, 12), np.array([12, 5, 1])
        given = {"input_ids": ids, "attention_mask": (np.arange(12) < lengths[:, None]).astype(int)}
    judge.generation_config.eos_token_id = None
    with torch.no_grad():
        wanted = judge.generate(
            **{name: torch.from_numpy(x) for name, x in given.items()}, max_new_tokens=12,
            do_sample=False, num_beams=1,
        )  # fmt: skip
    session.condition(given)
    rows = list(generate_rows(session, [[1]] * 3, max_new_tokens=12))

    assert np.stack([row.tokens for row in rows], 1).tolist() == wanted[:, -12:].tolist()
    assert len(set(wanted[0, 1:].tolist())) > 1
    states = [spec for spec in report.manifest.main.states if spec.layout is Layout.PREPARED]
    assert {spec.module for spec in states} >= {
        f"model.decoder.layers.{layer}.encoder_attn" for layer in (0, 1)
    }
    step, prepare = (report.manifest.graphs[name] for name in ("main", "prepare"))
    assert [spec.name for spec in prepare.inputs] == list(given)
    assert [spec.name for spec in step.inputs] == ["decoder_input_ids"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(DECODERS["llama"][0]).save_pretrained(path)
    return path


def test_parameters_keep_the_names_of_the_checkpoint(tiny: Path) -> None:
    source = load_source(tiny)

    assert (source.model, source.whole) == ("LlamaForCausalLM", False)
    assert "model.layers.1.self_attn.q_proj.weight" in dict(source.module.named_parameters())


def test_logits_of_the_last_token_alone(tiny: Path, tmp_path: Path) -> None:
    """They are those that the library gives, of rows of any length, and enough to generate by."""
    report = intaglio.export(tiny, tmp_path / "bundle", last=True, steps=12)
    assert report.parity is not None
    assert report.parity.passed
    assert report.manifest.main.outputs[0].shape == ("batch", 1, VOCABULARY)
    assert intaglio.verify(tmp_path / "bundle", tiny, steps=12).passed

    session = Session.load(tmp_path / "bundle")
    library: Any = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    ids = 1 + np.arange(14).reshape(2, 7)  # of which none pads
    with torch.no_grad():
        wanted = library(torch.from_numpy(ids)).logits.numpy()
    found = session.fork().step({"input_ids": ids}, lengths=[7, 3])["logits"]
    np.testing.assert_allclose(found[:, 0], [wanted[0, 6], wanted[1, 2]], atol=1e-5)

    greedy = library.generate(torch.from_numpy(ids[:1]), max_new_tokens=6, do_sample=False)
    with pytest.raises(InputError, match="export it without --last"):
        next(generate(session, ids[0], max_new_tokens=6, draft=Draft(session.fork())))
    tokens = [*generate(session, ids[0], max_new_tokens=greedy.shape[1] - 7)]
    assert tokens == greedy[0, 7:].tolist()


def test_whether_a_model_without_a_head_can_be_stepped_is_found_by_trying(tmp_path: Path) -> None:
    """Of two bare models the causal one steps; a pooled result is one for the whole."""
    transformers.LlamaModel(DECODERS["llama"][0]).save_pretrained(tmp_path / "causal")
    pooled = LIBRARY.LlamaForSequenceClassification(DECODERS["llama"][0])
    pooled.save_pretrained(tmp_path / "pooled")

    assert not load_source(tmp_path / "causal").whole
    assert load_source(tmp_path / "pooled").whole


@pytest.mark.parametrize("option", ["model", "config", "key", "import_from", "inputs"])
def test_options_that_the_directory_answers_itself_are_refused(tiny: Path, option: str) -> None:
    assert option in LoadOptions.__dataclass_fields__
    with pytest.raises(OptionError, match=option.replace("_", "-")):
        load_source(tiny, **{option: ["x"] if option == "import_from" else "x"})  # type: ignore[arg-type]


def test_alibi_that_is_written_out_steps(tmp_path: Path) -> None:
    """Bloom adds its biases to scores by hand."""
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0
    )
    transformers.BloomForCausalLM(config).save_pretrained(tmp_path / "source")

    report = intaglio.export(tmp_path / "source", tmp_path / "bundle", steps=20)

    assert report.parity is not None
    assert report.parity.passed


def test_models_of_pictures_are_exported_whole(tmp_path: Path) -> None:
    """Their sizes are those of the config."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    module: Any = transformers.ViTModel(config)
    module.save_pretrained(tmp_path / "vit")
    report = intaglio.export(tmp_path / "vit", tmp_path / "bundle")
    picture = torch.randn(2, 3, 8, 8)
    found = Session.load(tmp_path / "bundle").step({"pixel_values": picture.numpy()})
    with torch.no_grad():
        wanted = module(picture).last_hidden_state.numpy()

    assert report.manifest.main.whole
    assert report.manifest.main.inputs[0].shape == ("batch", 3, 8, 8)
    np.testing.assert_allclose(found["last_hidden_state"], wanted, atol=1e-5)


def test_what_is_not_known_to_be_taken_is_told(tmp_path: Path) -> None:
    """A model of two inputs that no layout serves."""
    config = transformers.TimeSeriesTransformerConfig(
        prediction_length=2, context_length=4, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=8, decoder_ffn_dim=8, is_encoder_decoder=False,
    )  # fmt: skip
    transformers.TimeSeriesTransformerModel(config).save_pretrained(tmp_path)

    with pytest.raises(SourceError, match=r"takes 'past_values', in a layout that is not known"):
        load_source(tmp_path)
