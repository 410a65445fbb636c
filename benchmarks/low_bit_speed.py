"""How fast a decoder of 2 bits runs on ONNX Runtime, beside other widths and other engines.

    python benchmarks/low_bit_speed.py [--llama-python PYTHON] [--models DIR] [--threads N]
                                       [--widths 32,8,4,2,2z] [--quick] [--json]

The decoder has the shape of Qwen3-0.6B and random weights; ours is exported by the pass rtn, head
and embedding included, in several widths, groups of 128; 2z is 2 bits with integer zero points,
which the kernel takes, instead of offsets, which cost a product of their own.  Beside it stand ONNX
Runtime's own generator (onnxruntime-genai, int4, made by its model builder from the same directory)
and, where PYTHON is of an environment with llama-cpp-python and gguf, llama.cpp's formats.  DIR
keeps the models for another run.  Every decoder is a process of N threads, two unless said
otherwise; in each round all of them work in turns.  With one thread speeds are tokens per second of
processor time, whose ratios hold on a machine that is busy with other things; with more, of the
clock.

Caches have room for 128 tokens on every side.  Ours is exported for one row (`--shapes`), as the
peers decode: a bundle for any batch attends to the whole of a static cache, filled or not.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from evidence import Row, run
from low_bit_decoders import WIDTHS, Decoder, Shape, make, race, times_as_fast
from low_bit_layer import last_level_cache

PREFILL, STEPS, ROUNDS, THREADS = 64, 16, 9, 2
SMALL = Shape(hidden=512, layers=4, heads=8, kv_heads=4, head_dim=64, ff=1536, vocabulary=8192)
GENAI, LLAMA = 1.5, 1.0  # how many times as fast as these decode 2 bits should
MISSED = (
    "By `intaglio profile`, two thirds of our step are MatMulNBits and a tenth attention; float "
    "offsets take a fifth, which integer zero points (2z) spare."
)


def measure(quick: bool, own: argparse.Namespace) -> list[Row]:
    """Make the decoders, let them race, and compare 2 bits with each other one."""
    with tempfile.TemporaryDirectory() as temporary:
        return _decoders(quick, own, Path(own.models or temporary))


def _decoders(quick: bool, own: argparse.Namespace, folder: Path) -> list[Row]:
    shape, rounds = (SMALL, 2) if quick else (Shape(), ROUNDS)
    widths = own.widths.split(",")
    folder /= "small" if quick else "whole"
    decoders = make(shape, folder, own.llama_python, own.threads, widths)
    loads = race(decoders, PREFILL, STEPS, rounds)
    two_bits = [x for x in decoders if x.name.startswith("ours, 2 bits")]
    size, cache = min(decoder.bytes for decoder in two_bits), last_level_cache()
    found = [
        Row(name="decoder: 2-bit weights", value=size / 2**20, unit="MiB",
            target=">= 4 last-level caches", holds=size >= 4 * cache,
            note=f"last-level cache {cache / 2**20:.0f} MiB"),
        Row(name="decoder: load average", value=median(x[0] for x in loads), unit="processes",
            note="; ".join(str(x[0]) for x in loads) + f"; threads of each: {own.threads}"),
    ]  # fmt: skip
    for decoder in decoders:
        found += _facts(decoder)
    for ours in two_bits:
        for decoder in decoders:
            found += _against(ours, decoder)
    return found


def _facts(decoder: Decoder) -> list[Row]:
    name, head = f"decoder, {decoder.name}", f"head {decoder.head}"
    return [
        Row(name=f"{name}: decode", value=median(decoder.decode), unit="tokens/s", note=head),
        Row(name=f"{name}: prefill of {PREFILL}", value=median(decoder.prefill), unit="tokens/s"),
        Row(name=f"{name}: files", value=decoder.bytes / 1e6, unit="MB"),
        Row(name=f"{name}: load", value=decoder.load, unit="s"),
        Row(name=f"{name}: peak memory", value=decoder.peak / 1e6, unit="MB"),
    ]


def _against(ours: Decoder, other: Decoder) -> Sequence[Row]:
    if other is ours:
        return ()
    value = times_as_fast(ours.decode, other.decode)
    peer = other.name.partition(",")[0]
    least = {"onnxruntime-genai": GENAI, "llama.cpp": LLAMA}.get(peer)
    missed = least is not None and value < least
    name = f"decoder, {ours.name.removeprefix('ours, ')} to {other.name}"
    return (
        Row(name=f"{name}: decode", value=value, unit="times as fast",
            target=None if least is None else f">= {least}",
            holds=None if least is None else not missed,
            against=other.name,
            note=MISSED if missed else f"heads {ours.head} and {other.head}"),
        Row(name=f"{name}: prefill",
            value=times_as_fast(ours.prefill, other.prefill), unit="times as fast",
            against=other.name),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--llama-python")
    parser.add_argument("--models")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--widths", default="32,8,4,2,2z")
    own, rest = parser.parse_known_args()
    given = set(own.widths.split(","))
    if not given <= set(WIDTHS) or not given & {"2", "2z"}:
        parser.error(f"--widths should be of {', '.join(WIDTHS)}, with 2 or 2z among them")
    sys.argv[1:] = rest
    chosen = [f"--threads {own.threads}", f"--widths {own.widths}"]
    chosen += ["--llama-python PYTHON"] if own.llama_python else []
    run(__doc__, lambda quick: measure(quick, own), chosen)
