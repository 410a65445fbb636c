"""Families of Hugging Face: tiny random models, exported and held to the library itself.

    python benchmarks/hf_families.py [--quick] [--json] [--only NAME,...] [--kept RECORD.json]

The library's module, in its own attention, is the judge: its full forward over 256 tokens against
the bundle stepped one by one and in parts, its greedy tokens from its own cache against the
bundle's, and each of several rows of unequal length against its own run; rows of encoder-decoders
have sources of unequal length, those of models of pictures prompts and pictures.  error(a, b) is
max|a-b| / max|b|.  Weights are drawn wide, so that attention matters.  A family that does not
export is a row with the reason.  `--only` measures these families, `--kept` has the others as an
earlier record has them.  Nodes left unfused are Softmax before a product (attention
written out), ReduceMean (norms) and joined negatives (rotations) of the graph for ONNX Runtime.
"""

import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
import transformers
from evidence import Row, run
from hf_configs import FAMILIES, GRID, PICTURE, VOCABULARY, Family, save

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.writing.describe import LOWERED
from intaglio.passes.graph import load_graph
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.runtime.generation import generate, generate_rows

LIMIT = 1e-4
LENGTHS = (20, 7, 13)
AGAINST = f"transformers {transformers.__version__}"

_TAKEN: dict[str, str] = {}  # options of this script alone

Array = npt.NDArray[Any]


FIRST = 9  # of a quick run


def measure(quick: bool) -> list[Row]:
    """Rows for every family."""
    torch.set_num_threads(1)
    families, kept = FAMILIES[:FIRST] if quick else FAMILIES, _TAKEN.get("--kept")
    only = _TAKEN["--only"].split(",") if "--only" in _TAKEN else [each.name for each in families]
    held = json.loads(Path(kept).read_text(encoding="utf-8"))["rows"] if kept else []
    rows: list[Row] = []
    for family in families:
        if family.name not in only:  # as an earlier record has it, or not at all
            rows += [Row(**row) for row in held if row["name"].startswith(f"{family.name}: ")]
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows += _rows(family, Path(folder), *((64, 16) if quick else (256, 64)))
            except IntaglioError as error:
                reason = str(error).replace(f"{folder}/", "")
                rows.append(_row(family, "exports", 0, "", "1", holds=False, note=reason))
            except Exception as error:  # noqa: BLE001  a fault of ours is a row as well
                note = f"a fault of intaglio: {type(error).__name__}: {error}"
                rows.append(_row(family, "exports", 0, "", "1", holds=False, note=note))
    return rows


def _row(
    family: Family, what: str, value: float, unit: str, target: str | None = None, **facts: Any
) -> Row:
    name = f"{family.name}: {what}"
    return Row(name=name, value=value, unit=unit, target=target, against=AGAINST, **facts)


def _rows(family: Family, folder: Path, time_steps: int, generated: int) -> Iterator[Row]:
    judge = save(family, folder / "source")
    start = time.perf_counter()
    seen: dict[str, Any] = {} if family.vision is None else {"condition": ["pixel_values"]}
    if family.vision is not None and "depth" in family.vision:
        seen["axes"] = {"pixel_values": ("batch", *GRID)}
    report = intaglio.export(folder / "source", folder / "bundle", verify=False, **seen)
    yield _row(family, "export", time.perf_counter() - start, "s", note=_states(report.manifest))
    yield _row(family, "nodes left unfused", *_unfused(folder / "bundle"))
    session = Session.load(folder / "bundle", threads=1)
    if family.vision is not None:
        yield from _pictures(family, judge, session, generated)
        return
    if session.entry.conditions:
        yield from _pair(family, judge, session, time_steps, generated)
        return
    ids = np.random.default_rng(0).integers(2, VOCABULARY, (2, time_steps))
    wanted = _forward(judge, ids)
    if report.manifest.main.whole:
        yield _error(family, "whole sequences", _stepped(session, ids, [time_steps]), wanted)
    else:
        ones, parts = [1] * time_steps, [5, time_steps - 12, 1, 6]
        yield _error(family, "stepped one by one", _stepped(session, ids, ones), wanted)
        yield _error(family, "stepped in parts", _stepped(session, ids, parts), wanted)
        yield _generation(family, judge, session, ids[:1, :8], generated)
    yield _unequal(family, judge, session, ids[0])


