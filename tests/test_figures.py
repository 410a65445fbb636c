"""Figures on pages are those of the benchmarks' records, rounded."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from intaglio.models import MODELS

ROOT = Path(__file__).parents[1]


class Record(dict[str, dict[str, Any]]):
    """The rows of a record by name."""

    def __init__(self, name: str) -> None:
        text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
        super().__init__((row["name"], row) for row in json.loads(text)["rows"])

    def value(self, start: str) -> float:
        """That of the row of this name, or of the one whose name begins so."""
        (found,) = [start] if start in self else [name for name in self if name.startswith(start)]
        return float(self[found]["value"])

    def noted(self, name: str, form: str = r"\d+\.\d+") -> list[str]:
        """Numbers of a row's note, as it writes them."""
        return re.findall(form, self[name]["note"])


def al_rnn(told: Record) -> Iterator[str]:
    for network, prefix in (("trained here", "trained here: "), ("the authors'", "")):
        regions = f"{prefix}linear regions visited, of 4"
        share = ", ".join(told.noted(regions))
        changes = told.value(f"{prefix}changes between the wings")
        yield f"| {network} | {told.value(regions):.0f} | {share} | {changes:.0f} |"


def liger(told: Record) -> Iterator[str]:
    recipe = told.value("after the recipe")
    yield f"| the transformer | {told.value('transformer'):.3f} |"
    yield f"| its weights as a Liger, not tuned | {told.value('its weights'):.3f} |"
    yield f"numbers | {recipe:.3f} |"
    yield f"of the token itself alone | {told.value('after the recipe, each'):.3f} |"
    yield f"200 steps of all | {told.value('from random weights'):.3f} |"
    yield f"is {told.value('one state for each head'):.2f} times smaller"
    yield f"within {recipe - told.value('transformer'):.2f} nats of its transformer"


def mom(told: Record) -> Iterator[str]:
    states = [f"one state of {size}" for size in ("32 x 32", "128 x 32", "32 x 128")]
    for keys in (32, 64, 128):
        one, wide, long = (told.value(f"{keys} keys: {state}") for state in states)
        four = told.value(f"{keys} keys: 4 memories")
        yield f"| {keys} | {one:.3f} | {four:.3f} | {wide:.3f} | {long:.3f} |"
    yield f"{four:.2f} of 128 keys instead of {one:.2f}"
    yield f"({wide:.2f} of 128)"
    yield f"({long:.2f} of 128)"
    for pairs in (32, 64):
        sizes = ("16 x 16", "48 x 16", "16 x 48", "80 x 16", "16 x 80")
        kinds = ("4 memories", *(f"one state of {size}," for size in sizes))
        shown = " | ".join(f"{told.value(f'{pairs} pairs, trained: {k}'):.3f}" for k in kinds)
        yield f"| {pairs} | {shown} |"


def hybrid_linear_attention(told: Record) -> Iterator[str]:
    titles = ("linear alone", "three to one", "half and half", "attention alone")
    pages = ("Gated DeltaNet alone", "three to one attention", *titles[2:])
    for title, page in zip(titles, pages, strict=True):
        near, far = (told.value(f"{title}: state of a row after {n}") for n in (128, 16384))
        error = f"{told.value(f'{title}: steps'):.1e}".replace("e-0", "e-")
        yield f"| {page} | {near:,.0f} | {far:,.0f} | {error} |"


def mvar(told: Record) -> Iterator[str]:
    carried, joined = (told.value(f"token-steps of Mamba in a layer, {x}") for x in ("c", "j"))
    ours, theirs = told.value("all scales, step"), told.value("all scales, joined")
    yield f"{carried:.0f} token-steps where states are carried and {joined:,.0f} where"
    yield f"joined, {told.value('joined again / carried'):.2f} times as many"
    yield f"Mamba alone took {told.value('time of Mamba'):.1f} times as long"
    yield f"took {ours:.0f} ms as a step engine and {theirs:.0f} ms joined again"
    yield f"by {told.value('error of all'):.1e} of the largest"


def nalaformer(told: Record) -> Iterator[str]:
    for kind in ("softmax", "linear, of ReLU", "norm-aware linear"):
        entropies = told.noted(f"{kind}: entropy at a norm of 0.25 - at 4", r": ([\d.]+)")
        yield f"| {kind} | {' | '.join(entropies)} |"


def seqboat(told: Record) -> Iterator[str]:
    for layers, page in enumerate(("none", "one of two", "both")):
        name = f"steps in which {layers} of 2 layers attend"
        (share,) = told.noted(name, r"(\d+)%")
        yield f"| {page} | {share} % | {told.value(name):.2f} ms |"
    yield f"leaves {told.value('tokens that the trained'):.0%}".replace("%", " %")


