"""Graph rewrites, one file each: exact, calibrated and lowering ones."""

if __name__ != "intaglio.passes":
    raise ImportError(f"imported as {__name__!r}: use intaglio.passes")

from .base import Pass
from .calibrated.decoupleq import Decoupleq
from .calibrated.gptq import Gptq
from .calibrated.interaction_basis import InteractionBasis
from .calibrated.low_rank import LowRank
from .calibrated.modegpt import Modegpt
from .calibrated.rtn import Rtn
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
from .exact.linear_interpreter import LinearInterpreter
from .exact.merge_duplicates import MergeDuplicates
from .exact.merge_factors import MergeFactors
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
from .lower.genai_inputs import GenaiInputs
from .lower.ort_attention_mask import OrtAttentionMask
from .lower.ort_conditional import OrtConditional
from .lower.ort_decay_gate import OrtDecayGate
from .lower.ort_diagonal_ssm import OrtDiagonalSsm
from .lower.ort_domains import OrtDomains
from .lower.ort_group_query_attention import OrtGroupQueryAttention
from .lower.ort_low_bit import OrtLowBit
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

PASSES: tuple[type[Pass], ...] = (
    Decoupleq,
    Gptq,
    InteractionBasis,
    LowRank,
    Modegpt,
    Rtn,
    CarryStates,
    ExpandEinsum,
    ExpandTile,
    FoldConstants,
    FoldElementGathers,
    FoldIdentityGathers,
    FoldRepeatedHeads,
    FoldSizes,
    FuseAttention,
    FuseRmsNorm,
    FuseRotary,
    FuseTokenShift,
    Hoist,
    JoinPadding,
    LinearInterpreter,
    MergeDuplicates,
    MergeFactors,
    PeelFirstToken,
    RecogniseDiagonalSsm,
    RecogniseLinearAttention,
    RecogniseRecurrences,
    RelativeShifts,
    RemoveDead,
    RemoveNoOps,
    ReverseSums,
    SeparateRows,
    SplitMemoryKeys,
    SplitSequences,
    StabilizeLogSigmoid,
    Statefulize,
    WidenKinds,
    GenaiInputs,
    OrtAttentionMask,
    OrtDiagonalSsm,
    OrtDomains,
    OrtGroupQueryAttention,
    OrtLowBit,
    OrtConditional,
    OrtDecayGate,
    OrtOneToken,
    OrtPackedHeads,
    OrtPackedProducts,
    OrtReshapes,
    OrtUnitNorm,
    OrtRelabel,
    TrtAttention,
    TrtBytes,
    TrtCacheWrites,
    TrtGivenInputs,
    TrtHalf,
    TrtLoops,
    TrtLowBit,
    TrtNorms,
    TrtPoolIndices,
    TrtScatterAdd,
    TrtScatterReduce,
)
