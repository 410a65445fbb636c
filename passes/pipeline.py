"""Which passes run, in which order, and the record each one leaves."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from inspect import formatannotation
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.spelling import perhaps

from . import PASSES
from .base import Context, Exact, Lower, Pass, PassResult, Progress
from .changes import changes, makers
from .check import check as check_pass
from .collection import uncollected
from .exact.carry_states import CarryStates
from .exact.expand_einsum import ExpandEinsum
from .exact.expand_tile import ExpandTile
from .exact.fold_constants import FoldConstants
from .exact.fold_element_gathers import FoldElementGathers
from .exact.fold_identity_gathers import FoldIdentityGathers
from .exact.fold_repeated_heads import FoldRepeatedHeads
from .exact.fold_sizes import FoldSizes
from .exact.fuse_attention import FuseAttention
from .exact.fuse_rms_norm import FuseRmsNorm
from .exact.fuse_rotary import FuseRotary
from .exact.fuse_token_shift import FuseTokenShift
from .exact.hoist import Hoist
from .exact.join_padding import JoinPadding
from .exact.merge_duplicates import MergeDuplicates
from .exact.peel_first_token import PeelFirstToken
from .exact.recognise_diagonal_ssm import RecogniseDiagonalSsm
from .exact.recognise_linear_attention import RecogniseLinearAttention
from .exact.recognise_recurrences import RecogniseRecurrences
from .exact.relative_shifts import RelativeShifts
from .exact.remove_dead import RemoveDead
from .exact.remove_no_ops import RemoveNoOps
from .exact.reverse_sums import ReverseSums
from .exact.separate_rows import SeparateRows
from .exact.split_memory_keys import SplitMemoryKeys
from .exact.split_sequences import SplitSequences
from .exact.stabilize_log_sigmoid import StabilizeLogSigmoid
from .exact.statefulize import Statefulize
from .exact.widen_kinds import WidenKinds
from .low_bit import low_bit_nodes
from .lower.ort_attention_mask import OrtAttentionMask
from .lower.ort_conditional import OrtConditional
from .lower.ort_decay_gate import OrtDecayGate
from .lower.ort_diagonal_ssm import OrtDiagonalSsm
from .lower.ort_domains import OrtDomains
from .lower.ort_group_query_attention import OrtGroupQueryAttention
from .lower.ort_low_bit import Accuracy, OrtLowBit
from .lower.ort_one_token import OrtOneToken
from .lower.ort_packed_heads import OrtPackedHeads
from .lower.ort_packed_products import OrtPackedProducts
from .lower.ort_relabel import OrtRelabel
from .lower.ort_reshapes import OrtReshapes
from .lower.ort_unit_norm import OrtUnitNorm
from .lower.trt_attention import TrtAttention
from .lower.trt_bytes import TrtBytes
from .lower.trt_cache_writes import TrtCacheWrites
from .lower.trt_given_inputs import TrtGivenInputs
from .lower.trt_half import TrtHalf
from .lower.trt_loops import TrtLoops
from .lower.trt_low_bit import TrtLowBit
from .lower.trt_norms import TrtNorms
from .lower.trt_pool_indices import TrtPoolIndices
from .lower.trt_scatter_add import TrtScatterAdd
from .lower.trt_scatter_reduce import TrtScatterReduce
from .user import pass_from_file

FP32, FP16 = "fp32", "fp16"


@dataclass(frozen=True, kw_only=True)
class PassRecord:
    """What one pass did to the graph, as it goes into the manifest."""

    name: str
    options: Mapping[str, Any]
    result: PassResult
    changes: Sequence[Mapping[str, Any]]
    nodes: tuple[int, int]
    initializers: tuple[int, int]
    bytes: tuple[int, int]
    error: float | None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest; `error` is None where the pass was not checked."""
        return {
            "name": self.name,
            "options": dict(self.options),
            "changed": self.result.changed,
            "notes": list(self.result.notes),
            "details": dict(self.result.details),
            "changes": list(self.changes),
            "nodes": list(self.nodes),
            "initializers": list(self.initializers),
            "bytes": list(self.bytes),
            "error": self.error,
        }