def _pair(
    family: Family, judge: Any, session: Session, time_steps: int, generated: int
) -> Iterator[Row]:
    """Encoder and decoder: rows with sources of unequal lengths, against the library's own."""
    random = np.random.default_rng(0)
    rows, longest = len(LENGTHS), max(LENGTHS)
    given: dict[str, Array] = {}
    for spec in session.entry.conditions:
        sizes = [d if isinstance(d, int) else {"batch": rows}.get(d, longest) for d in spec.shape]
        if spec.name == "attention_mask":
            lengths = np.array(LENGTHS)[:, None]
            given[spec.name] = (np.arange(longest) < lengths).astype(np.int64)
        elif spec.name == "input_ids":
            given[spec.name] = random.integers(3, VOCABULARY, sizes)
        else:
            given[spec.name] = random.standard_normal(sizes).astype(np.float32)
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    ids = random.integers(3, VOCABULARY, (rows, time_steps))
    judge.generation_config.eos_token_id = None
    with quiet(), torch.no_grad():
        wanted = judge(**tensors, decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
        tokens = judge.generate(**tensors, max_new_tokens=generated, do_sample=False, num_beams=1)
    session.condition(given)
    for what, parts in (("one by one", [1] * time_steps), ("in parts", [5, time_steps - 6, 1])):
        name = f"stepped {what}, unequal sources"
        yield _error(family, name, _stepped(session, ids, parts, "decoder_input_ids"), wanted)
    session.state.reset()
    start = judge.config.decoder_start_token_id
    found = [
        row.tokens for row in generate_rows(session, [[start]] * rows, max_new_tokens=generated)
    ]
    same = int((np.stack(found, 1) == tokens[:, -generated:].numpy()).sum())
    total = rows * generated
    yield _row(family, "greedy tokens", same, "tokens", str(total), holds=same == total)


def _pictures(family: Family, judge: Any, session: Session, generated: int) -> Iterator[Row]:
    """Rows with pictures and prompts of unequal lengths, the last without a picture.

    Each is held to the library's own run of that row: all tokens of its prompt, stepped in two
    parts that may lie within a picture, and the tokens behind it.
    """
    random = np.random.default_rng(0)
    judge.generation_config.eos_token_id = None
    given, of_row = _seen(session, random)
    count = _places(judge, of_row(0))
    prompts: list[Array] = []
    for row, length in enumerate(LENGTHS):
        words = random.integers(3, VOCABULARY - 10, length)
        marks = np.full(count * (row < len(LENGTHS) - 1), PICTURE)
        prompts.append(np.concatenate([words[: row + 1], marks, words[row + 1 :]]))
    lengths = [len(prompt) for prompt in prompts]
    padded = np.stack([np.pad(x, (0, max(lengths) - len(x))) for x in prompts])
    wanted, tokens = [], []
    for row, prompt in enumerate(prompts):
        pictures = of_row(row) if PICTURE in prompt else {}
        ids = torch.from_numpy(prompt)[None]
        inputs = {"input_ids": ids, **_types(judge, ids), **pictures}
        with quiet(), torch.no_grad():
            wanted.append(judge(**inputs).logits.numpy())
            all_of_it = torch.ones_like(ids)
            found = judge.generate(
                **inputs, attention_mask=all_of_it, max_new_tokens=generated, do_sample=False
            )
        tokens.append(found[0, len(prompt) :].numpy())
    if any(spec.name == "prefix_ids" for spec in session.entry.conditions):
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        given = {**given, "prefix_ids": padded, "prefix_mask": mask.astype(np.int64)}
    session.condition(given)
    name = session.manifest.main.outputs[0].name
    first = session.step({"input_ids": padded[:, :5]})[name]
    rest = session.step({"input_ids": padded[:, 5:]}, lengths=[n - 5 for n in lengths])[name]
    logits = np.concatenate([first, rest], 1)
    got = [logits[row : row + 1, :length] for row, length in enumerate(lengths)]
    what = "prompts of unequal length, with pictures and without"
    yield _error(family, what, np.concatenate(got, 1), np.concatenate(wanted, 1))
    session.state.reset()
    steps = generate_rows(session, [x.tolist() for x in prompts], max_new_tokens=generated)
    same = int((np.stack([step.tokens for step in steps], 1) == np.stack(tokens)).sum())
    total = len(LENGTHS) * generated
    yield _row(family, "greedy tokens", same, "tokens", str(total), holds=same == total)


def _seen(
    session: Session, random: np.random.Generator
) -> tuple[dict[str, Array], Callable[[int], dict[str, torch.Tensor]]]:
    """Pictures of all rows as the bundle takes them, and those of a row as the library does."""
    spec = next(spec for spec in session.entry.conditions if spec.name == "pixel_values")
    named = {"batch": len(LENGTHS), "pictures": 1}
    shape = [dim if isinstance(dim, int) else named[dim] for dim in spec.shape]
    pictures = random.standard_normal(shape).astype(np.float32)

    def of_row(row: int) -> dict[str, torch.Tensor]:
        if tuple(shape[1:]) != GRID:
            return {"pixel_values": torch.from_numpy(pictures[row : row + 1])}
        patches = torch.from_numpy(pictures[row]).flatten(0, 1)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, *GRID[:2]]])}

    return {"pixel_values": pictures}, of_row


