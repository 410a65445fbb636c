"""Calibration data in every form, what is wrong with it, and an export that outlives a kill."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intaglio.errors import InputError, OptionError
from intaglio.exporter.export import export
from intaglio.exporter.sources.calibration_data import read_calibration
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.sources.tokenizer_files import TOKENIZER, Text
from intaglio.state import BATCH, TIME

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
        self.head = nn.Linear(64, 256)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)
"""
MODEL = "calibrated_nets:Net"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of eight layers, beside the code that they belong to."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "calibrated_nets.py").write_text(CODE)
    names: dict[str, Any] = {}
    exec(CODE, names)
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), folder / "model.pt")
    return folder / "model.pt"


def make_source(vocabulary: int = 256, *, text: Text | None = None, floats: bool = False) -> Source:
    """A source of token ids, or of ids and of floats [time, batch, 4]."""

    def sample(sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        batch, time = sizes[BATCH], sizes[TIME]
        del seed
        ids = torch.zeros(batch, time, dtype=torch.int64)
        return {"ids": ids, "mel": torch.zeros(time, batch, 4)} if floats else {"ids": ids}

    dynamic = {"ids": {0: BATCH, 1: TIME}}
    return Source(
        path=Path("model.pt"),
        name="model.pt",
        text=text,
        format="test",
        sha256="",
        body=nn.Embedding(vocabulary, 2),
        dynamic={**dynamic, "mel": {0: TIME, 1: BATCH}} if floats else dynamic,
        sample=sample,
    )


def test_text_is_cut_into_rows_of_bytes_and_some_rows_are_held_out(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(bytes(range(256)) * 40)
    found = read_calibration(text, make_source())
    rows = np.concatenate([batch.inputs["ids"] for batch in found.batches])

    assert rows.dtype == np.int64
    assert rows.shape == (20, 512)
    assert rows.reshape(-1).tolist() == list(text.read_bytes())
    assert set(found.held_out) | set(found.fitted) == set(range(len(found.batches)))
    assert found.held_out == [7]


def test_a_folder_is_read_file_by_file_and_its_hash_is_of_all(tmp_path: Path) -> None:
    """Rows come in the order of names; a changed file changes the hash."""
    (tmp_path / "b.txt").write_text("x" * 1000)
    np.savez(tmp_path / "a.npz", ids=np.full((3, 7), 5, np.uint8), lengths=[7, 2, 1])
    (tmp_path / "notes.md").write_text("not read")
    found = read_calibration(tmp_path, make_source())
    first = found.batches[0]

    assert first.inputs["ids"].dtype == np.int64
    assert first.lengths is not None
    assert sum(batch.tokens for batch in found.batches) == 10 + 1000
    assert found.batches[1].lengths.tolist() == [2]  # type: ignore[union-attr]
    assert len(found.batches[-2:]) == 2
    (tmp_path / "b.txt").write_text("y" * 1000)
    assert read_calibration(tmp_path, make_source()).sha256 != found.sha256


def test_axes_may_stand_in_any_order() -> None:
    arrays = {"ids": np.zeros((9, 5), int), "mel": np.arange(180.0).reshape(5, 9, 4)}
    found = read_calibration(arrays, make_source(floats=True))

    assert found.batches[3].rows == 1
    assert found.batches[3].steps == 5
    np.testing.assert_array_equal(found.batches[3].inputs["mel"], arrays["mel"][:, 3:4])
    assert found.batches[3].inputs["mel"].dtype == np.float32


def test_padding_is_left_out_of_the_statistics() -> None:
    arrays = {"ids": np.zeros((2, 3), int), "lengths": np.array([1, 3])}
    (batch, *_) = read_calibration(arrays, make_source()).batches
    values = np.arange(6.0).reshape(1, 3, 2)

    assert batch.valid(values).tolist() == [[0.0, 1.0]]


def test_a_file_may_hold_what_all_graphs_take() -> None:
    """Each graph reads its own; how long rows are says nothing of what has no steps."""
    arrays = {"ids": np.zeros((4, 3), int), "image": np.ones((2, 5)), "lengths": np.full(4, 2)}
    ids = replace(make_source(), beside=frozenset({"image"}))
    (first, *_) = read_calibration(arrays, ids).batches
    image = replace(
        make_source(),
        dynamic={"image": {0: BATCH}},
        sample=lambda _sizes, _seed: {"image": torch.zeros(3, 5)},
        beside=frozenset({"ids"}),
    )
    (other, *_) = read_calibration(arrays, image).batches

    assert (list(first.inputs), first.lengths) == (["ids"], np.array([2]))
    assert (list(other.inputs), other.lengths) == (["image"], None)
    with pytest.raises(InputError, match="has 'ids', 'sound'; the model takes 'ids'"):
        read_calibration({**arrays, "sound": np.zeros(4)}, ids)


def test_ids_of_two_tables_are_not_held_to_the_first() -> None:
    """Which of the tables each goes to, the first embedding does not tell."""
    several = replace(
        make_source(4),
        dynamic={"ids": {0: BATCH, 1: TIME}, "words": {0: BATCH, 1: "source"}},
        sample=lambda _sizes, _seed: dict.fromkeys(("ids", "words"), torch.zeros(3, 7).long()),
    )
    arrays = {"ids": np.full((4, 3), 9), "words": np.zeros((4, 5), int)}
    assert len(read_calibration(arrays, several).batches) == 4
    with pytest.raises(InputError, match="ids from 9 to 9 in 'ids'; the vocabulary has 8 entries"):
        read_calibration(arrays, replace(several, bounds={"ids": 8}))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"id": np.zeros((2, 3), int)}, "has 'id'; the model takes 'ids'"),
    "shape": ({"ids": np.zeros((2, 3, 1), int)}, r"int64 \[2, 3, 1\]; .* int64 \[batch, time\]"),
    "dtype": ({"ids": np.zeros((2, 3))}, r"float64 \[2, 3\]; the model takes int64"),
    "empty": ({"ids": np.zeros((0, 3), int)}, "is empty"),
    "id": ({"ids": np.full((2, 3), 256)}, "ids from 256 to 256 .* has 256 entries"),
    "long": ({"ids": np.zeros((2, 9), int)}, "9 steps; the model takes at most 8"),
    "length": ({"ids": np.zeros((2, 3), int), "lengths": np.array([0, 3])}, "from 1 to 3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_do_not_fit_are_refused(what: str, tmp_path: Path) -> None:
    arrays, said = WRONG[what]
    np.savez(tmp_path / "calib.npz", **arrays)
    with pytest.raises(InputError, match=said):
        read_calibration(tmp_path / "calib.npz", make_source(), 8)


def test_what_is_no_number_is_refused() -> None:
    mel = np.zeros((3, 2, 4), np.float32)
    mel[1, 1, 1] = np.nan
    with pytest.raises(InputError, match="has NaN or infinity in 'mel'"):
        read_calibration({"ids": np.zeros((2, 3), int), "mel": mel}, make_source(floats=True))
    with pytest.raises(InputError, match="different numbers of rows or steps"):
        read_calibration(
            {"ids": np.zeros((2, 4), int), "mel": np.zeros((3, 2, 4))}, make_source(floats=True)
        )


@pytest.mark.parametrize(
    ("content", "source", "said"),
    [
        ("", make_source(), "has 0 tokens: there is nothing to learn from"),
        ("abc", make_source(31), "is text, and model.pt has no tokenizer. Give token ids"),
        ("abc", make_source(floats=True), "is text; the model takes 'ids', 'mel'"),
    ],
)
def test_text_that_cannot_be_read_as_inputs_is_refused(
    content: str, source: Source, said: str, tmp_path: Path
) -> None:
    (tmp_path / "calib.txt").write_text(content)
    with pytest.raises(InputError, match=said):
        read_calibration(tmp_path / "calib.txt", source)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    for name, said in {
        "absent.npz": "does not exist",
        "damaged.npz": "cannot be read",
        "": "has no .npz, no .txt and no pictures",
    }.items():
        path = tmp_path / name if name else tmp_path / "empty"
        path.parent.mkdir(exist_ok=True)
        if not name:
            path.mkdir()
        with pytest.raises(InputError, match=said):
            read_calibration(path, make_source())


def test_text_takes_the_tokenizer_of_the_source(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"a": 3, "b": 5}, unk_token="a"))
    tokenizer.pre_tokenizer = Whitespace()
    text = Text(files={TOKENIZER: tokenizer.to_str().encode()})
    (tmp_path / "calib.txt").write_text("a b " * 20)
    found = read_calibration(tmp_path / "calib.txt", make_source(31, text=text))

    assert found.batches[0].inputs["ids"].tolist() == [[3, 5, 3, 5, 3]]


