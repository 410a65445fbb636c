"""Every command and every Python block of the documents runs as it stands.

The blocks of one document run in order in one folder, which holds the trained checkpoints under
the path they have in the repository.  A Python block that starts with `# name.py` is kept as that
file, for the blocks after it to use.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intaglio.cli.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Lines that cannot run here, and why.
NOT_RUN: dict[str, str] = {
    "make demo": "builds an environment of its own; what it does with intaglio is run by itself",
    "make test": "runs this test",
    "pip install build": "this test runs in an environment that has it",
    "python -m build --wheel": "tests/test_packaging.py builds it",
    "pip install dist/intaglio-*.whl": "tests/test_packaging.py runs what it holds",
    'pip install "$(echo dist/intaglio-*.whl)[export]"': "downloads PyTorch",
    "make env": "builds an environment of its own; this test runs in it",
    "pip install intaglio tensorrt-rtx cuda-bindings": "makes the environment of a device",
}
# Lines that need a GPU, and what runs here in their place.
INSTEAD = {'session = Session.load("rtx", target="trt")': 'session = Session.load("rtx")'}


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    found = BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    return [
        (language, here(text))
        for language, text in found
        if language != "cpp"  # tests/runtime/test_headers.py compiles it
    ]


def here(block: str) -> str:
    """A block as it runs here."""
    lines = [line for line in block.splitlines() if line.strip() not in NOT_RUN]
    return "\n".join(INSTEAD.get(line, line) for line in lines)


def run(language: str, text: str, folder: Path, commands: Path) -> None:
    """Run one block; whoever reads the failure sees the block and what it printed."""
    kept = re.match(r"# (\w+\.py)\n", text)
    if language == "python" and kept:
        (folder / kept[1]).write_text(text, encoding="utf-8")
        return
    block = str(commands.parent / "block")
    command = {"python": [block, "-c", text], "sh": ["bash", "-euc", text]}[language]
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_runs(document: str, tmp_path: Path, commands: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "checkpoints").symlink_to(ROOT / "models" / "checkpoints")
    for language, text in blocks(document):
        run(language, text, tmp_path, commands)


def test_what_does_not_run_is_still_there() -> None:
    """No exception outlives the line it was made for."""
    lines = {
        line.strip()
        for document in DOCUMENTS
        for line in (ROOT / document).read_text(encoding="utf-8").splitlines()
    }

    assert {*NOT_RUN, *INSTEAD} <= lines


def test_figures_are_those_that_the_benchmarks_recorded() -> None:
    """Each number of the README's ratios is a value of the script in its row, rounded."""
    rows = re.findall(
        r"^\|[^|]+\| ([^|]+) \|[^|]+\| `(\w+)\.py` \|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )

    assert rows
    for ratio, script in rows:
        recorded = json.loads((ROOT / "benchmarks" / "results" / f"{script}.json").read_text())
        values = {f"{row['value']:.2f}" for row in recorded["rows"]}
        assert set(re.findall(r"[\d.]+", ratio)) <= values, f"{ratio}: {script}"


def test_the_table_of_recurrent_systems_is_the_record() -> None:
    """A row for each system that `recurrent_family.py` recorded, and its figures, rounded."""
    recorded: dict[str, dict[str, float]] = {}
    results = ROOT / "benchmarks" / "results" / "recurrent_family.json"
    for row in json.loads(results.read_text())["rows"]:
        system, _, what = row["name"].partition(": ")
        recorded.setdefault(system.removesuffix(", random weights"), {})[what] = row["value"]
    page = (ROOT / "docs" / "systems" / "README.md").read_text(encoding="utf-8")
    table = page.partition("| system | error |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]

    assert {row[0] for row in rows} == set(recorded)
    for system, *cells in rows:
        values = recorded[system].values()
        known = {form.format(value) for value in values for form in ("{:.1e}", "{:,.0f}", "{:.2f}")}
        shown = {cell.removesuffix(", grows") for cell in cells} - {"-"}
        assert shown <= known, system


def test_the_table_of_parity_on_both_targets_is_the_record() -> None:
    """A row for each system that `other_systems.py` recorded: both errors, and the engines."""
    recorded: dict[str, dict[str, str]] = {}
    results = ROOT / "benchmarks" / "results" / "other_systems.json"
    for row in json.loads(results.read_text())["rows"]:
        assert row["holds"] is not False, row["name"]
        if row["unit"] == "of the largest":  # of numbers that are no outputs; on the system's page
            continue
        system, _, what = row["name"].partition(": ")
        whole = row["unit"].startswith("of ") and row["unit"] != "of the limit"
        told = f"{row['value']} {row['unit']}" if whole else f"{row['value']:.3f}"
        recorded.setdefault(system.removesuffix(", random weights"), {})[what] = told
    page = (ROOT / "docs" / "systems" / "README.md").read_text(encoding="utf-8")
    table = page.partition("| system | bundle | graphs with an engine |")[2].partition("\n\n")[0]
    rows = {row[0]: row[1:] for row in _cells(table)}

    assert rows == {system: list(told.values()) for system, told in recorded.items()}


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines()[1:] if line.startswith("| ")]
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines]


