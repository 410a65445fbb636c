"""Decoders of one shape side by side: ours in several widths, onnxruntime-genai, llama.cpp.

Every decoder is a process of its own.  In a round each of them, in turns, prefills from nothing and
then takes greedy steps; the others wait.  All have the same number of threads; where that is one,
speeds are tokens per second of the processor's work.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

import intaglio
from intaglio.exporter.options.served_shapes import ServedShapes

HERE = Path(__file__).parent
FORMATS = ("Q4_0", "Q2_K", "TQ2_0")
OPTIONS = "head=true,embeddings=true"


@dataclass(frozen=True, kw_only=True)
class Width:
    """A form of our weights, and how many rows are decoded together by which kernel.

    With `last`, logits are those of the last token of a call alone.
    """

    name: str
    pass_: str = ""
    tables: bool = False
    rows: int = 1
    last: bool = False

    @property
    def shapes(self) -> ServedShapes:
        """For exactly so many rows: the peers decode one too."""
        sizes = "x1:".join([str(self.rows)] * 2) + f"x16:{self.rows}x4096"
        return ServedShapes.parse(shapes=[f"input_ids:{sizes}"])


WIDTHS: dict[str, Width] = {
    "32": Width(name="fp32"),
    "8": Width(name="8 bits", pass_=f"rtn:bits=8,group=128,{OPTIONS}"),
    "4": Width(name="4 bits", pass_=f"rtn:bits=4,group=128,{OPTIONS}"),
    "2": Width(name="2 bits", pass_=f"rtn:bits=2,group=128,{OPTIONS}"),
    "2z": Width(
        name="2 bits, integer zero points",
        pass_=f"rtn:bits=2,group=128,{OPTIONS},zero_points=true",
    ),
    "2t": Width(
        name="2 bits, groups of 32, tables", pass_=f"rtn:bits=2,group=32,{OPTIONS}", tables=True
    ),
    "2zt": Width(
        name="2 bits, integer zero points, groups of 32, tables",
        pass_=f"rtn:bits=2,group=32,{OPTIONS},zero_points=true",
        tables=True,
    ),
}
WIDTHS |= {
    f"2zx{rows}": replace(WIDTHS["2z"], name=f"{WIDTHS['2z'].name}, {rows} rows", rows=rows)
    for rows in (4, 16)
}
WIDTHS |= {
    f"{key}l": replace(WIDTHS[key], name=f"{WIDTHS[key].name}, logits of the last token", last=True)
    for key in ("2", "2z")
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a decoder of the Qwen3 family, its embedding tied to its head."""

    hidden: int = 1024
    layers: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    ff: int = 3072
    vocabulary: int = 151936

    @property
    def weights(self) -> int:
        """Numbers that a token is multiplied by, the head's among them."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.hidden * (self.layers * (attention + 3 * self.ff) + self.vocabulary)


@dataclass(kw_only=True)
class Decoder:
    """A process that decodes, and what it has said."""

    name: str
    path: Path
    command: Sequence[str]
    head: str
    rows: int = 1
    last: bool = False
    load: float = 0.0
    prefill: dict[int, list[float]] = field(default_factory=dict)
    decode: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(f.stat().st_size for f in files if f.is_file())


def make(
    shape: Shape, folder: Path, llama: str | None, threads: int, widths: Sequence[str]
) -> list[Decoder]:
    """Write what is not there yet; a peer that is not installed is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "hf"
    if not source.exists():
        torch.manual_seed(0)
        config = transformers.Qwen3Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.ff,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
        transformers.Qwen3ForCausalLM(config).save_pretrained(source)
    return [
        *_ours(source, folder, threads, widths),
        *_genai(source, folder, threads),
        *_llama(shape, folder, llama, threads),
    ]


def _ours(source: Path, folder: Path, threads: int, widths: Sequence[str]) -> list[Decoder]:
    worker = [sys.executable, str(HERE / "low_bit_worker.py")]
    found = []
    for key in widths:
        width = WIDTHS[key]
        path = folder / f"ours-{key}"
        if not path.exists():
            intaglio.export(
                source,
                path,
                passes=[width.pass_] if width.pass_ else [],
                ort_accuracy="fast",
                shapes=width.shapes,
                last=width.last or None,
                verify=False,
                portable=False,
            )
        kind = "tables" if width.tables else "intaglio"
        command = [*worker, kind, str(path), str(threads), str(width.rows)]
        found.append(
            Decoder(
                name=f"ours, {width.name}", path=path / "ort", command=command, head=width.name,
                rows=width.rows, last=width.last,
            )
        )  # fmt: skip
    return found


def _genai(source: Path, folder: Path, threads: int) -> list[Decoder]:
    path = folder / "genai-int4"
    if not path.exists():
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        options = ["-i", str(source), "-o", str(path), "-p", "int4", "-e", "cpu"]
        cache = ["-c", str(folder / "cache")]
        subprocess.run([*build, *options, *cache], check=True, capture_output=True)
    worker = [sys.executable, str(HERE / "low_bit_worker.py"), "genai", str(path), str(threads)]
    return [Decoder(name="onnxruntime-genai, int4", path=path, command=worker, head="int4")]


def _llama(shape: Shape, folder: Path, python: str | None, threads: int) -> list[Decoder]:
    if python is None:
        return []
    worker = [python, str(HERE / "llama_worker.py")]
    found = []
    for form in FORMATS:
        path = folder / "llama" / f"{form}.gguf"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            sizes = json.dumps(shape.__dict__)
            made = [*worker, "make", sizes, str(path), form]
            subprocess.run(made, check=True, capture_output=True)
        said = subprocess.run(
            [*worker, "types", str(path)], check=True, capture_output=True, text=True
        )
        head = json.loads(said.stdout)["head"]
        command = [*worker, "serve", str(path), str(threads)]
        found.append(Decoder(name=f"llama.cpp, {form}", path=path, command=command, head=head))
    return found


def race(
    decoders: Sequence[Decoder], lengths: Sequence[int], steps: int, rounds: int
) -> list[list[float]]:
    """Let each decoder prefill and step in every round; returns the load averages of the rounds.

    Steps follow the first of the prefills.  Speeds count the tokens of all rows.
    """
    processes: list[Any] = []
    loads = []
    try:
        for decoder in decoders:
            process = subprocess.Popen(
                decoder.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            processes.append(process)
            decoder.load = _answer(decoder, process)["load"]
            for length in lengths:
                _ask(decoder, process, length, 2)  # the first use of each graph is not counted
        for _ in range(rounds):
            for decoder, process in zip(decoders, processes, strict=True):
                for length in lengths:
                    after = steps if length == lengths[0] else 0
                    said = _ask(decoder, process, length, after)
                    found = decoder.prefill.setdefault(length, [])
                    found.append(decoder.rows * length / said["prefill"])
                    if after:
                        decoder.decode.append(decoder.rows * after / said["decode"])
                    decoder.peak = int(said["peak"])
                print(f"{decoder.name}: {decoder.decode[-1]:.1f} tokens/s", file=sys.stderr)
            loads.append([round(x, 2) for x in os.getloadavg()])
    finally:
        for process in processes:
            process.stdin.close()
            process.wait(60)
    return loads


def _ask(decoder: Decoder, process: Any, length: int, steps: int) -> dict[str, float]:
    process.stdin.write(f"{length} {steps}\n")
    process.stdin.flush()
    return _answer(decoder, process)


def _answer(decoder: Decoder, process: Any) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{decoder.name} ended with {process.wait(60)}: {decoder.command}")
    found: dict[str, Any] = json.loads(line)
    return found


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of the ratio of two speeds."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))
