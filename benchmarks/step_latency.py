"""Decoding with a Llama of 500M parameters: tokens a second against genai and PyTorch.

    python benchmarks/step_latency.py [--quick] [--json]

The peers, onnxruntime-genai with the graph of its own model builder (extra `bench`) and the
library's own eager module with its cache (extra `hf`), get the same random weights in fp32, the
same tokens and as many threads.  All three have to agree on the next token before they decode in
turns, one greedy token each; ratios are medians of the rounds.  What is built stays for the next
run in `build/step_latency`, since it takes minutes; the bundle until code of ours changes.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import genai_peer
import numpy as np
import onnxruntime_genai
import torch
from evidence import Row, machine, run
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import intaglio
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.runtime import Session

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "step_latency"
ROOMS = ("src", "exporter", "passes")  # what a bundle follows from
THREADS = 2
CHUNK = 512  # tokens that are consumed at once
LAYERS, QUICK_LAYERS = 16, 2
CONTEXTS, QUICK_CONTEXTS = (128, 4096), (128, 1024)
WARMUP = 2
ONE_ROW = ServedShapes.parse(shapes=["input_ids:1x1:1x64:1x8192"])

Decode = Callable[[], int]


class Contender(NamedTuple):
    """One way to decode: consume tokens and return the next one; then one more with each call."""

    name: str
    consume: Callable[[np.ndarray], int]
    decode: Decode


def measure(quick: bool) -> list[Row]:
    """Rows of both contexts, first those of ours."""
    torch.set_num_threads(THREADS)
    folder = prepare(QUICK_LAYERS if quick else LAYERS)
    module: Any = LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    module.eval()
    size = sum(parameter.numel() for parameter in module.parameters())
    session = Session.load(folder / "bundle", threads=THREADS)
    peer = onnxruntime_genai.Model(str(folder / "genai"))
    rows = [Row(name="parameters", value=size / 1e6, unit="million")]
    for context in QUICK_CONTEXTS if quick else CONTEXTS:
        tokens = np.random.default_rng(0).integers(1, module.config.vocab_size, context)
        contenders = [_ours(session), _genai(peer, context), _eager(module, session)]
        rows += _rows(contenders, tokens, rounds=10 if quick else 16)
    return rows


def prepare(layers: int) -> Path:
    """A folder with the weights (`hf`), the peer's graph of them (`genai`) and ours (`bundle`)."""
    folder = BUILD / f"layers_{layers}"
    if not (folder / "genai" / "genai_config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32_000,
            hidden_size=1536,
            intermediate_size=4096,
            num_hidden_layers=layers,
            num_attention_heads=12,
            num_key_value_heads=4,
            max_position_embeddings=8192,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(folder / "hf")
        genai_peer.add_tokenizer(folder / "hf", config.vocab_size)
        genai_peer.build(folder / "hf", folder / "genai", THREADS)
    bundle = folder / "bundle"
    changed = max(file.stat().st_mtime for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    if not bundle.exists() or bundle.stat().st_mtime < changed:
        intaglio.export(folder / "hf", bundle, shapes=ONE_ROW, verify=False, force=bundle.exists())
    return folder


def _rows(contenders: list[Contender], tokens: np.ndarray, rounds: int) -> list[Row]:
    first = [contender.consume(tokens) for contender in contenders]
    if len(set(first)) > 1:
        raise SystemExit(f"the next tokens differ, {first}: the models are not the same")
    times: list[list[float]] = [[] for _ in contenders]
    for index in range(rounds + WARMUP):
        made = set()
        for contender, kept in zip(contenders, times, strict=True):
            start = time.perf_counter()
            made.add(contender.decode())
            if index >= WARMUP:
                kept.append(time.perf_counter() - start)
        if len(made) > 1:
            raise SystemExit(f"token {index} differs, {made}: the models are not the same")
    load = machine()["load"][0]
    rows = [
        Row(
            name=f"{contender.name}, context {len(tokens)}",
            value=1 / statistics.median(kept),
            unit="tokens/s",
            note=f"{THREADS} threads, load average {load}",
        )
        for contender, kept in zip(contenders, times, strict=True)
    ]
    for contender, kept in zip(contenders[1:], times[1:], strict=True):
        value = statistics.median(b / a for a, b in zip(times[0], kept, strict=True))
        genai = contender.name == "onnxruntime-genai"
        rows.append(
            Row(
                name=f"speed of ours, context {len(tokens)}",
                value=value,
                unit="ratio",
                target=">= 1.0" if genai else None,
                holds=value >= 1.0 if genai else None,
                against=contender.name,
            )
        )
    return rows


def _ours(session: Session) -> Contender:
    token = np.zeros((1, 1), np.int64)

    def consume(tokens: np.ndarray) -> int:
        session.state.reset()
        for first in range(0, len(tokens), CHUNK):
            part = tokens[None, first : first + CHUNK]
            logits = session.step({"input_ids": part})["logits"]
        token[0, 0] = logits[0, -1].argmax()
        return int(token[0, 0])

    def decode() -> int:
        token[0, 0] = session.step({"input_ids": token})["logits"][0, -1].argmax()
        return int(token[0, 0])

    return Contender("intaglio", consume, decode)


def _genai(model: Any, context: int) -> Contender:
    options = onnxruntime_genai.GeneratorParams(model)
    length = context + 256  # no token ends the sequence before that
    options.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = onnxruntime_genai.Generator(model, options)

    def decode() -> int:
        generator.generate_next_token()
        return int(generator.get_next_tokens()[0])

    def consume(tokens: np.ndarray) -> int:
        generator.append_tokens(tokens.astype(np.int32))
        return decode()

    return Contender("onnxruntime-genai", consume, decode)


def _eager(module: Any, session: Session) -> Contender:
    """The library's module; its cache is filled from what ours holds, which saves minutes."""
    cache, token = DynamicCache(config=module.config), torch.zeros((1, 1), dtype=torch.int64)

    def run_once() -> int:
        with torch.inference_mode():
            out = module(input_ids=token, past_key_values=cache, use_cache=True)
        token[0, 0] = out.logits[0, -1].argmax()
        return int(token[0, 0])

    def consume(tokens: np.ndarray) -> int:
        states = session.state.save().arrays
        last = len(tokens) - 1
        for layer in range(module.config.num_hidden_layers):
            key, value = (
                torch.from_numpy(states[f"past_key_values.{layer}.{port}"][:, :, :last].copy())
                for port in ("key", "value")
            )
            cache.update(key, value, layer)
        token[0, 0] = int(tokens[-1])
        return run_once()

    return Contender("PyTorch eager", consume, run_once)


if __name__ == "__main__":
    run(__doc__, measure)
