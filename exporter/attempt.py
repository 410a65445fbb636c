"""Writing a bundle and comparing it with its source; and what to do where rounding alone fails it.

The first attempt takes activations in 8 bits, where weights of few bits are concerned.  How much
that shows in a model, above all in a recurrent one, cannot be told from its layers: the comparison
tells.  Where it fails, products are computed in two parts of 8 bits (`passes/lower/_two_parts.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from intaglio.errors import ParityError
from intaglio.exporter.options.clock import Clock
from intaglio.exporter.options.recipe import FILE_NAME as RECIPE
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.quantized import PORTABLE
from intaglio.exporter.proving.verify import names_of, verify
from intaglio.exporter.sources.calibration_data import Arrays
from intaglio.exporter.sources.source import Source
from intaglio.exporter.writing.bundle_writer import BundleWriter
from intaglio.exporter.writing.compiled import CompiledGraph
from intaglio.exporter.writing.describe import LOWERED, describe, with_verdict
from intaglio.exporter.writing.genai import add_genai
from intaglio.exporter.writing.graph_files import own_place, place, save_graphs
from intaglio.passes import pipeline
from intaglio.passes.calibration import Calibration
from intaglio.passes.low_bit import low_bit_nodes, weight_of
from intaglio.passes.lower.ort_low_bit import OrtLowBit, cost
from intaglio.runtime.graph_entry import FAILED, MAIN, PASSED
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.serving.repository import add_model
from intaglio.runtime.trt.engine_build import GRAPH

from .compile import lower

TOLD = 4  # names in a line for people


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A bundle that is written, not yet in its place; `parity` is None if it was not asked for."""

    compiled: CompiledGraph
    manifest: Manifest
    parity: ParityReport | None
    notes: tuple[str, ...]


def attempt(
    writer: BundleWriter,
    source: Source,
    compiled: CompiledGraph,
    how: Recipe,
    clock: Clock,
    data: str | Path | Arrays | Calibration | None,
) -> Attempt:
    """Write a bundle of `compiled` and verify it; with `auto`, again where one part is too coarse.

    Raises:
        ParityError: if the bundle does not compute what the source does; it is kept as failed.
        IntaglioError: what writing and verifying raise; no second attempt is made then.
    """
    made = _once(writer, source, compiled, how, clock, data)
    if how.ort_accuracy == "auto" and made.parity is not None and made.parity.too_coarse:
        finer = _finer(compiled, how, clock, made.parity)
        writer.clear()
        made = _once(writer, source, finer, how, clock, data)
    if made.parity is not None and not made.parity.passed:
        raise refused(writer, made.manifest, made.parity.summary())
    return made


def refused(writer: BundleWriter, manifest: Manifest, why: str) -> ParityError:
    """The error of a bundle that is not put in its place, which keeps it as failed."""
    return ParityError(f"{why} The attempt is kept in {writer.fail(manifest)}.")


def _once(
    writer: BundleWriter,
    source: Source,
    compiled: CompiledGraph,
    how: Recipe,
    clock: Clock,
    data: str | Path | Arrays | Calibration | None,
) -> Attempt:
    with clock.phase("write"):
        manifest = _write(writer, source, compiled, how)
        if how.layout == "genai":
            manifest = add_genai(writer.path, manifest)
        elif how.layout == "triton":
            add_model(writer.path, manifest.main, writer.destination.resolve().name)
    if not how.verify:
        return Attempt(compiled=compiled, manifest=manifest, parity=None, notes=compiled.notes)
    found: dict[str, ParityReport] = {}
    for name, each in {MAIN: compiled, **compiled.others}.items():
        with clock.phase("verify"):
            found[name] = verify(
                writer.path,
                source,
                graph=name,
                data=each.context.calibration if data is None else data,
                steps=min(how.steps, manifest.graphs[name].limits.max_context or how.steps),
                tolerance=limits_of(how.tolerance, manifest, name),
                keep=False,  # the manifest holds it
                progress=clock.report,
            )
        verdict = PASSED if found[name].passed else FAILED
        manifest = with_verdict(manifest, "ort", verdict, found[name].to_json(), name=name)
    # That of the main graph, unless another one alone fails.
    parity = next((each for each in found.values() if not each.passed), found[MAIN])
    return Attempt(compiled=compiled, manifest=manifest, parity=parity, notes=compiled.notes)


