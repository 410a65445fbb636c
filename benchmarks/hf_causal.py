"""Every causal language model of the installed library: which export, and which do not, and why.

    python benchmarks/hf_causal.py [--quick] [--json] [--only CLASS,...] [--kept FILE.jsonl]

Each class is built from a tiny config (`hf_tiny`) with random weights, written as a directory,
exported and stepped, in a child of its own.  Its outputs over more tokens than were traced, past
every window, in one part and one by one, and its greedy tokens are held to the library's own.
A class that the library itself does not build or run from the config is counted apart.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from evidence import Row, run
from hf_tiny import VOCABULARY, tiny
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import intaglio
from intaglio.errors import IntaglioError
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.runtime.generation import generate

LIBRARY: Any = transformers  # partly without types
LIMIT, WIDER, TARGET = 1e-4, 4.0, 0.93
SECONDS, BYTES = 180, 8 << 30  # what one class may take
TIME, ALONE, GENERATED = 70, 20, 12
AGAINST = f"transformers {transformers.__version__}"
CLASSES = list(dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
_TAKEN: dict[str, str] = {}
QUICK = ("LlamaForCausalLM", "GPT2LMHeadModel", "MambaForCausalLM", "Gemma2ForCausalLM")
EXPORTS, WRONG, REFUSED, FAULT, UNBUILT = (
    "exports", "exports, but other results", "refused", "a fault of intaglio", "is not built",
)  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """A row for each class, and their count."""
    only, kept = _TAKEN.get("--only"), _TAKEN.get("--kept")
    chosen = only.split(",") if only else list(QUICK if quick else CLASSES)
    rows = {} if not kept or not Path(kept).exists() else _read(Path(kept))
    for name in chosen:
        if name not in rows:
            rows[name] = _in_a_child(name)
            if kept:
                with Path(kept).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(rows[name])) + "\n")
    return [_counted([rows[name] for name in chosen]), *(rows[name] for name in chosen)]


def _take(name: str) -> None:
    """Take an option of this script alone, with its value, from the command line."""
    if name in sys.argv:
        place = sys.argv.index(name)
        _TAKEN[name] = sys.argv[place + 1]
        del sys.argv[place : place + 2]


def _read(path: Path) -> dict[str, Row]:
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row.name: row for row in rows}


def _counted(rows: list[Row]) -> Row:
    built = [row for row in rows if not row.note.startswith(UNBUILT)]
    right = sum(row.holds is True for row in built)
    share = right / max(len(built), 1)
    note = f"{right} of the {len(built)} that a tiny config builds, {len(rows)} tried"
    return Row(name="causal classes that export", value=share, unit="share", note=note,
               target=f">= {TARGET}", holds=share >= TARGET, against=AGAINST)  # fmt: skip


def _in_a_child(name: str) -> Row:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, writer))
    child.start()
    writer.close()
    try:
        row: Row = reader.recv() if reader.poll(SECONDS) else _row(name, FAULT, "no end in time")
    except EOFError:
        row = _row(name, FAULT, "the process died")
    child.kill()
    child.join()
    return row


def _child(name: str, writer: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        with tempfile.TemporaryDirectory() as folder:
            row = _tried(name, Path(folder))
        writer.send(row)


def _row(name: str, verdict: str, reason: str = "", error: float = 0.0) -> Row:
    note = f"{verdict}: {reason}" if reason else verdict
    holds = None if verdict == UNBUILT else verdict == EXPORTS
    return Row(name=name, value=error, unit="error", target=f"<= {LIMIT:.0e}", holds=holds,
               against=AGAINST, note=note)  # fmt: skip


def _tried(name: str, folder: Path) -> Row:
    try:
        judge = _saved(name, folder / "source")
        ids = np.random.default_rng(0).integers(3, VOCABULARY, (2, TIME))
        wanted = _forward(judge, ids)
    except Exception as error:  # noqa: BLE001  the library refuses in many ways
        return _row(name, UNBUILT, _short(error, folder))
    try:
        start = time.perf_counter()
        intaglio.export(folder / "source", folder / "bundle", verify=False)
        took = time.perf_counter() - start
        session = Session.load(folder / "bundle", threads=1)
        found = _stepped(session, ids)
        largest = max(_error(got, wanted[:, : got.shape[1]]) for got in found)
        same = _greedy(judge, session, ids[:1, :8])
    except IntaglioError as refusal:
        return _row(name, REFUSED, _short(refusal, folder))
    except Exception as fault:  # noqa: BLE001  a fault of ours is a row as well
        return _row(name, FAULT, f"{type(fault).__name__}: {_short(fault, folder)}")
    right = largest <= LIMIT and same == GENERATED
    reason = f"{same} of {GENERATED} greedy tokens, export in {took:.0f} s"
    return _row(name, EXPORTS if right else WRONG, reason, largest)


def _short(error: BaseException, folder: Path) -> str:
    return " ".join(str(error).replace(f"{folder}/", "").split())[:600]


def _saved(name: str, path: Path) -> Any:
    """Write a random directory; return the module as the library reads it back."""
    torch.manual_seed(0)
    kind = getattr(LIBRARY, name)
    with quiet(), torch.no_grad():
        module = kind(tiny(kind))
        for key, parameter in module.named_parameters():
            if parameter.ndim == 2 and "embed" not in key:
                parameter.mul_(WIDER)
        module.save_pretrained(path)
        return kind.from_pretrained(path).eval()


def _forward(judge: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad(), quiet():
        found: np.ndarray[Any, Any] = judge(torch.from_numpy(ids), use_cache=False)[0].numpy()
    return found


def _stepped(session: Session, ids: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs over all tokens in parts, and over the first ones by one."""
    name, found = session.manifest.main.outputs[0].name, []
    for parts in ([TIME - 8, 1, 7], [1] * ALONE):
        session.state.reset()
        ends = np.cumsum([0, *parts])
        cut = [ids[:, a:b] for a, b in itertools.pairwise(ends)]
        found.append(np.concatenate([session.step({"input_ids": x})[name] for x in cut], axis=1))
    return found


def _error(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _greedy(judge: Any, session: Session, ids: np.ndarray[Any, Any]) -> int:
    """How many greedy tokens are those of the library."""
    wanted = ids
    for _ in range(GENERATED):
        best = _forward(judge, wanted)[:, -1].argmax(-1)
        wanted = np.concatenate([wanted, best[:, None]], axis=1)
    session.state.reset()
    got = list(generate(session, ids[0], max_new_tokens=GENERATED))
    pairs = zip(got, wanted[0, ids.shape[1] :].tolist(), strict=False)
    return sum(a == b for a, b in pairs)


if __name__ == "__main__":
    for _name in ("--only", "--kept"):
        _take(_name)
    run(__doc__, measure)