def hippo(told: Record) -> Iterator[str]:
    errors = {
        against: [
            told.value(f"{x}: error of the past, told : {against}")
            for x in ("legs", "legt", "fout")
        ]
        for against in ("best", "the theory's")
    }
    legs, legt, fout = errors["best"]
    yield f"is {legs:.3f} of the least one"
    yield f"{legt:.2f} and {fout:.2f} of the least error"
    _, legt, fout = errors["the theory's"]
    yield f"{legt:.3f} and {fout:.3f} of the error that follows"
    near = told.noted("legs: mean R2 of delays")
    assert near[0] == near[2]
    yield f"R2 {near[0]} of 10 to 100 tokens ago, {near[3]} of 200, {near[5]} of 800"
    window = told.noted("fout: mean R2 of delays")
    yield f"R2 {min(window)} to {max(window)} everywhere"
    for random in ("poles", "matrix"):
        yield f"R2 {told.noted(f'random {random}: mean R2 of delays')[4]} of 400 tokens ago"


def long_context(told: Record) -> Iterator[str]:
    contexts = (1024, 8192, 32_768, 103_000)
    whole, states = [], []
    for kind, paper in (("linear", 20.6), ("hybrid", 13.5)):
        names = [f"{kind}: times faster than softmax, context {n}" for n in contexts]
        shown = " | ".join(f"{told.value(name):.2f}" for name in names)
        predicted = re.findall(r"predict (\S+);", told[names[-1]]["against"])
        yield f"| {shown} | {predicted[0]} | {paper} |"
        below = f"{kind}: state of a row below softmax's, context 103000"
        whole += told.noted(below)
        states.append(f"{told.value(below):.1f}")
    yield f"{whole[0]} % (linear) and {whole[1]} % (hybrid) less memory"
    yield f"states alone {states[0]} % and {states[1]} % less"


def recurrent_family(told: Record) -> Iterator[str]:
    over = {name.partition(": ")[0] for name in told if name.endswith(": steps")
            and told.value(name) > 1e-5}  # fmt: skip
    assert len(over) == 3
    layers = [told.value(name) for name in told if name.endswith(": steps of a layer alone")]
    assert len(layers) == len(over)
    yield f"but three, of whose layers alone it is at most {max(layers):.1e}"


def compression(told: Record) -> Iterator[str]:
    ways = ("MoDeGPT", "magnitude", "SVD", "low rank by outputs")
    for share in (20, 30, 50):
        values = (f"{told.value(f'{way}, {share}%: perplexity'):.3g}" for way in ways)
        yield f"| {share} % | {' | '.join(values)} |"
    yield f"loses {told.value('excess of magnitude : MoDeGPT, 30%'):.0f} times less"
    yield f"but {1 / told.value('excess of SVD : MoDeGPT, 30%'):.1f} times more"
    yield f"steps {told.value('tokens per second at 30 %'):.2f} times as fast"


def compression_parts(told: Record) -> Iterator[str]:
    by_weights, by_outputs = "singular values of weights", "low rank by outputs"
    parts = ("feed-forwards", "queries and keys", "values and projection")
    found = [[told.value(f"{part}, {way}") for way in ("MoDeGPT", by_weights)] for part in parts]
    yield f"of feed-forwards alone it is at {found[0][0]:.2f} against {found[0][1]:.2f}"
    yield f"which lose whole pairs, at {found[1][0]:.2f} against {found[1][1]:.2f}"
    yield f"best product of a rank, are at {found[2][0]:.2f} against {found[2][1]:.2f}"
    low = [told.value(f"{part}, {by_outputs}") for part in parts]
    yield f"low rank by outputs is at {low[0]:.2f} and {low[1]:.2f} in the first two"
    less = [told.value(f"the smaller checkpoint, excess of SVD : MoDeGPT, {n}%") for n in (20, 30)]
    more = 1 / told.value("the smaller checkpoint, excess of SVD : MoDeGPT, 50%")
    yield f"({told.value('the smaller checkpoint, dense'):.2f} per byte)"
    yield f"{less[0]:.0f} times less than singular values of the weights at 20 %"
    yield f"and {less[1]:.1f} times less at 30 %, and {more:.1f} times more at 50 %"


def factor_costs(told: Record) -> Iterator[str]:
    right = told.value("choices by the model of the cost")
    (count, _) = told.noted("choices by the model of the cost within 5% of the faster", r"\d+")
    by_size = told.value("choices by parameters alone")
    yield f"{right * int(count):.0f} of {count} choices are within 5 %"
    yield f"of those by parameters alone {by_size * int(count):.0f}"


def compression_families(told: Record) -> Iterator[str]:
    assert all(row["holds"] for row in told.values())
    models = {name.partition(", m")[0] for name in told if name.endswith("modegpt: bundle")}
    assert len(models - {name for name in models if name[0] == "a" or "bfloat16" in name}) == 7
    yield "seven families of Hugging Face"


