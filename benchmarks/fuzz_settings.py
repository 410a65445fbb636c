"""Settings for `fuzz.py`: recipes, folders, tokenizers, chat templates and saved states."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzz_arguments import WORDS
from fuzz_mutations import CANARY, STRINGS, VALUES, flip_bytes

RECIPE_KEYS: Sequence[str] = (
    *("model", "config", "key", "axes", "graphs", "states", "condition", "whole", "targets"),
    *("passes", "kv", "last", "ort_accuracy", "shapes", "dtype", "flavour", "sm", "portable"),
    *("layout", "check_passes", "verify", "steps", "tolerance", "allow_code", "unknown"),
    *("adapter", "adapters", "text", "hashes", "inputs"),
)
GOOD: Mapping[str, Sequence[Any]] = {  # what a key takes
    "config": ({"hidden_size": 8}, {}),
    "axes": ({"input_ids": ["batch", "time"]}, {"input_ids": [2, "time"]}),
    "graphs": ({"main": {"method": "forward"}}, {"second": {"method": "forward"}}),
    "states": ({"h": "h_out"},),
    "condition": (["x"], []),
    "targets": (["ort"], ["trt"], ["ort", "trt"]),
    "kv": ("static", "grow"),
    "ort_accuracy": ("fast", "fine", "exact"),
    "shapes": ({"input_ids": [[1, 1], [1, 4], [2, 8]]},),
    "dtype": ("fp32", "fp16"),
    "flavour": ("rtx", "tensorrt"),
    "sm": ([80], [80, 89], []),
    "layout": ("genai", "triton", "bundle"),
    "steps": (1, 7),
    "tolerance": ({"logits": 0.1},),
    "hashes": ({"data": "x"},),
    "adapters": ("fused", "switched", "parallel"),
    **dict.fromkeys(("whole", "last", "portable", "check_passes", "verify", "text"), (True, False)),
}
PASSES: Sequence[Any] = (
    {"name": "rtn", "options": {"bits": 4}},
    {"name": "rtn", "options": {"bits": 2, "group_size": 16}},
    {"name": "fuse-attention"},
    {"name": "rtn", "options": 3},
    {"name": 3},
    {"file": f"{CANARY}.py", "function": "f"},
    {"file": 5, "function": None},
    {"name": ["a"], "options": {"bits": "x"}},
    {},
    "rtn",
)


def draw_recipe(random: Random) -> tuple[bytes, str]:
    """A recipe with keys of any value, or bytes that are none."""
    chance = random.random()
    if chance < 0.05:
        return b"a." * random.choice((10, 5_000, 50_000)) + b"b = 1", "dotted"
    if chance < 0.1:
        return b"steps = " + b"[" * 10_000, "nested"
    chosen = random.sample(RECIPE_KEYS, random.choice((1, 1, 2, 3, 4)))
    lines = []
    for key in chosen:
        value = random.choice(PASSES) if key == "passes" else random.choice(WORDS)
        if key in GOOD and random.random() < 0.7:
            lines.append(f"{key} = {_toml(random.choice(GOOD[key]))}")
            continue
        if key == "passes" and random.random() < 0.8:
            value = [value]
        if key in ("config", "axes", "graphs", "states", "tolerance", "shapes") and (
            random.random() < 0.6
        ):
            value = {str(random.choice(WORDS)): value}
        lines.append(f"{key} = {_toml(value)}")
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return (flip_bytes(text, random) if chance > 0.9 else (text, ", ".join(lines)))[:2]


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def change_folder(folder: Path, random: Random) -> str:
    """Files of a Hugging Face directory that are pipes, links, folders, missing or changed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = random.choice(files)
    ways = ("pipe", "link", "folder", "missing", "empty", "bytes", "json", "config", "config")
    way = random.choice(ways)
    if way in ("json", "config"):
        path = folder / "config.json"
        values = json.loads(path.read_text())
        for key in random.sample(list(values), random.choice((1, 1, 2))):
            values[key] = random.choice((*VALUES, 10**6, 2**25, "LlamaForCausalLM", "os:system"))
        if way == "json":
            values["auto_map"] = {
                "AutoConfig": f"{CANARY}.C",
                "AutoModelForCausalLM": f"{CANARY}.M",
            }
        path.write_text(json.dumps(values))
        return f"{way} {values}"[:200]
    content = path.read_bytes()
    path.unlink()
    if way == "pipe":
        os.mkfifo(path)
    elif way == "link":
        path.symlink_to(random.choice(("/dev/zero", "/etc/passwd", path.name, "..")))
    elif way == "folder":
        path.mkdir()
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "bytes":
        path.write_bytes(flip_bytes(content, random)[0])
    return f"{way} {path.name}"


