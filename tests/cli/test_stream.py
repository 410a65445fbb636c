"""Running a bundle from the command line gives what the session gives."""

from pathlib import Path

import numpy as np
import pytest

from intaglio.cli import stream
from intaglio.errors import InputError
from intaglio.runtime import Session, generate


def test_text_comes_in_pieces_as_it_is_generated(bundle: Path) -> None:
    told: list[tuple[str, int | None]] = []
    made, text, latency = stream.continue_text(
        Session.load(bundle), "ab", [], lambda *piece: told.append(piece), max_new_tokens=6
    )

    assert made == list(generate(Session.load(bundle), [97, 98], max_new_tokens=6))
    assert [token for _, token in told] == made
    assert "".join(piece for piece, _ in told) == text
    assert len(latency.seconds) == 6
    assert latency.prompt == 2


def test_a_stop_ends_the_text(bundle: Path) -> None:
    """Stopped at its first ASCII character, the text is the same up to there."""

    def run(stop: list[str]) -> list[int]:
        session = Session.load(bundle)
        return stream.continue_text(
            session, "ab", stop, lambda *_: None, max_new_tokens=20, temperature=1.0, seed=3
        )[0]

    made = run([])
    at = next(i for i, token in enumerate(made) if token < 128)

    assert run([chr(made[at])]) == made[: at + 1]


def test_arrays_are_given_step_by_step(bundle: Path) -> None:
    """The outputs joined along time are those of one call."""
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    outputs, latency = stream.step_arrays(Session.load(bundle), {"input_ids": ids})
    whole = Session.load(bundle).step({"input_ids": ids})["logits"]

    assert outputs["logits"].shape == (2, 4, 256)
    assert np.abs(outputs["logits"] - whole).max() < 1e-5
    assert len(latency.seconds) == 4


def test_fewer_steps_than_there_are(bundle: Path) -> None:
    outputs, _ = stream.step_arrays(Session.load(bundle), {"input_ids": np.ones((1, 9), int)}, 2)

    assert outputs["logits"].shape == (1, 2, 256)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"ids": np.ones((1, 3), int)},
        {"input_ids": np.ones(3, int)},
        {"input_ids": np.ones((1, 0), int)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(bundle: Path, arrays: dict[str, stream.Array]) -> None:
    with pytest.raises(InputError):
        stream.step_arrays(Session.load(bundle), arrays)


def test_latency_leaves_the_prompt_out_of_the_steps() -> None:
    told = stream.Latency([0.5, 0.001, 0.002, 0.003], prompt=7)

    assert told.to_json() == {
        "prompt_tokens": 7,
        "prompt_ms": 500.0,
        "steps": 3,
        "mean_ms": pytest.approx(2.0),
        "median_ms": 2.0,
        "p90_ms": pytest.approx(2.8),
    }
    assert str(told) == (
        "prompt of 7 tokens in 500.00 ms, 3 steps, each 2.00 ms (median), 2.80 ms (p90)"
    )
    assert stream.Latency([], prompt=1).to_json()["median_ms"] is None
    together = stream.Latency([0.5, 0.0, 0.0, 0.006], prompt=7, drafted=True)
    assert str(together) == "prompt of 7 tokens in 500.00 ms, 3 tokens, each 2.00 ms (mean)"
