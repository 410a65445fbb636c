"""Calls that a bundle of whole inputs is compared on: several sizes of every free axis, or data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from intaglio.errors import BundleError
from intaglio.exporter.sources.axes import Span
from intaglio.exporter.sources.calibration_data import Arrays, read_calibration
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.running import in_words, runner, runs_at, several
from intaglio.passes.calibration import Calibration
from intaglio.runtime.compare import Comparison
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.session import Session
from intaglio.state import BATCH

from .parity import KL as DIVERGENCE
from .parity import OUTPUT, ParityReport, Row
from .quantized import KL, LOGITS, MeanKl, accuracy_of, quantization_error
from .reference import reference
from .rounding import EXACT

CALLS = 5
FEWEST = (
    3  # calls, of a model that takes fewer sizes: which boxes a detector keeps is in the values
)
SEED = 0


@dataclass(frozen=True, kw_only=True)
class WholeCall:
    """Inputs of one call, and its sizes in words; `data` is the SHA-256 of what they are from."""

    inputs: dict[str, Tensor]
    words: str
    data: str | None = None


def calls(
    source: Source,
    entry: GraphEntry,
    data: str | Path | Arrays | Calibration | None,
    built: Mapping[str, tuple[int, int]],
) -> list[WholeCall]:
    """What to compare on: three to five calls, of sizes as different as the model takes.

    Args:
        source: what it is compared with.
        entry: of the graph.
        data: what `read_calibration` takes, or returned; random inputs without.
        built: least and largest sizes of free axes that the engine was built for.

    Raises:
        InputError: data that cannot be read, or does not fit the inputs.
    """
    if data is not None:
        read = data if isinstance(data, Calibration) else read_calibration(data, source)
        indices = list(read.held_out or read.fitted)[:CALLS]
        return [
            WholeCall(inputs=_tensors(read.batches[index].inputs), words=f"batch {index}",
                 data=read.sha256)
            for index in indices
        ]  # fmt: skip
    return list(_drawn(source, entry, built))


def _tensors(inputs: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in inputs.items()}


def _drawn(
    source: Source, entry: GraphEntry, built: Mapping[str, tuple[int, int]]
) -> Iterator[WholeCall]:
    run = runner(source)
    limits = entry.limits
    spans = {
        symbol: Span(*limits.sizes[symbol][:3]) if symbol in limits.sizes else Span()
        for symbol in source.symbols
    }
    if limits.batch is not None and BATCH in spans:
        spans[BATCH] = Span(limits.batch, limits.batch)
    for symbol in spans.keys() & built.keys():
        spans[symbol] = spans[symbol].within(*built[symbol])
    tried: list[Mapping[str, int]] = []
    for wanted in ({**source.sizes}, *several(source, spans)):
        sizes = {symbol: spans[symbol].nearest(wanted[symbol]) for symbol in spans}
        if sizes in tried or not runs_at(source, run, sizes):
            continue
        tried.append(sizes)
        yield WholeCall(inputs=source.draw(sizes, SEED + len(tried)), words=in_words(sizes))
        if len(tried) == CALLS:
            return
    for more in range(len(tried), FEWEST if tried else 0):
        yield WholeCall(
            inputs=source.draw(tried[0], SEED + CALLS + more),
            words=f"{in_words(tried[0])}, drawn anew",
        )


def verify_calls(
    session: Session,
    source: Source,
    held: Source | None,
    data: str | Path | Arrays | Calibration | None,
    limits: Mapping[str, float],
) -> ParityReport:
    """A graph of whole inputs against its source, call by call.

    Args:
        session: of the graph.
        source: what it was made from.
        held: the source with its weights dequantized, where the graph has weights of few bits.
        data: as for `calls`.
        limits: of each output.

    Raises:
        BundleError: if it has other outputs than the source.
        InputError: data that cannot be read, or does not fit the inputs.
    """
    given = calls(source, session.entry, data, session.spans)
    rows: list[Row] = []
    precision, cause, moved = "", "", None
    for call in given:
        wanted = reference(held or source, call.inputs, states=False)
        if held is not None and moved is None:
            plain = reference(source, call.inputs, states=False).outputs
            moved = quantization_error(wanted.outputs, plain)
        precision, cause = wanted.precision, wanted.cause
        own = [spec.name for spec in session.entry.outputs]
        if set(own) != set(wanted.outputs):
            raise BundleError(
                f"The bundle has the outputs {', '.join(own)}, the source "
                f"{', '.join(wanted.outputs)}. Verify it against the checkpoint that its manifest "
                "names."
            )
        found = Comparison(EXACT, limits)
        got = session.step({name: value.numpy() for name, value in call.inputs.items()})
        found.add(1, got, wanted.outputs)
        deviations = [(OUTPUT, each) for each in found.deviations()]
        if KL in limits:
            kl = MeanKl(limits[KL])
            kl.add(1, got[LOGITS], wanted.outputs[LOGITS])
            deviations.append((DIVERGENCE, kl.deviation()))
        rows += [
            Row(kind=kind, module="", split=call.words, against="source", found=each)
            for kind, each in deviations
        ]
    return ParityReport(
        against=(held or source).name,
        precision=precision,
        cause=cause,
        steps=len(given),
        batch=1,
        seed=None if given[0].data else SEED,
        data=given[0].data,
        splits=tuple(call.words for call in given),
        rows=rows,
        quantization=moved,
        accuracy=accuracy_of(session.entry),
        whole=True,
    )
