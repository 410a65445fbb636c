"""The page of a profile: it holds what was found, loads nothing, and nothing breaks out of it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from intaglio.report.page import page
from intaglio.runtime.profile.ops import OpProfile, OpTime
from intaglio.runtime.profile.report import Contender, Latencies, Phase, ProfileReport
from intaglio.runtime.work import Ceilings, NodeWork
from intaglio.state import Layout, StateSpec

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><b onclick='x'>",
    "$\\frac{1}{$ {% javascript:alert(1) %}",
    "a\x00b\x1b[31m\u202egnp.exe\ud800",
    "層.注意",
]


def state(name: str) -> StateSpec:
    return StateSpec(
        input=name,
        output="present",
        dtype="float32",
        shape=("batch", 2, "capacity", 4),
        layout=Layout.STATIC,
        axis=2,
        op=name,
        port="key",
        module=name,
        layer=0,
        call=0,
    )


def measured(
    name: str, modules: Sequence[str], *contexts: int, ceilings: Ceilings | None = None
) -> Contender:
    phases = [Phase("prefill", 8), *(Phase("step", tokens) for tokens in contexts)]
    ops = [
        OpTime(
            node=f"n{i}",
            op=f"Op{module}",
            module=module,
            milliseconds=0.25 * (i + 1),
            work=NodeWork(1_000_000, 500_000),
        )
        for i, module in enumerate(modules)
    ]
    return Contender(
        name=name,
        kind="bundle",
        load_seconds=0.25,
        weights=123_456,
        bits=4.5,
        about={"model": name},
        timings=[
            Latencies(
                phase=phase,
                batch=2,
                rounds=[[0.001, 0.002, 0.0015]] * 4,
                states=1000,
                peak=10_000_000,
            )
            for phase in phases
        ],
        ops=[
            OpProfile(
                kind=phase.kind,
                tokens=phase.tokens,
                calls=3,
                ops=ops,
                overhead=0.5,
                arena_held=2_000_000,
                arena_used=1000,
                ceilings=ceilings,
            )
            for phase in phases
        ],
        states=[state(modules[0])],
    )


def report(*entries: Contender, machine: str = "a processor") -> ProfileReport:
    return ProfileReport(
        taken="2025-01-01T00:00:00+00:00",
        machine={"processor": machine, "cores": 2, "load_before": [9.0, 0.0, 0.0]},
        versions={"onnxruntime": "1.0"},
        options={"threads": 1, "batch": 2, "warmup": 1, "duration": 1, "iterations": 3},
        percentiles=(90, 99),
        measured=entries,
    )


class Reader(HTMLParser):
    """Collects elements, attributes and text, and checks that elements close in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def llama_and_gla() -> list[Contender]:
    modules = ["layers.0.attn", "layers.0.mlp", "layers.1.mlp", ""]
    return [measured(name, modules, 16, 64) for name in ("llama", "gla")]


@pytest.fixture(scope="module")
def both() -> str:
    return page(report(*llama_and_gla()))


def test_the_page_tells_what_was_found(both: str) -> None:
    """Latencies, ratios, time by module and operator, states with their bytes, memory, warnings."""
    shown = Reader(both)

    for words in (
        *("llama against gla", "step at 64", "tokens/s", "1.00 to 1.00", "load average 9.0 on 2"),
        *("Side by side", "times the latency of the first: llama", "tokens of context"),
        *("layers", "attn", "0.250 ms", "between operators", "0.500 ms", "Oplayers.0.mlp"),
        *("static", "[batch, 2, capacity, 4]", "4.1 kB", "arena of the engine", "2 MB", "123 kB"),
    ):
        assert words in shown.text, words


