"""The whole spine on the trained checkpoints: exported, verified, and stepped in every way."""

import copy
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import intaglio
from intaglio.exporter.export import ExportReport
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.runtime import Session

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
NAMES = ("gated_deltanet", "gla", "llama", "llama_window")
CHUNK = 64  # of linear attention, and the window of llama_window
T = 2 * CHUNK + 2
BEFORE = 5  # tokens consumed first, so that no state is zero
PARTS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, T)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Exported:
    """A checkpoint with its bundle, tokens [4, BEFORE + T] and the module's logits for them."""

    source: Source
    report: ExportReport
    path: Path
    tokens: Array
    logits: Array

    def session(self, rows: int = 4) -> Session:
        """A session in which the first `rows` rows have consumed the first tokens."""
        session = Session.load(self.path, threads=1)
        session.step({"input_ids": self.tokens[:rows, :BEFORE]})
        return session


@pytest.fixture(scope="module", params=NAMES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    torch.set_num_threads(1)
    source = load_source(CHECKPOINTS / f"{request.param}.pt")
    path = tmp_path_factory.mktemp("spine") / "bundle"
    report = intaglio.export(source, path, check_passes=True)
    tokens = source.random_inputs(4, BEFORE + T, 7)["input_ids"]
    with torch.no_grad():
        logits = source.module(input_ids=tokens).numpy()
    return Exported(source, report, path, tokens.numpy(), logits)


def assert_close(got: Array, wanted: Array) -> None:
    """max|a-b| / max|b| <= 1e-5."""
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def give(session: Session, tokens: Array, parts: Sequence[int]) -> Array:
    """Logits of `tokens`, given in `parts`."""
    ends = list(itertools.accumulate(parts))
    cut = [slice(end - part, end) for end, part in zip(ends, parts, strict=True)]
    return np.concatenate([session.step({"input_ids": tokens[:, c]})["logits"] for c in cut], 1)


def test_512_steps_are_verified_within_the_limits_of_single_precision(exported: Exported) -> None:
    """Outputs at every token and states at chosen ones, against the module in float64."""
    parity = exported.report.parity
    assert parity is not None
    assert parity.passed
    assert (parity.steps, parity.precision, parity.unknown) == (512, "float64", ())
    assert {row.kind for row in parity.rows} == {"output", "state"}
    for row in parity.rows:
        assert row.found.error <= 1e-4
    checked = [
        record["error"] for record in exported.report.manifest.main.passes if record["changed"]
    ]
    assert all(error is not None for error in checked)


def test_a_wrong_weight_does_not_pass(exported: Exported) -> None:
    """One entry of one matrix of the source, moved by the size of its largest."""
    source = replace(exported.source, body=copy.deepcopy(exported.source.module))
    weight = list(source.module.parameters())[-2]
    with torch.no_grad():
        weight.view(-1)[weight.numel() // 2] += weight.abs().max()

    assert not intaglio.verify(exported.path, source, steps=8, keep=False).passed


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_any_two_cuts_of_the_sequence_change_nothing(batch: int, exported: Exported) -> None:
    """Parts around the chunk and the window, from a state that is not zero."""
    start = exported.session(batch).state.save()
    session = exported.session(batch)
    tokens = exported.tokens[:batch, BEFORE:]
    for first, second in itertools.product(PARTS, repeat=2):
        parts = [first, second, T - first - second]
        parts = [T] if first == T else [first, T - first] if min(parts) < 0 else parts
        session.state.restore(start)
        got = give(session, tokens, [part for part in parts if part])
        assert_close(got, exported.logits[:batch, BEFORE:])


def test_token_by_token_from_a_state_restored_from_disk(exported: Exported, tmp_path: Path) -> None:
    """A state written by one session continues bit for bit in another."""
    first = exported.session()
    give(first, exported.tokens[:, BEFORE : BEFORE + CHUNK], [CHUNK])
    first.state.save(tmp_path / "state.npz")
    second = Session.load(exported.path, threads=1)
    second.state.restore(tmp_path / "state.npz")
    rest = exported.tokens[:, BEFORE + CHUNK :]
    got = give(second, rest, [1] * rest.shape[1])
    assert np.array_equal(got, give(first, rest, [1] * rest.shape[1]))
    assert_close(got, exported.logits[:, BEFORE + CHUNK :])


def test_rows_of_unequal_length_equal_separate_runs(exported: Exported) -> None:
    """Each row is padded on the right and stands at a position of its own afterwards."""
    session = exported.session()
    lengths = [3, 0, 70, 1]
    session.step({"input_ids": exported.tokens[:, BEFORE : BEFORE + 70]}, lengths=lengths)
    following = np.stack(
        [row[BEFORE + n : BEFORE + n + 2] for row, n in zip(exported.tokens, lengths, strict=True)]
    )
    got = session.step({"input_ids": following})["logits"]
    for row, length in enumerate(lengths):
        at = BEFORE + length
        assert_close(got[row], exported.logits[row, at : at + 2])


def test_a_fork_does_not_disturb_its_parent(exported: Exported) -> None:
    """Both go on from the same state with tokens of their own."""
    parent, alone = exported.session(), exported.session()
    fork = parent.fork()
    give(fork, exported.tokens[::-1, BEFORE : BEFORE + 9], [4, 5])
    tokens = exported.tokens[:, BEFORE : BEFORE + 9]
    assert np.array_equal(give(parent, tokens, [4, 5]), give(alone, tokens, [4, 5]))


def test_two_threads_with_a_session_each_give_what_each_gives_alone(exported: Exported) -> None:
    """Sessions of one bundle share weights and nothing else."""
    tokens = [exported.tokens[row : row + 1] for row in (0, 1)]
    alone = [give(Session.load(exported.path), t, [1] * t.shape[1]) for t in tokens]
    together: dict[int, Array] = {}

    def work(row: int) -> None:
        session = Session.load(exported.path)
        together[row] = give(session, tokens[row], [1] * tokens[row].shape[1])

    threads = [threading.Thread(target=work, args=(row,)) for row in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in (0, 1):
        assert np.array_equal(together[row], alone[row])
