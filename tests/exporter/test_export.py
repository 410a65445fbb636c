"""A checkpoint becomes a bundle that is proven, the same every time, and whole or absent."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from intaglio.errors import BuildError, BundleError, CheckError, OptionError, ParityError, PassError
from intaglio.exporter.export import ExportReport, export
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.runtime import Session
from intaglio.runtime.manifest import Manifest

CODE = """
import torch
from torch import nn
from torch.nn import functional as F

class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (y.reshape(b, t, self.heads, -1).transpose(1, 2) for y in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).reshape(b, t, d))

class Net(nn.Module):
    def __init__(self, vocab=16, width=32, heads=2, layers=2):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
"""
MODEL = "exported_nets:Net"
STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads run these small models far slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """User code and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("source")
    write_source(folder)
    return folder


def write_source(folder: Path) -> None:
    (folder / "exported_nets.py").write_text(CODE)
    names: dict[str, Any] = {}
    exec(CODE, names)
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), folder / "model.pt")


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return load_source(folder / "model.pt", model=MODEL, import_from=[folder])


@pytest.fixture(scope="module")
def exported(source: Source, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    return export(source, out, steps=STEPS, check_passes=True)


class Damage(Exact):
    """Claims to be exact and doubles a weight."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        del context
        weight = model.graph.initializers["layers.1.out.weight"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(2 * weight.const_value.numpy(), name=weight.name)
        return PassResult(changed=True)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ops(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


def test_the_bundle_steps_to_what_the_source_computes(
    exported: ExportReport, source: Source
) -> None:
    """Token by token, after a prefill."""
    ids = source.random_inputs(2, 9, 1)["input_ids"]
    with torch.no_grad():
        expected = source.module(ids).numpy()

    session = Session.load(exported.out)
    split = np.split(ids.numpy(), [4, 5], axis=1)
    parts = [session.step({"input_ids": part})["logits"] for part in split]

    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-5)


def test_the_manifest_says_what_was_done(exported: ExportReport, source: Source) -> None:
    """Source, passes with their checks, recipe, evidence, and the report holds the same."""
    manifest = Manifest.load(exported.out / "manifest.json")

    assert manifest == exported.manifest
    assert manifest.source == {
        "name": "model.pt",
        "sha256": source.sha256,
        "format": "torch",
        "model": MODEL,
        "config": {},
    }
    assert [spec.name for spec in manifest.main.inputs] == ["input_ids"]
    assert manifest.main.inputs[0].shape == ("batch", "time")
    assert manifest.main.inputs[0].below == 16  # rows of the embedding
    assert [(spec.name, spec.dtype) for spec in manifest.main.outputs] == [("logits", "float32")]
    assert [state.module for state in manifest.main.states] == ["layers.0"] * 2 + ["layers.1"] * 2
    assert "statefulize" in [record["name"] for record in manifest.main.passes]
    assert all(entry["error"] is not None for entry in manifest.main.passes if entry["changed"])
    assert manifest.main.targets["ort"].parity == "passed"
    assert manifest.main.targets["ort"].opset == 24
    assert exported.parity is not None
    assert manifest.main.parity == exported.parity.to_json()
    assert set(manifest.files) == {
        "model.onnx",
        "model.onnx.data",
        "ort/model.onnx",
        "recipe.toml",
    }
    assert list(exported.seconds) == ["load", "trace", "passes", "write", "verify"]
    assert json.loads(json.dumps(exported.to_json()))["bytes"] == exported.bytes


def test_the_portable_graph_is_of_the_standard_alone(exported: ExportReport) -> None:
    """Any runtime that knows opset 27 can run it; its weights have the source's names."""
    model = onnx.load(exported.out / "model.onnx")

    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 27)]
    assert "layers.1.out.weight" in {tensor.name for tensor in model.graph.initializer}


CHILD = """
import os, signal, sys
import torch
from intaglio.exporter.export import export

torch.set_num_threads(1)

def progress(what, done):
    if what.startswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

export("model.pt", "bundle", model="exported_nets:Net", verify=sys.argv[1] == "verify",
       steps=12, progress=progress)
"""