def plain_tokenizer() -> dict[str, Any]:
    """A tokenizer.json of letters."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {chr(97 + i): i for i in range(26)},
                  "unk_token": "a"},
    }  # fmt: skip


def draw_tokenizer(random: Random) -> tuple[bytes, str]:
    """A tokenizer.json with one part of another kind: paddings, patterns and replacements."""
    content = plain_tokenizer()
    size = random.choice((0, 1, 2**20, 2**40, 2**63 - 1))
    pattern = random.choice(("(a+)+$", "(a|a)*b", "(.*)*x", "(?=(a+))\\1+b", "[", "a{1000000}", ""))
    parts: dict[str, Any] = {
        "padding": {
            "strategy": random.choice(({"Fixed": size}, "BatchLongest")),
            "direction": "Right",
            "pad_to_multiple_of": random.choice((None, size)),
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        },
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        },
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
                for _ in range(random.choice((1, 6, 10, 20)))
            ],
        },
        "truncation": {
            "max_length": size,
            "strategy": "LongestFirst",
            "stride": size,
            "direction": "Right",
        },
        "decoder": {"type": "Replace", "pattern": {"Regex": pattern}, "content": "a" * 1000},
        "added_tokens": [
            {
                "id": size,
                "content": random.choice(("", "a", "a" * 10_000)),
                "special": True,
                "single_word": False,
                "lstrip": True,
                "rstrip": True,
                "normalized": True,
            }
        ],
    }
    name = random.choice(list(parts))
    content[name] = parts[name]
    text = json.dumps(content).encode()
    if random.random() < 0.2:
        return flip_bytes(text, random)[0], f"{name}, bytes"
    return text, name


TEMPLATES: Sequence[str] = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "{% for a in range(10**9) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 9**9**9 }}",
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('" + CANARY + "') }}",
    "{{ self._TemplateReference__context.environment.from_string('x') }}",
    "{{ lipsum.__globals__['os'].system('mkdir " + CANARY + "') }}",
    "{{ raise_exception('no\n\x1b[31m') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.mkdir('" + CANARY + "') }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ messages[0].content.format_map }}",
    "{{ (messages | tojson) * 100000 }}",
    "{{ strftime_now('%Y') }}",
    "{{ messages[7].content }}",
    "{{ undefined.x }}",
    "{% if %}",
    "{{" * 10_000,
    "",
    "\x00",
)


def draw_template(random: Random) -> tuple[bytes, str]:
    """A chat template: a program of whoever wrote it."""
    template = random.choice(TEMPLATES)
    if random.random() < 0.3:
        return flip_bytes(template.encode(), random)
    if random.random() < 0.2:
        template += random.choice(TEMPLATES)
    return template.encode(), template[:60]


def change_state(content: bytes, folder: Path, random: Random) -> str:
    """One array of a saved state that is huge, of another type, NaN, or of another past."""
    path = folder / "state.npz"
    path.write_bytes(content)
    with np.load(path) as archive:
        arrays = dict(archive)
    name = random.choice(list(arrays))
    array = arrays[name]
    ways: Mapping[str, Callable[[], Any]] = {
        "drop": lambda: None,
        "nan": lambda: np.full(array.shape, np.nan),
        "zero": lambda: np.zeros(array.shape, array.dtype),
        "shape": lambda: np.zeros(random.choice(((), (0,), (1,), (3, 1), (7, 7, 7)))),
        "past": lambda: np.full(array.shape, random.choice((-1, 5, 2**40, 2**62)), np.int64),
        "text": lambda: np.array(random.choice(STRINGS)),
        "header": lambda: np.array(
            json.dumps({"version": random.choice((1, 2, 3)), "fingerprint": "x", "capacity": 2**40})
        ),
    }
    way = random.choice(list(ways))
    made = ways[way]()
    if way == "past":
        name = "past_length"
    if made is None:
        del arrays[name]
    else:
        arrays[name] = made
    np.savez(path, **arrays)
    if random.random() < 0.2:
        _lie(path, random)
    return f"{way} of {name}"


def _lie(path: Path, random: Random) -> None:
    """Let an array's header say another shape than it has."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = random.choice(list(members))
    members[name] = members[name].replace(b"(1,", b"(%d," % random.choice((9, 99999999999)), 1)
    with zipfile.ZipFile(path, "w") as archive:
        for member, body in members.items():
            archive.writestr(member, body)
