"""Whisper in a folder of onnxruntime-genai: its encoder runs once, and the same tokens come out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import pytest
import torch
import transformers

import intaglio
from intaglio.errors import OptionError
from intaglio.exporter.export import ExportReport
from intaglio.exporter.writing.genai import add_genai
from intaglio.runtime import Manifest
from intaglio.runtime.graph_entry import MAIN, TensorSpec
from intaglio.state import Layout

LENGTH = 24
PROMPT = [1, 7, 9]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of Whisper with all its frames, two layers each, whose greedy tokens differ."""
    torch.manual_seed(3)
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=2, num_mel_bins=4,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, init_std=0.3,
        decoder_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, max_target_positions=64,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("speech") / "whisper"
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> ExportReport:
    return intaglio.export(source, source.parent / "b", layout="genai", verify=False)


def features() -> Any:
    return np.random.default_rng(0).normal(size=(2, 4, 3000)).astype(np.float32)


def test_genai_generates_the_tokens_that_the_library_does(
    source: Path, exported: ExportReport
) -> None:
    """Of two rows that hear different things; the prompt is three tokens."""
    model = genai.Model(str(exported.out))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=LENGTH, min_length=LENGTH, batch_size=2)
    generator = genai.Generator(model, options)
    heard = genai.NamedTensors()
    heard["input_features"] = features()
    generator.set_inputs(heard)
    generator.append_tokens(np.array([PROMPT] * 2, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [list(map(int, generator.get_sequence(row))) for row in range(2)]

    module: Any = transformers.WhisperForConditionalGeneration.from_pretrained(source)
    module.eval()
    ids = torch.tensor([PROMPT] * 2)
    with torch.no_grad():
        for _ in range(LENGTH - len(PROMPT)):
            given = torch.from_numpy(features())
            logits = module(input_features=given, decoder_input_ids=ids).logits[:, -1]
            logits[:, 2] = -torch.inf  # the end, before the least length
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)

    assert found == ids.tolist()
    assert found[0] != found[1]
    assert len(set(found[0])) > 4


def test_both_graphs_share_the_weights_of_the_bundle(exported: ExportReport) -> None:
    config = json.loads((exported.out / "genai_config.json").read_text())["model"]

    assert config["type"] == "whisper"
    for name in (config["encoder"]["filename"], config["decoder"]["filename"]):
        weights = (exported.out / "model.onnx.data").stat().st_size
        assert (exported.out / name).stat().st_size < weights
    assert exported.manifest.main.targets["genai"].path == "genai.onnx"


def with_main(exported: ExportReport, **changes: Any) -> Manifest:
    return exported.manifest.with_graph(MAIN, replace(exported.manifest.main, **changes))


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("input_features", "float32", ("batch", 4, 2000)),
        TensorSpec("input_ids", "int64", ("batch", "source")),
        TensorSpec("scale", "float32", ()),
    ],
)
def test_other_conditions_are_refused(exported: ExportReport, spec: TensorSpec) -> None:
    with pytest.raises(
        OptionError, match=rf"{spec.name} once for a sequence.* \[batch, mels, 3000"
    ):
        add_genai(exported.out, with_main(exported, conditions=(spec,)))


def test_what_is_computed_once_must_be_keys_and_values(exported: ExportReport) -> None:
    """Of every layer, in the shape that genai allocates."""
    states = list(exported.manifest.main.states)
    once = next(i for i, state in enumerate(states) if state.layout is Layout.PREPARED)
    states[once] = replace(states[once], shape=("batch", 2, 750, 8))
    changed = with_main(exported, states=tuple(states))
    with pytest.raises(OptionError, match=r"'model\.decoder\.layers\.0\.encoder_attn' reads .*750"):
        add_genai(exported.out, changed)
    fewer = with_main(exported, states=exported.manifest.main.states[:-2])
    with pytest.raises(OptionError, match="4 caches and reads 2 values"):
        add_genai(exported.out, fewer)