def test_claims_in_small_are_of_records_that_are_there() -> None:
    """Each number of the column is one of its record, rounded or counted in thousands."""
    page = (ROOT / "docs" / "systems" / "README.md").read_text(encoding="utf-8")
    rows = _cells(page.partition("| claim | the paper | here | record |")[2])
    assert len(rows) > 10
    for claim, _, here, record in rows:
        path = ROOT / "benchmarks" / "results" / record.strip("` ")
        kept = json.loads(path.read_text())["rows"]
        known = {
            f"{row['value']:{form}}"
            for row in kept
            for form in (".0e", ".1f", ".2f", ".3f", ".3g", ".2g")
        }
        words = " ".join(f"{row['note']} {row['against'] or ''}" for row in kept)
        known |= {
            f"{float(n):{form}}" for n in re.findall(r"\d+\.\d+", words) for form in (".2f", ".3f")
        }
        plain = re.sub(r"exit code 3|4 bits", "", here)
        found = set(re.findall(r"\d[\d.]*(?:e-\d+)?", plain))
        assert found <= known, (claim, found - known)


def test_what_was_tried_of_mixers_is_the_record() -> None:
    """How many were exported, built, emulated and timed beside their forms by hand."""
    record = json.loads((ROOT / "benchmarks/results/zoo.json").read_text(encoding="utf-8"))
    counts = {row["name"]: row for row in record["rows"] if ": " not in row["name"]}
    of = {name: int(row["unit"][3:]) for name, row in counts.items() if row["unit"][:3] == "of "}
    steps = [row for row in record["rows"] if row["name"].endswith(": a step")]
    gpu = [row for row in record["rows"] if row["name"].endswith(": engine on an emulated GPU")]
    verified = [row for row in gpu if row["holds"]]
    exported = round(counts["exported"]["value"] * of["exported"])
    built, slow = counts["engines of TensorRT-RTX"]["value"], [x for x in steps if not x["holds"]]
    page = (ROOT / "docs" / "what-can-be-stepped.md").read_text(encoding="utf-8")
    worst = max(row["value"] for row in steps)

    assert [row["unit"] for row in gpu if not row["holds"]] == ["refused"]
    for words in (
        f"Of {of['exported']} mixers",
        f"{exported} export unchanged",
        f"{built} of these were also built",
        f"{len(verified)} of the engines were verified on an emulated GPU",
        f"Of {len(steps)} of the mixers",
        f"{len(steps) - len(slow)} take at most 1.1 times",
        f"the slowest of the others {worst:.2f} times",
    ):
        assert words in page, words


def test_the_systems_of_the_readme_are_those_that_have_a_page() -> None:
    """With the records that the pages' table names, which are there, and the target it tells."""
    told = table("README.md")
    systems = {link.replace("docs/systems/", ""): row for link, row in told.items()}
    pages = {
        link.replace("../", "docs/"): row for link, row in table("docs/systems/README.md").items()
    }
    assert list(systems) == list(pages)
    assert list(told) == [f"{system.page} {system.name}" for system in SYSTEMS]
    for link, row in pages.items():
        records = set(re.findall(r"`(\w+\.json)`", row))
        assert set(re.findall(r"`(\w+\.json)`", systems[link])) <= records
        assert ("refused" in row) == ("`trt`" not in systems[link]), link
        for record in records - {"losses.json"}:
            assert (ROOT / "benchmarks" / "results" / record).exists(), record


def table(document: str) -> dict[str, str]:
    """Rows of systems by the link of each, and the name where several share a page."""
    rows = re.findall(
        r"^\| \[([^]]+)\]\(([^)]+\.md)\)(.*(?:`ort`|arxiv).*)$",
        (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE,
    )  # fmt: skip
    return {f"{link} {name}": rest for name, link, rest in rows}


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        text = BLOCK.sub("", (ROOT / document).read_text(encoding="utf-8"))
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
            assert (ROOT / document).parent.joinpath(link).exists(), f"{document}: {link}"