def limits_of(tolerance: Mapping[str, float], manifest: Manifest, name: str) -> Mapping[str, float]:
    """The limits of one graph; of the only one all, so that a wrong name is refused."""
    if len(manifest.graphs) == 1:
        return tolerance
    known = names_of(manifest.graphs[name])
    return {each: limit for each, limit in tolerance.items() if each in known}


def _write(writer: BundleWriter, source: Source, compiled: CompiledGraph, how: Recipe) -> Manifest:
    with writer.told():
        (writer.path / RECIPE).write_text(how.to_toml(), encoding="utf-8")
        opened = save_graphs(writer.path, _by_file(compiled, how))
        if source.adapters is not None:
            source.adapters.save(writer.path)
    text = {} if source.text is None else source.text.save(writer.path)
    return writer.write_manifest(describe(source, compiled, how, opened, text))


def _by_file(compiled: CompiledGraph, how: Recipe) -> dict[str, ir.Model]:
    """The forms of its graphs that a bundle holds, by their place in it, the main data first."""
    forms: dict[str, ir.Model | None] = {}
    for name, each in compiled.graphs.items():
        forms[place(PORTABLE, name)] = each.portable if how.portable else None
        forms[place(LOWERED, name)] = each.ort
    for name, each in compiled.graphs.items():
        forms[own_place(GRAPH, name)] = each.trt
    return {path: model for path, model in forms.items() if model is not None}


def _finer(
    compiled: CompiledGraph, how: Recipe, clock: Clock, parity: ParityReport
) -> CompiledGraph:
    """`compiled` with every product in two parts; the record of the pass says why."""
    others = {n: _finer(each, how, clock, parity) for n, each in compiled.others.items()}
    prepare = None if compiled.prepare is None else _finer(compiled.prepare, how, clock, parity)
    compiled = replace(compiled, others=others, prepare=prepare)
    if not any(low_bit_nodes(compiled.portable)):
        return compiled
    ort, records = lower(compiled.portable, compiled.context, how, clock, "fine")
    why = _why(compiled, parity)
    told = [_with_note(r, why) if r.name == OrtLowBit.name else r for r in records]
    kept = compiled.records[: -len(records)]
    return replace(compiled, ort=ort, records=[*kept, *told])


def _with_note(record: pipeline.PassRecord, line: str) -> pipeline.PassRecord:
    found = record.result
    notes, advice = [*found.notes, line], [line, *found.advice]
    return replace(record, result=replace(found, notes=notes, advice=advice))


def _why(compiled: CompiledGraph, parity: ParityReport) -> str:
    bits = [weight_of(node).bits for node in low_bit_nodes(compiled.portable)]
    failed: dict[str, tuple[float, float]] = {}
    for row in parity.failures:
        error, limit = row.found.error, row.found.limit
        failed[row.found.name] = max(failed.get(row.found.name, (0.0, limit)), (error, limit))
    worst = sorted(failed, key=lambda name: -failed[name][0] / max(failed[name][1], 1e-30))
    measured = [f"{name} {failed[name][0]:.1e} (limit {failed[name][1]:.0e})" for name in worst]
    accepted = [f"--tolerance {name}={_above(failed[name][0])}" for name in worst]
    return (
        "activations are taken in two parts of 8 bits: rounded to 8 bits alone, they moved "
        f"{_some(measured, ', ')}. Products with weights of few bits: two parts take {cost(bits)}. "
        f"To keep one part: --ort-accuracy fast {_some(accepted, ' ')}."
    )


def _some(words: list[str], between: str) -> str:
    left = len(words) - TOLD
    return between.join(words[:TOLD]) + (f" and {left} more" if left > 0 else "")


def _above(error: float) -> str:
    """The least number of one digit that is not less."""
    if error <= 0:
        return "0"
    unit = 10.0 ** math.floor(math.log10(error))
    return f"{math.ceil(error / unit) * unit:.0e}"
