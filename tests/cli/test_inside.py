"""`inspect` in depth and `inspect --diff`: weights, states at a context, changes, code."""

import functools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import intaglio
from intaglio.cli import inside
from intaglio.cli.console import Console, Flags
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.contradictions import contradictions
from intaglio.runtime.manifest import FileRecord, schema
from intaglio.runtime.schema import faults

inspect = functools.partial(invoke, "inspect")


@pytest.fixture(scope="module")
def growing(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "growing"
    intaglio.export(checkpoint, path, kv="grow", verify=False)
    return path


def test_weights_are_told_with_their_bits(bundle: Path) -> None:
    shown = inspect(bundle)
    found = json.loads(inspect(bundle, "--json").stdout)["weights"]

    assert "32 bits each" in shown.stdout
    assert found["bits_per_weight"] == 32
    assert found["bytes"] == 4 * found["weights"]
    assert list(found["by_kind"]) == ["float32"]
    assert found["by_module"]["lm_head"]["weights"] == 256 * 16


def test_states_are_told_at_the_contexts_asked_for(bundle: Path) -> None:
    """Keys and values of one layer: two heads of 8 in float32, three rows."""
    shown = inspect(bundle, "--context=10,1000", "--batch=3").stdout
    manifest = Bundle.open(bundle).manifest
    found = json.loads(inspect(bundle, "--context=10", "--batch=3", "--json").stdout)["states"]

    assert "states by context, batch of 3" in shown
    assert "at 1,000" in shown
    for spec in manifest.main.states:
        width = spec.shape[1] * spec.shape[3]  # type: ignore[operator]
        assert found[spec.input] == {"10": 3 * 10 * width * 4}


def test_what_the_passes_changed_is_told_by_module(bundle: Path) -> None:
    shown = inspect(bundle, "-v").stdout

    assert "what the passes changed" in shown
    assert "1 Mul -> RMSNormalization" in shown
    assert "+2 TensorScatter" in shown
    assert "layers.0.mixer" in shown


def test_compiled_code_is_named(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever runs a bundle of somebody else's wants to know."""
    opened = Bundle.open(bundle)
    manifest, plan = opened.manifest, FileRecord("ab" * 32, 7)
    coded = replace(manifest, files={**manifest.files, "trt/engine.plan": plan})
    inside.show_code(Console(Flags()), opened)
    inside.show_code(Console(Flags()), replace(opened, manifest=coded))
    none, some = capsys.readouterr().out.strip().split("\n\n")

    assert none.startswith("code     none")
    assert some == "code     trt/engine.plan"


def test_code_is_what_is_loaded_whatever_it_is_called(bundle: Path, tmp_path: Path) -> None:
    """Kernels that the index names, the engine beside the graph, and scripts that nobody lists."""
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    for folder in ("1", "other"):
        (tmp_path / folder).mkdir()
    index = {"kernels": {"k": {"op": "x", "plans": {}, "code": {"80/k": "notes.txt"}}}, "nodes": {}}
    files = {"notes.txt": "", "other/engine.plan": "", "other/plugins.json": json.dumps(index)}
    for name, text in {**files, "1/model.PY": ""}.items():
        (tmp_path / name).write_text(text)
    manifest = Bundle.open(bundle).manifest
    target = replace(manifest.main.targets["ort"], path="other/model.onnx", data=())
    entry = replace(manifest.main, targets={**manifest.main.targets, "trt": target})
    records = {name: FileRecord.of(tmp_path / name) for name in files}
    changed = replace(manifest.with_graph("main", entry), files={**manifest.files, **records})
    changed.save(tmp_path / "manifest.json")

    assert json.loads(inspect(tmp_path, "--json").stdout)["code"] == [
        "1/model.PY", "notes.txt", "other/engine.plan"
    ]  # fmt: skip


def test_a_damaged_graph_leaves_the_rest_of_the_page(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
    result = inspect(copy)

    assert result.exit_code == 1
    assert "statefulize" in result.stdout
    assert "the weights cannot be counted" in result.stderr


def test_two_bundles_are_compared(bundle: Path, growing: Path) -> None:
    shown = inspect("--diff", bundle, growing)
    found = json.loads(inspect(bundle, growing, "--diff", "--json").stdout)

    assert shown.exit_code == 0
    for words in ("past_key_values.0.key", "kv='grow'", "TensorScatter", "layers.0.mixer"):
        assert words in shown.stdout
    assert not found["same"]
    assert found["weights"] == []
    assert "same     inputs" in inspect("--diff", bundle, bundle).stdout


@pytest.mark.parametrize("second", [True, False])
def test_two_bundles_and_diff_go_together(bundle: Path, *, second: bool) -> None:
    result = inspect(bundle, *([bundle] if second else ["--diff"]))

    assert (result.exit_code, result.stdout) == (2, "")
    assert "--diff A B" in result.stderr


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["layers.0.mlp", "layers.1.mlp", "layers.2.mlp", "layers.5.mlp"], "layers.{0-2,5}.mlp"),
        (["layers.3.mlp"], "layers.3.mlp"),
        (["layers.0", "norm", ""], "layers.0, norm, (top)"),
        (["h.0.a.1", "h.1.a.1"], "h.{0-1}.a.1"),
        ([], ""),
    ],
)
def test_modules_that_count_up_are_told_in_few_words(paths: list[str], words: str) -> None:
    assert inside.module_words(paths) == words