def standard(
    kv: Literal["static", "grow"] = "static", extra: Sequence[Pass] = (), *, last: bool = False
) -> list[Pass]:
    """From a traced training-form graph to the portable step graph; `extra` are the user's.

    With `last`, heads on the last token stay there.
    """
    return [
        *tidy(),
        # what the user asked for
        *extra,
        # carry the past in states
        FoldRepeatedHeads(),
        Statefulize(kv=kv, last=last),
        # compute once what holds for a whole sequence
        Hoist(),
        *after_hoist(),
    ]


def tidy() -> list[Pass]:
    """What tracing leaves, in plain forms: what the user's passes see."""
    return [
        RemoveDead(),
        SplitSequences(),
        FoldSizes(),
        FoldConstants(),
        FoldSizes(),  # ends of slices, whose axes are numbers by now
        RemoveNoOps(),
        SeparateRows(),
        MergeDuplicates(),
        FoldIdentityGathers(),
        StabilizeLogSigmoid(),
        FuseRmsNorm(),
        ExpandEinsum(),
        ExpandTile(),
        SplitMemoryKeys(),
        ReverseSums(),
        FoldElementGathers(),
        RelativeShifts(),
        FuseAttention(),
        RecogniseLinearAttention(),
        FuseTokenShift(),
        PeelFirstToken(),
        JoinPadding(),
        RecogniseRecurrences(),
        RecogniseDiagonalSsm(),
    ]


def after_hoist() -> list[Pass]:
    """Tidy the step graph, or what hoist split off it."""
    return [
        FoldConstants(),
        RemoveNoOps(),
        MergeDuplicates(),
        FuseRotary(),
        WidenKinds(),  # of what the passes themselves chose
        RemoveDead(),
    ]


def whole(extra: Sequence[Pass] = ()) -> list[Pass]:
    """From a traced graph to a portable one that takes whole sequences and carries nothing."""
    return [step for step in standard(extra=extra) if not step.for_tokens]


def own_states(extra: Sequence[Pass] = ()) -> list[Pass]:
    """From a traced graph that carries states of its own to the portable step graph."""
    steps = (
        CarryStates() if isinstance(step, Statefulize) else step for step in standard(extra=extra)
    )
    return [step for step in steps if not step.for_tokens]


def lowering(target: str, accuracy: Accuracy = "auto", dtype: str = FP32) -> list[Pass]:
    """From the portable step graph to the one that `target` runs fastest.

    `accuracy` is that of weights of few bits on ONNX Runtime, see `OrtLowBit`; `dtype` that of
    products on TensorRT, see `TrtHalf`.
    """
    if target == "trt":
        halved = [TrtHalf()] if dtype == FP16 else []
        return [
            TrtBytes(),
            TrtLowBit(),
            TrtAttention(),
            TrtCacheWrites(),
            TrtGivenInputs(),
            TrtNorms(),
            TrtPoolIndices(),
            TrtScatterAdd(),
            TrtScatterReduce(),
            *halved,
            TrtLoops(),
            RemoveDead(),
        ]
    if target != "ort":
        raise PassError(f"there is no target {target!r}; the targets are: ort, trt.")
    return [
        OrtLowBit(accuracy=accuracy),
        OrtDiagonalSsm(),
        OrtDomains(),
        OrtGroupQueryAttention(),
        OrtAttentionMask(),
        OrtPackedHeads(),
        OrtPackedProducts(),
        OrtUnitNorm(),
        OrtDecayGate(),
        OrtConditional(),
        OrtReshapes(),
        OrtOneToken(),
        RemoveDead(),
        OrtRelabel(),
    ]


def lower(
    model: ir.Model,
    target: str,
    context: Context,
    *,
    accuracy: Accuracy = "auto",
    dtype: str = FP32,
    check: bool = False,
    progress: Progress | None = None,
) -> list[PassRecord]:
    """Lower `model` for `target` in place; with `check`, hold each pass to its promise.

    Rounding turns the last bit of one result into more of the next, so a graph whose activations
    are rounded to 8 bits, or to fp16, is checked in its exact form.
    """
    rounds = (target == "trt" and dtype != FP32) or (
        target == "ort" and accuracy != "exact" and any(low_bit_nodes(model))
    )
    errors: dict[str, float | None] = {}
    if check and rounds:
        context_of_proof = replace(context, states=list(context.states))
        proven = run(
            model.clone(),
            lowering(target, "exact"),
            context_of_proof,
            check=True,
            progress=progress,
        )
        errors = {record.name: record.error for record in proven}
    steps = lowering(target, accuracy, dtype)
    records = run(model, steps, context, check=check and not rounds, progress=progress)
    return [replace(each, error=errors.get(each.name, each.error)) for each in records]