def _places(judge: Any, pictures: dict[str, torch.Tensor]) -> int:
    """How many tokens stand for a picture."""
    with quiet(), torch.no_grad():
        found = judge.get_image_features(**pictures, return_dict=True).pooler_output
    return sum(x.numel() // x.shape[-1] for x in found)


def _types(judge: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Types of tokens, where the library takes some: of pictures 1, but of PaliGemma's prompts."""
    takes = inspect.signature(type(judge).forward).parameters
    pictures = (ids == PICTURE).int()
    if "token_type_ids" in takes:
        all_see = type(judge).__name__.startswith("PaliGemma")
        return {"token_type_ids": ids * 0 if all_see else pictures}
    return {"mm_token_type_ids": pictures} if "mm_token_type_ids" in takes else {}


def _states(manifest: Any) -> str:
    layouts = [f"{spec.op} {spec.layout}" for spec in manifest.main.states]
    counts = {layout: layouts.count(layout) for layout in dict.fromkeys(layouts)}
    return ", ".join(f"{n} {layout}" for layout, n in counts.items()) or "whole sequences"


def _unfused(bundle: Path) -> tuple[int, str]:
    """Nodes that a standard operator could hold, by kind: their number, and which."""
    graph = load_graph(bundle, LOWERED).graph
    turned = [n for n in graph if n.op_type == "Concat" and any(map(_negative, n.inputs))]
    counts = {
        "rotation": len(turned),
        "norm": sum(node.op_type == "ReduceMean" for node in graph),
        "attention": sum(_weighs(node) for node in graph),
    }
    left = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    return sum(counts.values()), left or "nodes"


def _weighs(node: ir.Node) -> bool:
    """Whether `node` is the Softmax of attention, not of a router."""
    users = [user.op_type for value in node.outputs for user, _ in value.uses()]
    return node.op_type == "Softmax" and "MatMul" in users


def _negative(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "Neg"


def _forward(judge: Any, ids: Array) -> Array:
    """The first output of the library's own forward."""
    with torch.no_grad():
        mask = torch.ones(ids.shape, dtype=torch.int64)
        found: Array = judge(torch.from_numpy(ids), attention_mask=mask)[0].numpy()
        return found


def _stepped(session: Session, ids: Array, parts: list[int], takes: str = "input_ids") -> Array:
    session.state.reset()
    name, ends = session.manifest.main.outputs[0].name, np.cumsum([0, *parts])
    found = [session.step({takes: ids[:, a:b]})[name] for a, b in zip(ends, ends[1:])]  # noqa: B905, RUF007
    return np.concatenate(found, axis=1)


def _error(family: Family, what: str, got: Array, wanted: Array) -> Row:
    error = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    return _row(family, what, error, "error", f"<= {LIMIT:.0e}", holds=error <= LIMIT)


def _generation(family: Family, judge: Any, session: Session, ids: Array, count: int) -> Row:
    """How many greedy tokens are those of the library with its own cache."""
    prompt = torch.from_numpy(ids)
    judge.generation_config.eos_token_id = None
    with quiet(), torch.no_grad():
        wanted = judge.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    session.state.reset()
    got = list(generate(session, ids[0], max_new_tokens=count))
    same = sum(a == b for a, b in zip(got, wanted[0, ids.shape[1] :].tolist(), strict=True))
    return _row(family, "greedy tokens", same, "tokens", str(count), holds=same == count)


def _unequal(family: Family, judge: Any, session: Session, tokens: Array) -> Row:
    """Rows of unequal length in one call, each against its own run."""
    session.state.reset()
    ids = np.stack([tokens[row : row + max(LENGTHS)] for row in range(len(LENGTHS))])
    name = session.manifest.main.outputs[0].name
    found = session.step({"input_ids": ids}, lengths=LENGTHS)[name]
    pairs = [
        (found[row : row + 1, :length], _forward(judge, ids[row : row + 1, :length]))
        for row, length in enumerate(LENGTHS)
    ]
    got, wanted = (np.concatenate([p[i] for p in pairs], axis=1) for i in (0, 1))
    return _error(family, "rows of unequal length", got, wanted)


def _take(name: str) -> list[str]:
    """Take an option of this script alone, with its value, from the command line."""
    if name not in sys.argv:
        return []
    place = sys.argv.index(name)
    _TAKEN[name] = sys.argv[place + 1]
    words = sys.argv[place : place + 2]
    del sys.argv[place : place + 2]
    return words


if __name__ == "__main__":
    run(__doc__, measure, [word for name in ("--only", "--kept") for word in _take(name)])