def streams(told: Record) -> Iterator[str]:
    for count in (1, 16, 64, 256):
        pairs = (("hybrid", "sessions"), ("100M", "sessions"), ("Llama", "genai"))
        values = (told.value(f"{kind}, {count} streams: against {peer}") for kind, peer in pairs)
        yield f"| {count} | {' | '.join(f'{value:.1f}' for value in values)} |"
    assert told["hybrid, reproducible: logits of other bits alone"]["holds"]
    assert told["memory that steps have grown it by"]["holds"]


def triton_server(told: Record) -> Iterator[str]:
    lost = "sequences that a killed server has lost"
    assert told[lost]["holds"]
    yield f"took {told.value('32 sequences: against streams'):.2f} of the tokens"
    yield f"({told.noted(lost, r'[0-9.]+e-[0-9]+')[0]} of the largest)"


def low_bit_prefill(told: Record) -> Iterator[str]:
    all_, last = (f"2 bits, integer zero points{of}" for of in ("", ", logits of the last token"))
    near, far = (
        told.value(f"decoder, {last} to ours, {all_}: prefill of {length}") for length in (64, 512)
    )
    yield f"prefills 64 tokens {near:.2f} times as fast and 512 tokens {far:.2f} times"
    held = [told.value(f"decoder, ours, {form}: peak memory") for form in (last, all_)]
    yield f"in {held[0] / held[1]:.2f} of the memory"
    peer = "decoder, {} to onnxruntime-genai, int4: {}"
    yield f"{told.value(peer.format(last, 'prefill of 512')):.2f} times onnxruntime-genai's int4"
    yield f"a step decoded {told.value(peer.format(last, 'decode')):.2f} times as fast"


PAGES: dict[str, Callable[[Record], Iterator[str]]] = {
    "low-bit": low_bit_prefill,
    "streams": streams,
    "triton": triton_server,
}


@pytest.mark.parametrize("page", PAGES)
def test_figures_of_a_guide_are_the_record(page: str) -> None:
    """Each in its words."""
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    figures = PAGES[page]

    for words in figures(Record(figures.__name__)):
        assert words in text, words


FIGURES: dict[str, Callable[[Record], Iterator[str]]] = {
    "al-rnn": al_rnn,
    "hybrid-linear-attention": hybrid_linear_attention,
    "liger": liger,
    "mmmamba": long_context,
    "mom": mom,
    "mvar": mvar,
    "nalaformer": nalaformer,
    "README": recurrent_family,
    "s4": hippo,
    "seqboat": seqboat,
}


@pytest.mark.parametrize("page", FIGURES)
def test_figures_of_a_page_are_the_record(page: str) -> None:
    """Each in its words, on the page or in the table of all systems."""
    folder = ROOT / "docs" / "systems"
    text = "".join((folder / name).read_text("utf-8") for name in (f"{page}.md", "README.md"))
    figures = FIGURES[page]

    for words in figures(Record(figures.__name__)):
        assert words in text, words


@pytest.mark.parametrize(
    "figures", [compression, compression_families, compression_parts, factor_costs]
)
def test_figures_of_compression_are_the_records(
    figures: Callable[[Record], Iterator[str]],
) -> None:
    text = (ROOT / "docs" / "compression.md").read_text("utf-8")

    for words in figures(Record(figures.__name__)):
        assert words in text, words


def test_engines_of_every_recurrence_are_recorded() -> None:
    """All graphs of every system and variant are built, and hold on the emulated GPU."""
    told = Record("recurrent_engines")
    systems = {name.partition(": ")[0] for name in told}

    assert systems == {name.partition(": ")[0] for name in Record("recurrent_family")}
    for system in systems:
        built = told[f"{system}: graphs with an engine"]
        assert built["unit"] == f"of {built['value']:.0f}", system
        assert told[f"{system}: engine on an emulated GPU"]["holds"], system


@pytest.mark.parametrize("record", ["recurrent_engines", "recurrent_family"])
def test_what_is_trained_was_measured_trained(record: str) -> None:
    """No row is of random weights where there is a checkpoint of that preset."""
    presets = {
        model.name: {values(asdict(config)): preset for preset, config in model.presets.items()}
        for model in MODELS
    }
    random = {name.partition(", random weights:")[0] for name in Record(record) if ", ran" in name}
    assert random

    for path in (ROOT / "models" / "checkpoints").glob("*.pt"):
        saved = torch.load(path, weights_only=True)
        preset = presets[saved["model"]].get(values(saved["config"]))
        assert f"{saved['model']} {preset}" not in random, path.name


def values(config: dict[str, Any]) -> str:
    return repr(sorted(config.items()))