def run(
    model: ir.Model,
    passes: Sequence[Pass],
    context: Context,
    *,
    check: bool = False,
    progress: Progress | None = None,
) -> list[PassRecord]:
    """Run `passes` over `model` in place; with `check`, hold exact ones to their promise."""
    with uncollected():
        return _run(model, passes, context, check=check, progress=progress)


def _run(
    model: ir.Model,
    passes: Sequence[Pass],
    context: Context,
    *,
    check: bool,
    progress: Progress | None,
) -> list[PassRecord]:
    records = []
    now, made = _size(model), makers(model)
    for index, step in enumerate(passes):
        if progress is not None:
            progress(f"{step.name}, {index + 1} of {len(passes)}", index / len(passes))
        checked = check and isinstance(step, Exact | Lower)
        before = model.clone() if checked else None
        states = list(context.states)
        was, had = now, made
        try:
            result = step.run(model, context)
        except PassError as refused:
            refused.by = step
            raise
        now, made = _size(model), makers(model)
        error = None
        if before is not None and result.changed:
            error = check_pass(step.name, before, model, states, context)
        records.append(
            PassRecord(
                name=step.name,
                options=asdict(step),  # type: ignore[call-overload]
                result=result,
                changes=changes(had, made),
                nodes=(was[0], now[0]),
                initializers=(was[1], now[1]),
                bytes=(was[2], now[2]),
                error=error,
            )
        )
    return records


def _size(model: ir.Model) -> tuple[int, int, int]:
    tensors = [v.const_value for v in model.graph.initializers.values()]
    count = sum(1 for _ in model.graph.all_nodes())
    return count, len(tensors), sum(t.nbytes for t in tensors if t is not None)


def parse(spec: str, *, allow_code: bool = False) -> Pass:
    """The pass that `spec` names: NAME[:OPTIONS] with TOML options, or FILE.py:FUNCTION.

    Raises:
        PassError: an unknown pass or option, an option of the wrong type, or code not allowed.
    """
    name, _, text = spec.partition(":")
    if name.endswith(".py"):
        return pass_from_file(Path(name), text, allow_code=allow_code)
    known(name)
    try:
        options = tomllib.loads(f"options = {{{text}}}")["options"]
    except tomllib.TOMLDecodeError as error:
        raise PassError(
            f"the options of --pass {spec!r} are not TOML ({error}); write them as "
            f"{name}:key=value,other=[1, 2]."
        ) from error
    return build(name, options)


def known(name: str) -> type[Pass]:
    """The pass called `name`.

    Raises:
        PassError: if there is none.
    """
    found = {entry.name: entry for entry in PASSES}
    if name not in found:
        raise PassError(
            f"there is no pass {name!r}{perhaps(name, found)}; the passes are: "
            f"{', '.join(sorted(found))}."
        )
    return found[name]


def build(name: str, options: Mapping[str, Any]) -> Pass:
    """The pass called `name` with `options`.

    Raises:
        PassError: an unknown pass or option, or an option of the wrong type.
    """
    kind = known(name)
    kinds = get_type_hints(kind)
    allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for option, value in options.items():
        if option not in allowed:
            raise PassError(
                f"the pass {name!r} has no option {option!r}{perhaps(option, allowed)}; "
                f"it has: {', '.join(allowed) or 'none'}."
            )
        if not fits(value, kinds[option]):
            words = formatannotation(kinds[option])
            raise PassError(f"{name}: {option} = {value!r} should be of type {words}.")
    return kind(**options)


def fits(value: object, kind: Any) -> bool:
    """Whether `value`, as TOML gives it, is of the type `kind`."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is UnionType:
        return any(fits(value, one) for one in get_args(kind))
    if kind is Any:
        return True
    if get_origin(kind) in (Sequence, list, tuple):
        return isinstance(value, list) and all(fits(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) in (Mapping, dict):
        if not isinstance(value, Mapping):
            return False
        return all(fits(one, get_args(kind)[1]) for one in value.values())
    plain = get_origin(kind) or kind
    if plain is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if plain is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if is_dataclass(plain):
        return isinstance(value, Mapping | str)  # whoever makes one of it reads it
    return isinstance(value, plain) if isinstance(plain, type) else True
