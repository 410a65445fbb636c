"""Figures of a profile: percentiles as numpy has them, ratios of pairs, warnings."""

import json
from dataclasses import replace

import numpy as np
import pytest

from intaglio.runtime.profile.ops import OpProfile
from intaglio.runtime.profile.report import Contender, Latencies, Phase, ProfileReport

STEP = Phase("step", 128)


def timing(*rounds: list[float], phase: Phase = STEP, batch: int = 1) -> Latencies:
    return Latencies(phase=phase, batch=batch, rounds=rounds)


def measured(name: str, *timings: Latencies) -> Contender:
    return Contender(name=name, kind="bundle", load_seconds=0.5, weights=1000, timings=timings)


def report(*entries: Contender, load: list[float] | None = None) -> ProfileReport:
    return ProfileReport(
        taken="2025-01-01T00:00:00+00:00",
        machine={"cores": 4, "load_before": load or [0.0, 0.0, 0.0]},
        versions={},
        options={},
        percentiles=(50, 90, 99.5),
        measured=entries,
    )


def test_percentiles_are_numpys() -> None:
    """Of all calls, whatever their round."""
    times = np.random.default_rng(0).exponential(1e-3, 1000)
    found = timing(times[:400].tolist(), times[400:].tolist())
    entry = found.to_json((90, 99.5))

    assert found.percentile(99) == np.percentile(times, 99)
    assert entry["percentiles_ms"] == {
        "90": pytest.approx(np.percentile(times, 90) * 1e3),
        "99.5": pytest.approx(np.percentile(times, 99.5) * 1e3),
    }
    assert entry["median_ms"] == pytest.approx(np.median(times) * 1e3)
    assert entry["mean_ms"] == pytest.approx(times.mean() * 1e3)
    assert (entry["min_ms"], entry["max_ms"]) == (times.min() * 1e3, times.max() * 1e3)
    assert entry["iterations"] == 1000
    assert np.allclose(entry["quantiles_ms"][100], np.median(times) * 1e3, atol=1e-6)
    assert len(entry["quantiles_ms"]) == 201


def test_tokens_per_second_count_the_tokens_of_all_rows() -> None:
    assert timing([0.5], batch=3).tokens_per_second == 6
    assert timing([0.5], phase=Phase("prefill", 100), batch=3).tokens_per_second == 600


def test_ratios_are_medians_of_pairs_of_rounds() -> None:
    """A disturbance that hits both in one round does not move them."""
    first = measured("a", timing([1.0], [1.0], [10.0], [1.0]))
    second = measured("b", timing([2.0], [2.0], [20.0], [3.0]))
    [ratio] = report(first, second).ratios

    assert (ratio.name, ratio.ratio, ratio.pairs) == ("b", 2.0, 4)
    assert ratio.low == 2.0
    assert ratio.high == np.percentile([2, 2, 2, 3], 75)


@pytest.mark.parametrize(("engine", "warned"), [(1999.0, False), (2100.0, True)])
def test_tracing_that_takes_more_than_the_call_is_warned_of(engine: float, *, warned: bool) -> None:
    """A call of a second; twice as long while traced is still told without a warning."""
    plain = measured("one", timing([1.0] * 100))
    phase = plain.timings[0].phase
    traced = OpProfile(
        kind=phase.kind,
        tokens=phase.tokens,
        calls=1,
        ops=[],
        overhead=engine,
        arena_held=None,
        arena_used=None,
    )
    warnings = report(replace(plain, ops=[traced])).warnings

    assert bool(warnings) is warned
    assert all("2100.000 ms against 1000.000 ms" in warning for warning in warnings)


def test_a_noisy_phase_and_a_busy_machine_are_warned_of() -> None:
    calm = measured("calm", timing([1.0] * 99 + [1.5]))
    noisy = measured("noisy", timing([1.0] * 90 + [9.0] * 10))

    assert report(calm, load=[1.9, 0, 0]).warnings == []
    assert "load average 2.0 on 4 cores" in report(calm, load=[2.0, 0, 0]).warnings[0]
    [warning] = report(calm, noisy).warnings
    assert warning.startswith("noisy was disturbed")
    assert "above the median in step at 128 (9.0 times)." in warning


def test_json_holds_everything_and_plain_values_alone() -> None:
    found = report(measured("a", timing([1.0])), measured("b", timing([2.0])))
    entry = json.loads(json.dumps(found.to_json(), allow_nan=False))

    assert [part["name"] for part in entry["measured"]] == ["a", "b"]
    assert entry["ratios"][0]["ratio"] == 2.0
    assert entry["measured"][0]["memory"]["weight_bytes"] == 1000
