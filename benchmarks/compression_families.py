"""Passes that compress, over directories of Hugging Face and one's own module, on both targets.

    python benchmarks/compression_families.py [--quick] [--json]

Tiny random models, as `hf_configs.py` has them, one in bfloat16 with tied embeddings, are exported
by `intaglio export` with each pass and with quantization after it, for ONNX Runtime and for
TensorRT-RTX.  Told are the error of the bundle against the source with its weights compressed, of
its engine on an emulated GPU against the same, and how far compression moved the source.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import Row, run
from hf_configs import FAMILIES, VOCABULARY, Family, save
from torch import Tensor, nn
from torch.nn import functional as F
from trt_engines import EMULATED, emulated

import intaglio
from intaglio.errors import IntaglioError
from intaglio.exporter.proving.parity import ParityReport
from intaglio.quiet import quiet

NAMES = ("Llama", "Qwen3", "OPT", "GPT-2", "Qwen2", "Mistral", "Gemma")
HALF = "Llama in bfloat16, tied"
OWN = "a module of one's own"
WAYS = {
    "modegpt": ["modegpt:ratio=0.3"],
    "low rank": ["low-rank:ratio=0.3"],
    "interaction basis": ["interaction-basis:ratio=0.3"],
    "modegpt and 4 bits": ["modegpt:ratio=0.3", "gptq:bits=4,group=-1"],
    "low rank, modegpt and 4 bits": [
        "low-rank:ratio=0.2", "modegpt:ratio=0.2", "rtn:bits=4,group=-1"
    ],
}  # fmt: skip
ROWS, LENGTH, STEPS, GPU_STEPS = 16, 48, 32, 4
ANY = {"logits.quantization": 2.0}  # weights are random, so that nothing can leave without a trace


class Own(nn.Module):
    """Attention with biases, and a feed-forward whose first matrix is two factors."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(VOCABULARY, 32), nn.LayerNorm(32)
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.first, self.second, self.last = (
            nn.Linear(32, 24),
            nn.Linear(24, 64),
            nn.Linear(64, 32),
        )
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        normed = self.norm(x)
        query, key, value = (
            part(normed).unflatten(-1, (4, 8)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        y: Tensor = self.head(x + self.last(F.gelu(self.second(self.first(self.norm(x))))))
        return y


def measure(quick: bool) -> list[Row]:
    """Rows of each model and way; one model and one way if `quick`."""
    torch.set_num_threads(1)
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source, how in _sources(Path(folder), quick):
            for way, passes in list(WAYS.items())[: 1 if quick else None]:
                print(f"{name}, {way}", file=sys.stderr, flush=True)
                out = Path(folder) / "bundle"
                rows += _of(f"{name}, {way}", source, out, passes, {"input_ids": ids}, how)
    return rows


def _sources(folder: Path, quick: bool) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    every = {family.name: family for family in FAMILIES}
    for name in NAMES[: 1 if quick else None]:
        _write(every[name], folder / name, torch.float32)
        yield name, folder / name, {}
    if quick:
        return
    llama = every["Llama"]
    values = {**llama.values, "tie_word_embeddings": True, "dtype": "bfloat16"}
    _write(Family(HALF, llama.model, llama.config, values), folder / "half", torch.bfloat16)
    yield HALF, folder / "half", {}
    torch.manual_seed(0)
    yield OWN, Own().eval(), {"inputs": {"input_ids": torch.randint(3, VOCABULARY, (2, 9))}}


def _write(family: Family, folder: Path, dtype: torch.dtype) -> None:
    """A directory whose biases and norms are random, too."""
    module = save(family, folder)
    with torch.no_grad(), quiet():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        module.to(dtype).save_pretrained(folder)


def _of(
    name: str, source: Any, out: Path, passes: list[str], calib: Any, how: dict[str, Any]
) -> Iterator[Row]:
    try:
        with quiet():
            report = intaglio.export(
                source, out, passes=passes, calib=calib, targets=["ort", "trt"], sm=[EMULATED],
                steps=STEPS, tolerance=ANY, force=True, **how,
            )  # fmt: skip
    except IntaglioError as refusal:
        yield Row(name=name, value=1, unit="refused", holds=False, note=str(refusal))
        return
    assert report.parity is not None
    moved = (report.parity.quantization or {}).get("logits", 0.0)
    why = next((note for note in report.notes if "TensorRT" in note), "")
    yield _error(f"{name}: bundle", report.parity, f"moved by {moved:.2f} of the largest logit")
    built = "trt" in report.manifest.main.targets
    yield Row(name=f"{name}: engine", value=int(built), unit="of 1", holds=built, note=why)
    if built:
        with quiet():
            found = emulated(out, source, GPU_STEPS)
        yield _error(f"{name}: engine on an emulated GPU", found, "")


def _error(name: str, parity: ParityReport, note: str) -> Row:
    """The largest error of the implementation, against the limit of each output and state."""
    own = [row for row in parity.rows if not row.found.name.endswith(".quantization")]
    share = max(row.found.error / row.found.limit for row in own)
    return Row(name=name, value=share, unit="of the limit", target="<= 1", holds=share <= 1,
               against=parity.against, note=note)  # fmt: skip


if __name__ == "__main__":
    run(__doc__, measure)
