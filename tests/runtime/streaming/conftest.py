"""Bundles of the runtime's tests that many tests of streams share, and streams of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.runtime.session import Session
from intaglio.runtime.streaming.bank import Bank
from intaglio.runtime.streaming.streams import Streams

Array = npt.NDArray[Any]
MIXED = ("recurrent", "conv", "window", "static")


@pytest.fixture(scope="session")
def bundle_of(
    build_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The bundle of some layouts, made once."""
    made: dict[Any, Path] = {}

    def bundle(*layouts: str, **options: Any) -> Path:
        key = layouts, str(options)
        if key not in made:
            made[key] = build_bundle(tmp_path_factory.mktemp("b") / "bundle", layouts, **options)
        return made[key]

    return bundle


@pytest.fixture
def open_streams(bundle_of: Callable[..., Path]) -> Iterator[Callable[..., Streams]]:
    """Streams of one thread, of the bundle with a state of each layout or of another one."""
    with ExitStack() as stack:

        def make(rows: int = 4, bundle: Path | None = None, **options: Any) -> Streams:
            bundle = bundle or bundle_of(*MIXED)
            options = {"threads": 1, "capacity": 4, **options}
            return stack.enter_context(Streams(bundle, rows, **options))

        yield make


@pytest.fixture
def alone(bundle_of: Callable[..., Path]) -> Callable[..., Array]:
    """The logits of a sequence in a session of its own."""

    def logits(ids: Any, *layouts: str) -> Array:
        session = Session.load(bundle_of(*(layouts or MIXED)), threads=1)
        found: Array = session.step({"input_ids": ids})["logits"]
        return found

    return logits


class Calls:
    """Calls of the engine, as they come.

    Attributes:
        seen: tokens of each, and how many streams had them.
        refuse: says whether a call of such inputs fails, with what.
        go_on: called before each.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.refuse: Callable[[list[Array]], BaseException | None] = lambda _: None
        self.go_on: Callable[[], object] = lambda: None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What all banks are asked to step."""
    found, real = Calls(), Bank.step

    def step(bank: Bank, inputs: Any, time: int, conditions: Any) -> Any:
        found.go_on()
        found.seen.append((time, len(inputs)))
        error = found.refuse([arrays["input_ids"] for arrays in inputs.values()])
        if error is not None:
            raise error
        return real(bank, inputs, time, conditions)

    monkeypatch.setattr(Bank, "step", step)
    return found


def ids_of(*tokens: int) -> dict[str, Array]:
    """The inputs of a step of one row."""
    return {"input_ids": np.array([tokens])}


@pytest.fixture
def ids() -> Callable[..., dict[str, Array]]:
    return ids_of