def run_export(folder: Path, killed_in: str) -> int:
    """Export in a process of its own, which kills itself when a phase begins."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", CHILD, killed_in]
    return subprocess.run(command, cwd=folder, check=False).returncode


def contents(bundle: Path) -> dict[str, bytes]:
    return {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file()
    }


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """In two places: no path, time or order of a hash gets into a bundle."""
    bundles = []
    for name in ("here", "there/too"):
        place = tmp_path / name
        place.mkdir(parents=True)
        write_source(place)
        assert run_export(place, "never") == 0
        bundles.append(contents(place / "bundle"))

    assert bundles[0] == bundles[1]
    assert not any(str(tmp_path).encode() in data for data in bundles[0].values())


def test_a_killed_export_leaves_no_half_bundle(tmp_path: Path, source: Source) -> None:
    """Though all files were written; the next export to the same place works and clears up."""
    write_source(tmp_path)
    before = entries(tmp_path)

    assert run_export(tmp_path, "verify") == -signal.SIGKILL
    assert not (tmp_path / "bundle").exists()

    report = export(source, tmp_path / "bundle", verify=False)
    assert set(entries(tmp_path)) - {"__pycache__"} == {*before, "bundle"}
    assert report.parity is None
    assert report.manifest.main.targets["ort"].parity == "not run (turned off)"


def test_a_bundle_that_differs_from_its_source_is_not_put_in_place(
    exported: ExportReport, source: Source, tmp_path: Path
) -> None:
    """The attempt is kept with its evidence, the old bundle is not touched."""
    out = tmp_path / "bundle"
    shutil.copytree(exported.out, out)
    old = contents(out)

    with pytest.raises(ParityError, match=r"logits.*The attempt is kept in .*bundle\.failed"):
        export(source, out, passes=[Damage()], steps=STEPS, force=True)

    assert entries(tmp_path) == ["bundle", "bundle.failed"]
    assert contents(out) == old
    failed = Manifest.load(tmp_path / "bundle.failed" / "manifest.json")
    assert failed.main.targets["ort"].parity == "failed"
    assert failed.main.parity


def test_a_wrong_pass_is_caught_before_anything_is_written(source: Source, tmp_path: Path) -> None:
    """--check-passes names it."""
    with pytest.raises(CheckError, match="damage"):
        export(source, tmp_path / "bundle", passes=[Damage()], check_passes=True, verify=False)
    assert entries(tmp_path) == []


def test_options_reach_the_graph(source: Source, tmp_path: Path) -> None:
    """Batch 1 takes the fused attention; growing caches and no portable graph where asked."""
    shapes = ServedShapes.parse(shapes=["input_ids:1x1:1x16:1x512"])
    fixed = export(source, tmp_path / "fixed", shapes=shapes, steps=STEPS, portable=False)
    growing = export(source, tmp_path / "growing", kv="grow", steps=STEPS)

    assert "GroupQueryAttention" in ops(fixed.out / "ort" / "model.onnx")
    assert fixed.manifest.main.limits.batch == 1
    assert fixed.manifest.recipe["shapes"]["input_ids"]["maximum"] == [1, 512]
    assert set(fixed.manifest.files) == {"recipe.toml", "ort/model.onnx", "ort/model.onnx.data"}
    assert {state.layout for state in growing.manifest.main.states} == {"grow"}
    assert "TensorScatter" not in ops(growing.out / "ort" / "model.onnx")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": ["ort", "tpu"]}, OptionError, "no target 'tpu'; there are: ort, trt"),
        ({"require_target": ["trt"]}, OptionError, "Add it: --target ort,trt"),
        ({"dtype": "bf16"}, OptionError, "dtype bf16 is not supported yet; fp32 and fp16 are"),
        ({"dtype": "fp16"}, OptionError, "fp16 is for TensorRT.*--target ort,trt"),
        ({"ort_accuracy": "finer"}, OptionError, "'finer'; .* auto, fast, fine, exact"),
        ({"targets": "ort"}, OptionError, "targets is 'ort'; give names in a list"),
        ({"sm": ["90"]}, OptionError, r"sm is \['90'\]; give whole numbers in a list, \[90\] for"),
        ({"sm": 90}, OptionError, "sm is 90; give"),
        ({"sm": (8, 7)}, OptionError, r"sm is \(8, 7\); give"),
        ({"steps": "9"}, OptionError, "steps is '9'; give a whole number"),
        ({"steps": 0}, OptionError, "steps is 0; compare at least one"),
        ({"kv": "ring"}, OptionError, "'ring'; it should be static or grow"),
        ({"require_parity": True, "verify": False}, OptionError, "cannot be required"),
        ({"passes": ["fold-constnats"]}, PassError, "no pass 'fold-constnats'"),
        ({"passes": ["mine.py:run"]}, PassError, "--allow-code"),
        ({"shapes": ServedShapes.parse(shapes=["ids:1:1:1"])}, OptionError, "name 'ids'"),
    ],
)
def test_an_option_that_cannot_be_met_is_told_and_nothing_written(
    source: Source,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        export(source, tmp_path / "bundle", **options)
    assert entries(tmp_path) == []


def test_what_tensorrt_alone_refuses_is_a_bundle_for_onnx_runtime(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notes say what TensorRT lacks; where it is required, nothing is written."""

    def refuse(*_: Any) -> None:
        raise BuildError("TensorRT refuses the graph. layers.0: Add 'add_1': no.")

    monkeypatch.setattr("intaglio.exporter.export.with_engines", refuse)
    asked: Any = {"targets": ["ort", "trt"], "verify": False}
    found = export(source, tmp_path / "bundle", **asked)

    assert set(found.manifest.main.targets) == {"ort"}
    assert not any(name.startswith("trt/") for name in found.manifest.files)
    assert any("nothing for TensorRT" in note and "layers.0: Add" in note for note in found.notes)
    Session.load(found.out)

    def lower(*_: Any) -> None:
        raise PassError("layers.1: Loop 'loop' is not for TensorRT.")

    monkeypatch.setattr("intaglio.exporter.compile._lower_for_trt", lower)
    with pytest.raises(PassError, match=r"layers\.1: Loop"):
        export(source, tmp_path / "required", require_target=["trt"], dry_run=True, **asked)
    assert entries(tmp_path) == ["bundle"]


