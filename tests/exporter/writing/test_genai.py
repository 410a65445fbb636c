"""A bundle with the layout of onnxruntime-genai: genai opens its folder and generates the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import pytest

import intaglio
from intaglio.errors import OptionError
from intaglio.exporter.export import ExportReport
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.writing.genai import add_genai
from intaglio.runtime import Manifest, Session, generate
from intaglio.runtime.graph_entry import MAIN
from intaglio.state import Layout, StateSpec

CHECKPOINTS = Path(__file__).parents[3] / "models" / "checkpoints"
PROMPT = np.frombuffer(b"def main(", np.uint8).astype(np.int64)
LENGTH = 40


def by_genai(folder: Path, rows: int) -> list[list[int]]:
    """The greedy sequences of genai, `rows` times the same prompt."""
    model = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(
        max_length=LENGTH, min_length=LENGTH, batch_size=rows, do_sample=False
    )
    generator = genai.Generator(model, options)
    generator.append_tokens(np.stack([PROMPT] * rows).astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [list(map(int, generator.get_sequence(row))) for row in range(rows)]


def by_session(folder: Path) -> list[int]:
    session = Session.load(folder)
    new = generate(session, PROMPT, max_new_tokens=LENGTH - len(PROMPT))
    return [*map(int, PROMPT), *new]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """A bundle for any number of rows."""
    out = tmp_path_factory.mktemp("genai") / "b"
    return intaglio.export(CHECKPOINTS / "llama.pt", out, layout="genai", steps=8)


def test_genai_generates_the_tokens_that_a_session_generates(exported: ExportReport) -> None:
    assert by_genai(exported.out, 2) == [by_session(exported.out)] * 2
    assert exported.manifest.main.targets["ort"].parity == "passed"
    assert exported.manifest.main.targets["genai"].parity.startswith("not run")


def test_it_does_so_with_the_fused_attention_of_one_row(tmp_path: Path) -> None:
    shapes = ServedShapes.parse(shapes=["input_ids:1x1:1x16:1x512"])
    out = tmp_path / "b"
    intaglio.export(CHECKPOINTS / "llama.pt", out, layout="genai", shapes=shapes, verify=False)

    assert by_genai(out, 1) == [by_session(out)]


def test_the_graph_for_genai_shares_the_weights_of_the_bundle(exported: ExportReport) -> None:
    weights = (exported.out / "model.onnx.data").stat().st_size
    config = json.loads((exported.out / "genai_config.json").read_text())

    assert (exported.out / "genai.onnx").stat().st_size < weights / 4
    assert config["model"]["vocab_size"] == 256


def test_a_recurrent_state_is_refused_by_name_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'layers\.0\.mixer' carries .* of layout recurrent"):
        intaglio.export(CHECKPOINTS / "gla.pt", tmp_path / "b", layout="genai", verify=False)
    assert not list(tmp_path.iterdir())


def with_states(exported: ExportReport, *states: StateSpec) -> Manifest:
    return exported.manifest.with_graph(MAIN, replace(exported.manifest.main, states=states))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": Layout.WINDOW}, "of layout window"),
        ({"layout": Layout.GROW}, "of layout grow"),
        ({"input": "past_key_values.0.key.self_attn"}, "'past_key_values.0.key.self_attn'"),
        ({"shape": ("batch", 9, "capacity", 32)}, "different shapes"),
    ],
)
def test_a_cache_that_genai_does_not_know_is_refused(
    exported: ExportReport, change: dict[str, Any], words: str
) -> None:
    first, *rest = exported.manifest.main.states
    manifest = with_states(exported, replace(first, **change), *rest)

    with pytest.raises(OptionError, match=words):
        add_genai(exported.out, manifest)


def test_other_graphs_lie_beside_it(exported: ExportReport) -> None:
    """Genai opens the one called main; those beside it may be of any kind."""
    main = exported.manifest.main
    other = replace(main, states=(), whole=True, targets={"ort": main.targets["ort"]})
    manifest = add_genai(exported.out, exported.manifest.with_graph("encode", other))

    assert ["genai" in each.targets for each in manifest.graphs.values()] == [True, False]


def test_a_layer_without_a_cache_is_refused(exported: ExportReport) -> None:
    manifest = with_states(exported, *exported.manifest.main.states[2:])

    with pytest.raises(OptionError, match="only its layers 1, 2, 3 have a cache"):
        add_genai(exported.out, manifest)
