"""The systems of the literature that are here, and what each of them is for a user.

The tables of README.md and of docs/systems/README.md have these rows, in this order, to which
`tests/test_docs.py` holds them.
"""

from dataclasses import dataclass

PAGES = "docs/systems/"


@dataclass(frozen=True)
class System:
    """A system: how its page calls it, that page, and by which names of ours it is used.

    Each of `used` is a kind, ``model``, ``pass`` or ``command``, and a name of that kind.
    """

    name: str
    page: str
    used: tuple[str, ...]


RECURRENCES = (
    System("HiPPO's bases, S4 and S4D", f"{PAGES}s4.md", ("model s4", "model s4d")),
    System("M-VAR", f"{PAGES}mvar.md", ("model mvar",)),
    System("AL-RNN", f"{PAGES}al-rnn.md", ("model al-rnn",)),
    System("Liger", f"{PAGES}liger.md", ("model liger",)),
    System("Mamba and Mamba-2", f"{PAGES}mamba.md", ("model mamba",)),
    System("MoM", f"{PAGES}mom.md", ("model mom",)),
    System(
        "Hybrid linear attention",
        f"{PAGES}hybrid-linear-attention.md",
        ("model hybrid-linear-attention", "model gla", "model gated-deltanet"),
    ),
    System("mmMamba", f"{PAGES}mmmamba.md", ("model mmmamba",)),
    System("NaLaFormer", f"{PAGES}nalaformer.md", ("model nalaformer", "model nala")),
    System("RWKV-7", f"{PAGES}rwkv7.md", ("model rwkv7",)),
    System("SeqBoat", f"{PAGES}seqboat.md", ("model seqboat",)),
)
WEIGHTS = (
    System("decoupleQ", "docs/low-bit.md", ("pass decoupleq",)),
    System("LLM-QFA", "docs/budgets.md", ("command subnet",)),
    System("MoDeGPT", "docs/compression.md", ("pass modegpt", "model modegpt")),
    System("Low rank, of PELA", "docs/compression.md", ("pass low-rank",)),
    System("S2FT, and LoRA", "docs/adapters.md", ("command adapter",)),
    System("Weight matching", "docs/merging.md", ("command merge",)),
    System("Interaction basis", "docs/compression.md", ("pass interaction-basis",)),
    System(
        "Deep Model Assembling",
        f"{PAGES}deep-model-assembling.md",
        ("model assembling", "command assemble"),
    ),
)
OTHERS = (
    System(
        "Linear Interpreters",
        f"{PAGES}linear-interpreter.md",
        ("pass linear-interpreter", "command interpret"),
    ),
    System("SafeEraser", f"{PAGES}safe-eraser.md", ("model safe-eraser", "command verify")),
    System("BIB", f"{PAGES}bib.md", ("model bib",)),
    System("Lie group CNNs", f"{PAGES}lie-conv.md", ("model lie-conv",)),
    System("Moment Probing", f"{PAGES}moment-probing.md", ("model moment-probing",)),
    System("Implicit differentiation", f"{PAGES}implicit.md", ("model implicit",)),
    System("GraphGPS", f"{PAGES}graphgps.md", ("model graphgps",)),
    System("MLP Memory", f"{PAGES}mlp-memory.md", ("model mlp-memory",)),
    System("LongMem", f"{PAGES}longmem.md", ("model longmem",)),
)
SYSTEMS = RECURRENCES + WEIGHTS + OTHERS