def test_data_without_a_pass_that_learns_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no pass that learns from it"):
        export(checkpoint, tmp_path / "b", calib={"input_ids": np.zeros((2, 2), int)})


def test_a_killed_export_goes_on_where_it_stopped(checkpoint: Path, tmp_path: Path) -> None:
    """Finished layers are left as they are, the bundle is that of an undisturbed run."""
    text = tmp_path / "calib.txt"
    text.write_bytes(Path(__file__).read_bytes())
    work, out = tmp_path / "bundle.work", tmp_path / "bundle"
    step = "decoupleq:rounds=40,blocks=false"  # long enough to be killed on the way
    command = [sys.executable, "-P", "-m", "intaglio", "export", str(checkpoint), "-o", str(out)]
    command += ["--model", MODEL, "--import-from", str(checkpoint.parent), "--no-verify"]
    command += ["--pass", step, "--calib", str(text)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(work.glob("*.npz"))) < 2:
        time.sleep(0.005)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in work.glob("*.npz")}
    source = load_source(checkpoint, model=MODEL, import_from=[checkpoint.parent])
    first, second = (
        export(source, tmp_path / name, passes=[step], calib=text, work=place, verify=False)
        for name, place in (("bundle", work), ("again", None))
    )

    assert process.returncode == -signal.SIGKILL
    assert 2 <= len(finished) < len(list(work.glob("*.npz")))
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert first.manifest.files == second.manifest.files
    assert first.manifest.main.passes == second.manifest.main.passes
    assert not (tmp_path / "again.work").exists()
