"""Command lines for `fuzz.py`: every option of every command, with values that it takes or not."""

import enum
import functools
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import typer
from fuzz_mutations import CANARY, INTEGERS, VALUES

import intaglio.cli
from intaglio.cli.frame import app

WORDS: Sequence[Any] = (
    *VALUES,
    *("ort", "trt", "static", "fp16", "os:system", "posix:mkdir", "llama", "main=forward"),
    *("x.py:f", "nan", "inf", "-1", "1e400", "batch", "input_ids:batchxtime", "input_ids:2x3"),
    *("batch=1", "logits=nan", "logits=0.1", "h=h_out", "rtn:bits=4", "rtn:bits='x'", "rtn"),
    *("fuse-attention", "\udcff", "a=b=c", "=", ":", "/dev/zero", "/dev/stdin", "."),
    *("bundle", "pipe", CANARY + ".py:f"),
)
GOOD: Mapping[str, Sequence[str]] = {  # what an option takes; numbers and choices are drawn
    "--adapter": ("a=adapter.npz", "adapter.npz", "a"),
    "--against": ("llama.pt",),
    "--axes": ("input_ids:batchxtime", "input_ids:2xtime", "input_ids:batchxtime<=40"),
    "--behaviour": ("suite.jsonl",),
    "--budget": ("3bits", "1.5MB"),
    "--calib": ("text.txt", "arrays.npz"),
    "--condition": ("input_ids", "batch=1", "x=arrays.npz"),
    "--config": ("config.json", "{}"),
    "--context": ("4", "1,4"),
    "--data": ("text.txt", "arrays.npz"),
    "--draft": ("bundle",),
    "--dtype": ("fp32", "fp16"),
    "--graph": ("main", "main=forward", "second=forward"),
    "--import-from": (".",),
    "--inputs": ("arrays.npz",),
    "--judge": ("judge.py:judge",),
    "--key": ("model", "key"),
    "--max-shapes": ("input_ids:2x8",),
    "--min-shapes": ("input_ids:1x1",),
    "--model": ("llama", "gla"),
    "--name": ("m",),
    "--opt-shapes": ("input_ids:1x4",),
    "--output": ("logits",),
    "--pass": ("rtn:bits=4", "rtn", "rtn:bits=2", "fuse-attention"),
    "--percentile": ("50,90",),
    "--prompt": ("ab", "1 2 3"),
    "--recipe": ("recipe.toml",),
    "--report": ("page.html",),
    "--require-signature": ("key.pub", "key"),
    "--require-target": ("ort", "trt"),
    "--shapes": ("input_ids:1x1:1x4:2x8",),
    "--sm": ("80", "80,89"),
    "--state": ("h=h_out", "h=h_out:0"),
    "--stop": ("a", "ab"),
    "--store": ("store",),
    "--target": ("ort", "trt", "ort,trt", "auto"),
    "--tokenizer": ("tokenizer.json",),
    "--tolerance": ("logits=0.1",),
    "--work": ("work",),
}
NEVER = ("--debug", "--help")  # a traceback is asked for
BRIEF = ("--no-ops", "--duration", "0.01", "--iterations", "1", "--warm-up", "0")
TO_FILE = ("-o", "out.pt")
GIVEN: Mapping[str, Sequence[str]] = {
    "export": ("llama.pt", "-o", "out", "--no-verify"),
    "run": ("bundle", "--prompt", "ab", "--steps", "2"),
    "verify": ("bundle", "--against", "llama.pt", "--steps", "2"),
    "inspect": ("bundle",),
    "build": ("bundle",),
    "profile": ("bundle", "--context", "4", "--prompt-length", "4", *BRIEF),
    "sign": ("bundle", "--key", "key"),
    "triton": ("bundle", "-o", "out"),
    "merge": ("llama.pt", "other.pt", *TO_FILE),
    "adapter": ("llama.pt", "other.pt", "-o", "out.npz"),
    "assemble": ("llama.pt", "other.pt", *TO_FILE),
    "subnet": ("llama.pt", "--budget", "3bits", "--data", "text.txt", *TO_FILE),
    "interpret": ("bundle", "arrays.npz", "-o", "out"),
}


@functools.cache
def _options(command: str) -> Sequence[Any]:
    """Those that a command declares."""
    assert intaglio.cli
    group: Any = typer.main.get_command(app)
    parameters = group.commands[command].params
    found = [each for each in parameters if each.param_type_name == "option"]
    return [each for each in found if each.name != "out" and each.opts[0] not in NEVER]


def draw_arguments(random: Random) -> list[str]:
    """A command line of one of the commands, with options of any value."""
    command = random.choice(list(GIVEN))
    given = [*GIVEN[command]]
    if random.random() < 0.1:  # without what it needs
        given = given[:1]
    options = _options(command)
    for option in random.sample(options, min(len(options), random.choice((1, 1, 2, 3)))):
        given.append(random.choice([*option.opts, *option.secondary_opts]))
        if not option.is_flag:
            given.append(_value(option, random).replace("\0", ""))
    return [command, *given]


def _value(option: Any, random: Random) -> str:
    """What an option takes, by its type and name; else anything."""
    if random.random() < 0.4:
        return str(random.choice((*WORDS, *INTEGERS)))
    kind = option.type_descriptor.annotation
    if isinstance(kind, enum.EnumType):
        members: list[Any] = list(kind.__members__.values())
        return str(random.choice(members).value)
    for name in option.opts:
        if name in GOOD:
            return random.choice(GOOD[name])
    return random.choice(("0", "1", "2", "0.5", "4") if kind is float else ("0", "1", "2", "4"))


def draw_joining(random: Random) -> list[str]:
    """A command that makes a checkpoint of others."""
    command = random.choice(("merge", "merge", "adapter", "assemble", "subnet"))
    return [command, *GIVEN[command]]


def draw_reading(random: Random) -> list[str]:
    """A command that reads a bundle, and is neither `run` nor `verify`."""
    command = random.choice(("profile", "sign", "triton", "build", "diff", "draft", "interpret"))
    if command == "draft":
        return ["run", "bundle", "--prompt", "ab", "--steps", "4", "--draft", "bundle"]
    if command == "diff":
        return ["inspect", "--diff", "bundle", "honest"]
    return [command, *GIVEN[command]]
