"""How fast a decoder of 2 bits runs on ONNX Runtime, beside other widths and other engines.

    python benchmarks/low_bit_speed.py [--llama-python PYTHON] [--models DIR] [--threads N]
                                       [--widths 32,8,4,2,2l,2z,2zl,2t,2zt,2zx4,2zx16]
                                       [--quick] [--json]

The decoder has the shape of Qwen3-0.6B and random weights; ours is exported by the pass rtn, head
and embedding included, in several widths, groups of 128; 2z is 2 bits with integer zero points,
which the kernel takes, instead of offsets, which cost a product of their own; 2t and 2zt are of
groups of 32, looked up in tables; 2l and 2zl give the logits of the last token of a call alone, as
llama.cpp does of a prompt; 2zx4 and 2zx16 decode 4 and 16 rows together, whose speeds count
all of them.  Beside it stand ONNX
Runtime's own generator (onnxruntime-genai, int4, made by its model builder from the same directory)
and, where PYTHON is of an environment with llama-cpp-python and gguf, llama.cpp's formats.  DIR
keeps the models for another run.  Every decoder is a process of N threads, two unless said
otherwise; in each round all of them work in turns.  With one thread speeds are tokens per second of
processor time, whose ratios hold on a machine that is busy with other things; with more, of the
clock.

Caches have room for 640 tokens on every side.  Ours is exported for one row (`--shapes`), as the
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

from intaglio.runtime.ort import ort_ceilings
from intaglio.runtime.work import Ceilings

LONG = 512
PREFILLS = 64, LONG
STEPS, ROUNDS, THREADS = 16, 5, 2
SMALL = Shape(hidden=512, layers=4, heads=8, kv_heads=4, head_dim=64, ff=1536, vocabulary=8192)
# How many times as fast as these 2 bits should decode, with offsets and with integer zero points,
GENAI, GENAI_INTEGER, LLAMA = 1.9, 2.1, 1.3
FORMATS = ("Q4_0", "Q2_K")  # and prefill, and how much more rows together should than one:
PREFILL, ROWS = 1.15, {4: 2.5, 16: 5.0}
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
    loads = race(decoders, PREFILLS, STEPS, rounds)
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
    ceilings = ort_ceilings.of(own.threads)
    for decoder in decoders:
        found += _shares(decoder, shape, ceilings) if decoder.name.startswith("ours") else []
    single = [decoder for decoder in decoders if decoder.rows == 1]
    for ours in single:
        if ours in two_bits:
            for decoder in single:
                found += [] if decoder is ours else _against(ours, decoder)
            found += [
                _together(ours, each)
                for each in decoders
                if each.rows > 1 and each.name == f"{ours.name}, {each.rows} rows"
            ]
    return found


def _facts(decoder: Decoder) -> list[Row]:
    name, head = f"decoder, {decoder.name}", f"head {decoder.head}"
    return [
        Row(name=f"{name}: decode", value=median(decoder.decode), unit="tokens/s", note=head),
        *(
            Row(name=f"{name}: prefill of {length}", value=median(speeds), unit="tokens/s")
            for length, speeds in decoder.prefill.items()
        ),
        Row(name=f"{name}: files", value=decoder.bytes / 1e6, unit="MB"),
        Row(name=f"{name}: load", value=decoder.load, unit="s"),
        Row(name=f"{name}: peak memory", value=decoder.peak / 1e6, unit="MB"),
    ]


def _shares(decoder: Decoder, shape: Shape, ceilings: Ceilings) -> list[Row]:
    """How near each phase is to what the machine reaches at best, by its bytes and operations."""
    read = decoder.bytes * median(decoder.decode) / decoder.rows
    kind = "float32" if decoder.head == "fp32" else "int8"
    head = shape.hidden * shape.vocabulary
    each = shape.weights - (head * (LONG - 1) / LONG if decoder.last else 0)
    done = 2 * each * median(decoder.prefill[LONG])
    return [
        Row(name=f"decoder, {decoder.name}: decode", value=read / ceilings.bytes,
            unit="of the memory's rate", note=f"{ceilings.bytes / 1e9:.1f} GB/s at best"),
        Row(name=f"decoder, {decoder.name}: prefill of {LONG}",
            value=done / ceilings.operations[kind], unit=f"of the rate in {kind}",
            note=f"{ceilings.operations[kind] / 1e9:.0f} billion operations a second at best"),
    ]  # fmt: skip


def _against(ours: Decoder, other: Decoder) -> list[Row]:
    """What 2 bits of one row are to another decoder of one row."""
    name = f"decoder, {ours.name.removeprefix('ours, ')} to {other.name}"
    heads = f"heads {ours.head} and {other.head}"
    least = _least(ours, other)
    return [
        _ratio(f"{name}: decode", other, ours.decode, other.decode, least, heads),
        *(
            _ratio(
                f"{name}: prefill of {length}", other, speeds, other.prefill[length],
                PREFILL if length == LONG and other.name.endswith(FORMATS) else None, "",
            )
            for length, speeds in ours.prefill.items()
        ),
    ]  # fmt: skip


def _least(ours: Decoder, other: Decoder) -> float | None:
    """How many times as fast as `other` it should decode."""
    if other.name.startswith("onnxruntime-genai"):
        return GENAI_INTEGER if "integer" in ours.name else GENAI
    return LLAMA if other.name.endswith("Q4_0") else None


def _together(one: Decoder, many: Decoder) -> Row:
    """What rows together are to one row of the same weights."""
    name = f"decoder, {many.name.removeprefix('ours, ')} to one row: decode"
    return _ratio(name, one, many.decode, one.decode, ROWS[many.rows], "tokens of all rows")


def _ratio(
    name: str, other: Decoder, ours: Sequence[float], theirs: Sequence[float],
    least: float | None, note: str,
) -> Row:  # fmt: skip
    value = times_as_fast(ours, theirs)
    missed = least is not None and value < least
    return Row(
        name=name, value=value, unit="times as fast", against=other.name,
        target=None if least is None else f">= {least}",
        holds=None if least is None else not missed,
        note=MISSED if missed and note.startswith("heads") else note,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--llama-python")
    parser.add_argument("--models")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--widths", default="32,8,4,2,2z,2t,2zt,2zx4,2zx16")
    own, rest = parser.parse_known_args()
    given = set(own.widths.split(","))
    if not given <= set(WIDTHS) or not given & {"2", "2z"}:
        parser.error(f"--widths should be of {', '.join(WIDTHS)}, with 2 or 2z among them")
    sys.argv[1:] = rest
    chosen = [f"--threads {own.threads}", f"--widths {own.widths}"]
    chosen += ["--llama-python PYTHON"] if own.llama_python else []
    run(__doc__, lambda quick: measure(quick, own), chosen)
