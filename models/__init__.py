"""Systems of the literature, as ordinary training-form modules with tiny trained checkpoints."""

if __name__ != "intaglio.models":
    raise ImportError(f"imported as {__name__!r}: use intaglio.models")

from difflib import get_close_matches

from intaglio.errors import SourceError

from .al_rnn import AL_RNN
from .assembling import ASSEMBLING
from .bib import BIB
from .gated_deltanet import GATED_DELTANET
from .gla import GLA
from .graphgps import GRAPHGPS
from .hybrid_linear_attention import HYBRID_LINEAR_ATTENTION
from .implicit import IMPLICIT
from .layout import CheckpointLayout
from .lie_conv import LIE_CONV
from .liger import LIGER
from .llama import LLAMA
from .longmem import LONGMEM
from .mamba import MAMBA
from .mlp_memory import MLP_MEMORY
from .mmmamba import MMMAMBA
from .modegpt import MODEGPT
from .model import FORMAT, Model, save
from .mom import MOM
from .moment_probing import MOMENT_PROBING
from .mvar import M_VAR
from .nala import NALA
from .nalaformer import NALAFORMER
from .rwkv7 import RWKV7
from .s4 import S4
from .s4d import S4D
from .safe_eraser import SAFE_ERASER
from .seqboat import SEQBOAT

MODELS: tuple[Model, ...] = (
    AL_RNN,
    ASSEMBLING,
    BIB,
    GATED_DELTANET,
    GLA,
    GRAPHGPS,
    HYBRID_LINEAR_ATTENTION,
    IMPLICIT,
    LIE_CONV,
    LIGER,
    LLAMA,
    LONGMEM,
    MAMBA,
    MLP_MEMORY,
    MMMAMBA,
    MODEGPT,
    MOM,
    MOMENT_PROBING,
    M_VAR,
    NALA,
    NALAFORMER,
    RWKV7,
    S4,
    S4D,
    SAFE_ERASER,
    SEQBOAT,
)


def find(name: str) -> Model:
    """The model called `name`.

    Raises:
        SourceError: there is none; the message lists those there are.
    """
    for model in MODELS:
        if model.name == name:
            return model
    names = [model.name for model in MODELS]
    near = get_close_matches(name, names, 1)
    raise SourceError(
        f"There is no model {name!r}{f', perhaps {near[0]!r}' if near else ''}. The models are: "
        f"{', '.join(names)}; a module of your own is named package.module:factory."
    )


__all__ = ["FORMAT", "MODELS", "CheckpointLayout", "Model", "find", "save"]