def test_a_dry_run_says_what_an_export_would_do_and_writes_nothing(
    exported: ExportReport, source: Source, tmp_path: Path
) -> None:
    """The same passes, states and limits, and about the same size."""
    plan = export(source, tmp_path / "bundle", steps=STEPS, check_passes=True, dry_run=True)

    assert entries(tmp_path) == []
    assert plan.manifest.main.passes == exported.manifest.main.passes
    assert plan.manifest.main.states == exported.manifest.main.states
    assert plan.manifest.recipe == exported.manifest.recipe
    assert plan.manifest.files == {}
    assert 0.5 * exported.bytes < plan.bytes <= exported.bytes
    assert plan.to_json()["dry_run"]
    with pytest.raises(BundleError, match="--force"):
        export(source, exported.out, dry_run=True)


def test_an_existing_bundle_is_refused_before_the_source_is_read(
    exported: ExportReport,
) -> None:
    """Nobody waits for a trace to be told this."""
    with pytest.raises(BundleError, match="--force"):
        export("absent.pt", exported.out)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (["rtn:bits=5"], "rtn: bits = 5 should be one of"),
        (["rtn:group=0"], "rtn: group = 0 should be a positive number"),
        (['rtn:overrides={"*"={bits=5}}'], "rtn: bits = 5"),
        (['rtn:overrides={"*"={bitz=4}}'], "an override has 'bitz'"),
        (["rtn:bits='x'"], "bits = 'x' should be of type int."),
        (["low-rank:by='svdd'"], "should be of type Literal"),
        (["gptq"], "gptq needs data to learn from"),
        (["decoupleq"], "decoupleq needs data to learn from"),
        (["low-rank"], "low-rank by data needs some to learn from"),
        (["modegpt"], "modegpt needs data to learn from"),
        (["interaction-basis"], "interaction-basis needs data to learn from"),
        (["low-rank:by='svd',ratio=1.5"], "low-rank: ratio = 1.5"),
        (["rtn", "modegpt:by='magnitude',ratio=-1"], "modegpt: ratio"),
    ],
)
def test_passes_that_cannot_run_are_refused_before_a_checkpoint_is_read(
    passes: list[str], message: str, tmp_path: Path
) -> None:
    """There is none here: whoever looked for it would say that."""
    with pytest.raises(PassError, match=message):
        export(tmp_path / "absent.pt", tmp_path / "out", passes=passes)
    assert not (tmp_path / "out").exists()


def test_no_steps_are_refused_before_a_checkpoint_is_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="steps is 0"):
        export(tmp_path / "absent.pt", tmp_path / "out", steps=0)
