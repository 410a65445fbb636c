"""Speculative decoding against plain, on trained models, at the acceptance that is measured.

    python benchmarks/speculative.py [--quick] [--json]

Targets are three trained checkpoints of 4 layers: keys and values alone (llama), states that are
read again after a refusal (gla), and both (gated-deltanet).  Each stands in two sizes: as it is,
and with 28 further layers that add nothing to what it computes, so that a step takes what one of
32 layers does.  Drafts are the 4 layers in fp32 and in 2 bits (rtn, groups of 32).  One row goes on
with Python source on one thread; seconds are those of the thread, plain and drafted in turns.
"""

import argparse
import inspect
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence import Row, ratio, run

import intaglio
from intaglio import models
from intaglio.runtime import Draft, Session, generate

CHECKPOINTS = Path(__file__).parents[1] / "models" / "checkpoints"
NAMES = ("llama", "gla", "gated-deltanet")
DEEP = 32
TWO_BITS = "rtn:bits=2,group=32"
DRAFTED = 4
PROMPT, COUNT = 64, 128
SLOWER = "A draft of the target's own size takes as long as the target: nothing is to be gained."


def measure(quick: bool) -> list[Row]:
    """Each target with each draft, greedy and drawn."""
    with tempfile.TemporaryDirectory() as folder:
        return [row for name in NAMES for row in _of(name, Path(folder), quick)]


def _of(name: str, folder: Path, quick: bool) -> list[Row]:
    trained = CHECKPOINTS / f"{name.replace('-', '_')}.pt"
    deep = folder / f"{name}.pt"
    _deepen(trained, name, deep)
    bundles = {}
    for kind, path, passes in (
        ("4 layers", trained, ()),
        ("32 layers", deep, ()),
        ("2 bits", trained, (TWO_BITS,)),
    ):
        bundles[kind] = folder / f"{name}, {kind}"
        options: dict[str, Any] = {"passes": list(passes)} if passes else {}
        intaglio.export(path, bundles[kind], verify=False, portable=False, **options)
    rows = []
    for target in ("4 layers", "32 layers"):
        for small in ("4 layers", "2 bits"):
            for drawn in (False, True):
                if (target, small) != ("4 layers", "4 layers"):
                    rows += _race(name, bundles, target, small, drawn, 3 if quick else 9)
    return rows


def _race(
    name: str, bundles: dict[str, Path], target: str, small: str, drawn: bool, rounds: int
) -> list[Row]:
    large = Session.load(bundles[target], threads=1)
    draft = Draft(Session.load(bundles[small], threads=1), DRAFTED)
    prompt = list(inspect.getsource(argparse).encode()[4000 : 4000 + PROMPT])
    how: dict[str, Any] = {"temperature": 1.0, "seed": 0} if drawn else {}
    made = {
        kind: list(_generate(large, draft, prompt, how, drafted))
        for kind, drafted in (("plain", False), ("drafted", True))
    }
    draft.proposed = draft.accepted = draft.calls = 0
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for drafted, spent in times.items():
            spent.append(_timed(lambda d=drafted: _generate(large, draft, prompt, how, d)))  # type: ignore[misc]
    title = f"{name}, {target}, draft of {small.replace('4 layers', '4 layers in fp32')}"
    title += ", drawn" if drawn else ", greedy"
    calls = draft.calls / rounds
    gain = ratio(times[False], times[True])
    return [
        Row(name=f"{title}: acceptance", value=draft.acceptance or 0.0, unit="of 1",
            note=f"{COUNT / calls:.2f} tokens a step of the target",
            target=None if drawn else "the tokens of plain decoding",
            holds=None if drawn else made["plain"] == made["drafted"]),
        Row(name=f"{title}: speed", value=gain, unit="times as fast", against="plain",
            note=SLOWER if target == "4 layers" else ""),
    ]  # fmt: skip


def _generate(
    large: Session, draft: Draft, prompt: list[int], how: dict[str, Any], drafted: bool
) -> list[int]:
    large.state.reset()
    draft.session.state.reset()
    given: dict[str, Any] = {"draft": draft} if drafted else {}
    return list(generate(large, prompt, max_new_tokens=COUNT, **given, **how))


def _timed(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _deepen(path: Path, name: str, to: Path) -> None:
    """Write the model at `path` with layers behind its own that add 0 to what they are given."""
    torch.manual_seed(0)
    kept = torch.load(path, weights_only=True)
    model = models.find(name)
    config = model.config(**{**kept["config"], "num_layers": DEEP})
    module = model.build(config)
    state = module.state_dict()
    own = kept["state_dict"]
    for key, value in state.items():
        if key not in own and key.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()
    module.load_state_dict({**state, **own})
    models.save(to, name, config, module)


if __name__ == "__main__":
    run(__doc__, measure)
