"""Encoder-decoders at the sizes of T5, BART and Whisper: what is given once is computed once.

    python benchmarks/conditions.py [--quick] [--json]

Models of random weights, at least 60 million parameters each, are exported from a directory of the
library, with the pass `hoist` and without it, whose steps take their conditions again and again.
Sessions decode from a source of 512 tokens, or 30 s of audio, on one thread; beside them the
library itself generates in PyTorch with its cache, its encoder having run before.  The three take
turns; a ratio is the median over the turns.  The time of `prepare`, once for a sequence, is a row
of its own, and so is the share that the largest product, that of the vocabulary, has of a step:
both sides wait for its weights.  With --quick the models are small.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import transformers
from evidence import Row, run

import intaglio
from intaglio.errors import IntaglioError
from intaglio.passes.base import PassResult
from intaglio.passes.exact.hoist import Hoist
from intaglio.quiet import quiet
from intaglio.runtime import Session
from intaglio.runtime.profile.measure import profile
from intaglio.runtime.profile.settings import ProfileSettings

LIBRARY: Any = transformers  # partly without types
SOURCE, TARGET = 512, 1.5
AGAINST = f"transformers {transformers.__version__}, PyTorch {torch.__version__}, its cache"
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Shape:
    """A model: the library's names of it and of its config, and the sizes, full and small."""

    name: str
    model: str
    config: str
    sizes: dict[str, Any]
    small: dict[str, Any]


def _bart(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "d_model": width, "encoder_layers": layers,
        "decoder_layers": layers, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width,
        "encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64,
        "max_position_embeddings": 1024, "forced_eos_token_id": None,
    }  # fmt: skip


def _t5(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "d_model": width, "d_kv": 64, "d_ff": 4 * width,
        "num_layers": layers, "num_heads": width // 64, "decoder_start_token_id": 0,
    }  # fmt: skip


def _whisper(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        **_bart(width, layers, vocabulary), "max_source_positions": 1500,
        "max_target_positions": 448, "num_mel_bins": 80, "decoder_start_token_id": 1,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }  # fmt: skip


SHAPES = (
    Shape("T5", "T5ForConditionalGeneration", "T5Config", _t5(512, 6, 32128), _t5(64, 1, 500)),
    Shape("BART", "BartForConditionalGeneration", "BartConfig", _bart(768, 6, 50265),
          _bart(64, 1, 500)),
    Shape("Whisper", "WhisperForConditionalGeneration", "WhisperConfig", _whisper(512, 6, 51865),
          _whisper(64, 1, 500)),
)  # fmt: skip


def measure(quick: bool) -> list[Row]:
    """Rows for every shape."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows += _rows(shape, Path(folder), quick=quick)
            except IntaglioError as error:
                rows.append(
                    Row(name=f"{shape.name}: exports", value=0, unit="", target="1", holds=False,
                        note=str(error))
                )  # fmt: skip
    return rows


def _rows(shape: Shape, folder: Path, *, quick: bool) -> Iterator[Row]:
    torch.manual_seed(0)
    config = getattr(LIBRARY, shape.config)(**(shape.small if quick else shape.sizes))
    with quiet(), torch.no_grad():
        judge = getattr(LIBRARY, shape.model)(config).eval()
        judge.save_pretrained(folder / "source")
    millions = sum(p.numel() for p in judge.parameters()) / 1e6
    options: dict[str, Any] = {"verify": False, "portable": False}
    intaglio.export(folder / "source", folder / "bundle", **options)
    with mock.patch.object(Hoist, "run", return_value=PassResult(changed=False)):
        intaglio.export(folder / "source", folder / "plain", **options)
    session = Session.load(folder / "bundle", threads=1)
    plain = Session.load(folder / "plain", threads=1)
    assert not plain.entry.conditions
    given = _conditions(session, config)
    turns, tokens = (3, 8) if quick else (7, 32)
    start = config.decoder_start_token_id
    contestants: dict[str, Callable[[], float]] = {
        "hoisted": lambda: _decode(session, given, start, tokens),
        "plain": lambda: _decode(plain, given, start, max(tokens // 8, 2)),
        "library": _library(judge, given, tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, decode in contestants.items():
            spent = decode()
            if turn:  # the first one warms up
                seconds[name].append(spent)
    name = f"{shape.name}, {millions:.0f} M parameters"
    rate = 1 / statistics.median(seconds["hoisted"])
    yield Row(name=f"{name}: decoding", value=rate, unit="tokens/s", note="batch 1, one thread")
    for what, label, against in (
        ("plain", "hoisted against not", "a bundle exported without hoist"),
        ("library", "decoding against the library's", AGAINST),
    ):
        pairs = zip(seconds[what], seconds["hoisted"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        holds = None if quick else ratio >= TARGET
        yield Row(name=f"{name}: {label}", value=ratio, unit="x", target=f">= {TARGET}",
                  holds=holds, against=against)  # fmt: skip
    prepare = statistics.median(_timed(lambda: session.condition(given)) for _ in range(turns))
    yield Row(name=f"{name}: prepare", value=1e3 * prepare, unit="ms", note="once for a sequence")
    share = _share_of_head(folder / "bundle", quick=quick)
    yield Row(name=f"{name}: projection to the vocabulary", value=100 * share, unit="% of a step",
              note="a product of one row")  # fmt: skip


def _conditions(session: Session, config: Any) -> Arrays:
    random = np.random.default_rng(0)
    found: Arrays = {}
    for spec in session.entry.conditions:
        sizes = [dim if isinstance(dim, int) else {"batch": 1}.get(dim, SOURCE)
                 for dim in spec.shape]  # fmt: skip
        if spec.name == "input_ids":
            found[spec.name] = random.integers(3, config.vocab_size, sizes)
        elif spec.default is None:
            found[spec.name] = random.standard_normal(sizes).astype(spec.dtype)
    return found


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _share_of_head(bundle: Path, *, quick: bool) -> float:
    """The part of a step's time in the engine that the largest product takes."""
    settings = ProfileSettings(
        graph="main", contexts=[16], prompts=[16], threads=1, duration=0.1 if quick else 1
    )
    (contender,) = profile([bundle], settings).measured
    step = next(each for each in contender.ops if each.kind == "step")
    return max(op.milliseconds for op in step.ops) / step.engine


def _decode(session: Session, given: Arrays, start: int, tokens: int) -> float:
    """Seconds for each of some greedy tokens; without conditions, they are inputs of each step."""
    session.state.reset()
    if session.entry.conditions:
        session.condition(given)
    own = {} if session.entry.conditions else given
    ids = np.full((1, 1), start)
    begin = time.perf_counter()
    for _ in range(tokens):
        logits = session.step({**own, "decoder_input_ids": ids})["logits"]
        ids = logits[:, -1:].argmax(-1)
    return (time.perf_counter() - begin) / tokens


def _library(judge: Any, given: Arrays, tokens: int) -> Callable[[], float]:
    """The library's greedy generation from what its encoder gave."""
    judge.generation_config.eos_token_id = None
    main = {name: torch.from_numpy(array) for name, array in given.items()}
    with torch.inference_mode():
        encoded = judge.get_encoder()(**main)
    options: dict[str, Any] = {
        "max_new_tokens": tokens,
        "do_sample": False,
        "num_beams": 1,
        "use_cache": True,
    }
    if "input_ids" in main:
        options["attention_mask"] = torch.ones_like(main["input_ids"])

    def generate() -> float:
        with quiet(), torch.inference_mode():
            return _timed(lambda: judge.generate(encoder_outputs=encoded, **options)) / tokens

    return generate


if __name__ == "__main__":
    run(__doc__, measure)