class Table(HTMLParser):
    """The rows of the first table: its groups by name, each with its cells."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.groups: dict[str, list[list[str]]] = {}
        self._cell: list[str] | None = None
        self._scope = ""
        self._row: list[str] = []
        self.feed(content[content.index("<table>") : content.index("</table>")])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self._row = []
        if tag in ("th", "td"):
            self._cell, self._scope = [], dict(attrs).get("scope") or ""

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td") and self._cell is not None:
            self._row.append("".join(self._cell))
            self._cell = None
            if self._scope == "rowgroup":
                self.groups[self._row[0]] = []
        if tag == "tr" and self.groups and self._scope != "rowgroup":
            self.groups[next(reversed(self.groups))].append(self._row)


def test_rows_are_grouped_by_contestant_with_their_points_below_each_other(both: str) -> None:
    groups = Table(both).groups

    assert list(groups) == ["llama", "gla"]
    for rows in groups.values():
        assert [row[0] for row in rows] == ["prefill 8", "step at 16", "step at 64"]
        figures = [figure for row in rows for figure in row[1:6]]
        assert {len(figure.partition(".")[2]) for figure in figures} == {2}


def test_tiles_compare_and_of_one_tell_its_rate() -> None:
    """With several a tile has a ratio to the first for each other one; no table repeats it."""
    tile = re.compile(r'<div class="tile">(.*?)</div>')
    two = page(report(*llama_and_gla()))
    one = page(report(llama_and_gla()[0]))

    assert [Reader(found).text for found in tile.findall(two)] == [
        f"1.00\N{MULTIPLICATION SIGN}gla 1.00 to 1.00{phase}, times the latency of llama"
        for phase in ("prefill 8", "step at 16", "step at 64")
    ]
    assert [Reader(found).text for found in tile.findall(one)][1:] == [
        "1,333tokens/s, step at 16",
        "1,333tokens/s, step at 64",
    ]
    assert two.count("1.00 to 1.00") == 3
    assert one.count("1,333") == 2


def test_warnings_are_one_line_that_opens(both: str) -> None:
    """Of one warning its first sentence, of several their number; each is told once."""
    line = re.compile(r'<details class="warning"><summary>(.*?)</summary>(.*?)</details>')
    [(head, rest)] = line.findall(both)
    assert "load average 9.0" in head
    assert Reader(rest).text == "Close other programs and profile again."

    noisy = [replace(t, rounds=[[1e-3] * 9 + [1.0]] * 4) for t in llama_and_gla()[0].timings]
    busy = replace(report(replace(llama_and_gla()[0], timings=noisy)), percentiles=(50,))
    [(head, rest)] = line.findall(page(busy))
    assert "for 3 reasons" in head
    assert rest.count("<p>") == 3
    calm = measured("a", ["m"], 4)
    quiet_ = replace(report(calm), machine={"cores": 2, "load_before": None})
    assert 'class="warning"' not in page(quiet_)


def test_bars_of_all_depths_are_on_one_scale() -> None:
    """What is nested is set in by its name alone; a bar is as long as its share of the whole."""
    modules = ["a.b.c", "a.b.d", "a"]
    shown = page(report(measured("x", modules, 4)))
    row = re.compile(r'--depth:(\d)">([^<]*)</span><span class="bar"><i style="width:([\d.]+)%')
    found = {name: (int(depth), float(share)) for depth, name, share in row.findall(shown)}

    assert found["a"] == (0, 75.0)
    assert found["b"] == (1, 37.5)
    assert [found[name][0] for name in ("c", "d", "(itself)")] == [2, 2, 1]
    assert found["c"][1] + found["d"][1] == pytest.approx(found["b"][1], abs=0.02)
    style = shown[shown.index("<style>") : shown.index("</style>")]
    assert not re.search(r"\.tree[^{]*\{[^}]*margin-left", style)


def test_it_is_for_narrow_screens_and_dark_ones(both: str) -> None:
    """Wide tables scroll by themselves; colours are the page's, which knows both schemes."""
    assert 'name="viewport" content="width=device-width' in both
    assert "prefers-color-scheme: dark" in both
    assert both.count("<table") == both.count('<div class="wide" tabindex="0"><table')
    assert not re.search(r"#[0-9a-f]{6}", both[both.index("</style>") :])


def test_one_bundle_at_one_context_is_a_page_too() -> None:
    """Without a comparison, a curve, or, for an encoder, any step or state."""
    alone = Reader(page(report(measured("llama", ["norm"], 16))))
    encoder = Reader(page(report(measured("bert", ["norm"]))))

    for shown in (alone, encoder):
        assert "Side by side" not in shown.text
        assert "tokens of context" not in shown.text


def test_hostile_names_are_text_wherever_they_stand(both: str) -> None:
    """As bundle, module, operator, state and processor, in tables, charts and titles."""
    entries = [measured(name, [f"layers.{name}", name], 16, 64) for name in HOSTILE]
    plain = Reader(both)
    shown = Reader(page(report(*entries, machine=HOSTILE[0])))

    assert shown.tags <= plain.tags
    assert {key for key, _ in shown.attributes} <= {key for key, _ in plain.attributes}
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", shown.text)
    for name in HOSTILE:
        assert name in shown.text or not name.isprintable()


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(both: str) -> None:
    """No script, no reference but to the page's own parts, and a policy that forbids the rest."""
    shown = Reader(both)
    links = [value for key, value in shown.attributes if key in ("href", "src", "xlink:href")]

    assert not shown.tags & {"script", "link", "img", "iframe", "object", "image", "a"}
    assert links
    assert all(value is not None and value.startswith("#") for value in links)
    assert set(re.findall(r"url\((.)", both)) <= {"#"}
    assert "@import" not in both
    assert not re.search(r"https?://", both)
    assert "default-src 'none'" in both


def test_what_is_referred_to_is_there(both: str) -> None:
    """Markers and clipping areas keep their names when charts are put into one page."""
    names = set(re.findall(r'id="([^"]+)"', both))

    assert set(re.findall(r'href="#([^"]+)"', both)) <= names
    assert set(re.findall(r"url\(#([^)]+)\)", both)) <= names


def test_the_same_figures_make_the_same_page(both: str) -> None:
    assert page(report(*llama_and_gla())) == both


def test_advice_stands_before_the_figures_and_nowhere_without_any() -> None:
    plain = report(measured("a", ["m"], 4))
    text = Reader(page(replace(plain, notes=["a: give <more>."]))).text

    assert text.index("a: give <more>.") < text.index("Latency")
    assert "What would be faster" not in Reader(page(plain)).text


def test_operators_are_told_with_their_rates_and_where_there_is_one_the_roofline() -> None:
    """1 MB and 0.5 Mop in 0.25 ms are 4 GB/s and 2 Gop/s: half of what copies at 8 GB/s."""
    ceilings = Ceilings(bytes=8e9, operations={"float16": 1e12}, device="A <GPU>")
    without = Reader(page(report(measured("a", ["m"], 4)))).text
    within = Reader(page(report(measured("a", ["m"], 4, ceilings=ceilings)))).text

    for text in (without, within):
        assert "33%42" in text.replace(" ", "")
    assert "Roofline: A <GPU>, 8 GB/s of memory, 1 Top/s in products of float16." in within
    assert "33%4250%" in within.replace(" ", "")
    assert "Roofline:" not in without
