"""Random modules export, or are refused by name; a sample of `benchmarks/fuzz_modules.py`."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        import fuzz_modules

        yield fuzz_modules
    sys.path.remove(str(ROOT / "benchmarks"))


def test_a_step_bundle_is_held_to_its_module_and_to_no_other(fuzz: Any, tmp_path: Path) -> None:
    """At other lengths, batches and splits than those that were traced."""
    (verdict,) = fuzz.attempt(6, 18, tmp_path)
    assert verdict.kind == "equal", verdict.said

    spec, _ = fuzz.case(6, 18)
    spec.lines[-1]["op"] = "tanh"
    other = fuzz.module_of(spec)
    assert fuzz._compared(18, spec, other, tmp_path / "bundle").kind == "wrong"


def test_whole_inputs_are_held_to_theirs(fuzz: Any, tmp_path: Path) -> None:
    (verdict,) = fuzz.attempt(6, 1, tmp_path)
    assert verdict.kind == "whole, equal", verdict.said


def test_the_same_seed_draws_the_same_module(fuzz: Any) -> None:
    """It is plain data, which a factory reads from a file again."""
    drawn = [json.dumps([spec.plain(), how]) for spec, how in (fuzz.case(3, n) for n in range(40))]
    again = [json.dumps([spec.plain(), how]) for spec, how in (fuzz.case(3, n) for n in range(40))]
    assert drawn == again
    assert len(set(drawn)) == len(drawn)