def test_an_engine_runs_with_consent_alone(bundle: Path, tmp_path: Path) -> None:
    """Asked for, or the only thing that a bundle has: it is code of whoever made the bundle."""
    manifest = Bundle.open(bundle).manifest
    targets = {"trt": replace(manifest.main.targets["ort"], path="trt/model.onnx")}
    only = manifest.with_graph("main", replace(manifest.main, targets=targets))
    only.save(tmp_path / "manifest.json")

    for arguments in (
        ["run", str(tmp_path), "--prompt", "1"],
        ["run", str(tmp_path), "--prompt", "1", "--target", "trt"],
        ["verify", str(tmp_path), "--against", "x.pt", "--target", "trt"],
        ["profile", str(tmp_path)],
    ):
        refused = invoke(*arguments)
        assert refused.exit_code == 1
        assert "allow it with --allow-code" in refused.stderr
    allowed = invoke("run", str(tmp_path), "--prompt", "1", "--allow-code")
    assert allowed.exit_code == 1
    assert "--allow-code" not in allowed.stderr


def test_a_signature_is_told_required_and_as_good_as_consent(bundle: Path, tmp_path: Path) -> None:
    """By the commands: what was signed runs, shows who signed it, and may load its engine."""
    copy, key = tmp_path / "copy", tmp_path / "maker"
    shutil.copytree(bundle, copy, ignore=shutil.ignore_patterns("report.json"))
    for name in ("maker", "other"):
        made = Ed25519PrivateKey.generate()
        (tmp_path / f"{name}.pub").write_bytes(
            made.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        )
        (tmp_path / name).write_bytes(
            made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        )
    required = ["--require-signature", str(tmp_path / "maker.pub")]
    assert "signed   none" in inspect(copy).stdout
    signed = invoke("sign", str(copy), "--key", str(key), "--json")
    name = json.loads(signed.stdout)["key"]

    assert f"signed   says to be by {name}; not checked" in inspect(copy).stdout
    assert f"signed   by {name}, checked" in inspect(copy, *required).stdout
    run = ["run", str(copy), "--prompt", "1", "--steps", "1"]
    assert invoke(*run, *required).exit_code == 0
    for command in (
        [*run, "--require-signature", str(tmp_path / "other.pub")],
        ["inspect", str(copy), "--require-signature", str(tmp_path / "other.pub")],
        ["verify", str(copy), "--against", "x", "--require-signature", str(tmp_path / "other.pub")],
    ):
        refused = invoke(*command)
        assert refused.exit_code == 1
        assert f"is signed by {name}, not by the key" in refused.stderr

    manifest = Bundle.open(copy).manifest
    targets = {"trt": replace(manifest.main.targets["ort"], path="ort/model.onnx")}
    manifest.with_graph("main", replace(manifest.main, targets=targets)).save(
        copy / "manifest.json"
    )
    unsigned = invoke(*run, *required)
    assert "does not hold what was signed" in unsigned.stderr
    Bundle.open(copy).sign(key)
    trusted = invoke(*run, *required)
    assert trusted.exit_code == 1
    assert "--allow-code" not in trusted.stderr
    assert "--allow-code" in invoke(*run).stderr


FORGED = "x\nFORGED \r\x1b[2J\x9b\u202e\u2028FORGED\u2029\u200f\u061c\u2066\x85FORGED\x0b"
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def forged(entry: Any, whole: Any) -> Iterator[str]:
    """Put the text into each value and key that the schema leaves free; yield where."""
    items = list(entry.items() if isinstance(entry, dict) else enumerate(entry))
    for key, value in items:
        if isinstance(value, dict | list):
            yield from forged(value, whole)
        elif isinstance(value, str):
            entry[key] = value + FORGED
            if any(faults(whole, schema(), schema())) or any(contradictions(whole)):
                entry[key] = value
            else:
                yield str(key)
        if isinstance(key, str) and entry is not whole:
            entry[key + FORGED] = entry.pop(key)
            if any(faults(whole, schema(), schema())) or any(contradictions(whole)):
                entry[key] = entry.pop(key + FORGED)
            else:
                yield key


@pytest.mark.parametrize("target", ["ort", "other"])
def test_no_text_of_a_manifest_forges_a_line(bundle: Path, tmp_path: Path, target: str) -> None:
    """In every field at once that may hold any text, told by every command that tells it."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    targets = json.dumps(manifest["graphs"]["main"]["targets"])
    places = list(forged(manifest, manifest))
    if target == "ort":  # so that more of the bundle is reached
        manifest["graphs"]["main"]["targets"] = json.loads(targets)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert len(places) > 100

    for command in (
        ["inspect", str(copy), "-v", "--context", "3"],
        ["inspect", str(copy), str(bundle), "--diff", "-v"],
        ["doctor", str(copy)],
        ["run", str(copy), "--prompt", "1"],
        ["verify", str(copy), "--against", str(copy / "nothing.pt")],
        ["profile", str(copy)],
        ["build", str(copy)],
    ):
        told = invoke(*command)
        assert told.exit_code in (0, 1, 2), told.output
        assert "FORGED" not in [line[:6] for line in told.output.splitlines()], command
        assert not UNSEEN.search(told.output), command


def test_channels_that_belong_together_are_told(bundle: Path) -> None:
    shown = inspect(bundle, "--couplings")
    found = json.loads(inspect(bundle, "--couplings", "--json").stdout)["couplings"]
    (hidden,) = (group for group in found if group["name"] == "layers.0.mlp")

    assert f"{len(found)} groups of channels" in shown.stdout
    assert [(each["name"], each["axis"]) for each in hidden["members"]] == [
        ("layers.0.mlp.gate_proj.weight", 0),
        ("layers.0.mlp.up_proj.weight", 0),
        ("layers.0.mlp.down_proj.weight", 1),
    ]
