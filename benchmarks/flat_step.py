"""A recurrent step costs the same at any context; a transformer's grows, no faster than a peer's.

    python benchmarks/flat_step.py [--quick] [--json]

The peer is onnxruntime-genai (extra `bench`), which gets the same Llama architecture with the same
random weights through its own model builder.  Both run one thread; both are given the same tokens,
and their next tokens are compared before anything is timed.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import Row, paired, ratio, run

import intaglio
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.models import find, save
from intaglio.models.llama import Config
from intaglio.runtime import Session

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "models" / "checkpoints"
THREADS = 1
PEER = Config(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=10,
    num_heads=8,
    num_kv_heads=4,
)  # 35M parameters, 140 MB: more than four times a last-level cache of 32 MB
ONE_ROW = ServedShapes.parse(shapes=["input_ids:1x1:1x64:1x32768"])


def measure(quick: bool) -> list[Row]:
    """All rows; the peer's only where it is installed."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        return [*_flat(Path(folder), quick), *_curve(Path(folder), quick), *_peer(folder, quick)]


def _export(checkpoint: Path, out: Path) -> Path:
    intaglio.export(checkpoint, out, shapes=ONE_ROW, verify=False)
    return out


def _at(bundle: Path, context: int, vocabulary: int) -> Session:
    """A session that has consumed `context` random tokens."""
    session = Session.load(bundle, threads=THREADS)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (1, context))
    for first in range(0, context, 512):
        session.step({"input_ids": tokens[:, first : first + 512]})
    return session


def _step(session: Session) -> Callable[[], object]:
    token = {"input_ids": np.zeros((1, 1), np.int64)}
    return lambda: session.step(token)


def _flat(folder: Path, quick: bool) -> list[Row]:
    """GLA at a long context against a short one."""
    bundle = _export(CHECKPOINTS / "gla.pt", folder / "gla")
    long, pairs = (4096, 100) if quick else (16_384, 500)
    near, far = _at(bundle, 128, 256), _at(bundle, long, 256)
    slow, fast = paired(_step(far), _step(near), pairs, warmup=20)
    figures = {"step time": ratio(slow, fast), "state": far.state.memory / near.state.memory}
    return [
        Row(
            name=f"GLA {what}, context {long} : 128",
            value=value,
            unit="ratio",
            target="<= 1.1",
            holds=value <= 1.1,
        )
        for what, value in figures.items()
    ]


def _curve(folder: Path, quick: bool) -> list[Row]:
    """The transformer's step against its own at context 128."""
    bundle = _export(CHECKPOINTS / "llama.pt", folder / "llama")
    near = _at(bundle, 128, 256)
    rows = []
    for context in (1024, 4096) if quick else (1024, 4096, 16_384):
        far = _at(bundle, context, 256)
        slow, fast = paired(_step(far), _step(near), 50 if quick else 200, warmup=10)
        memory = f"state {far.state.memory / near.state.memory:.0f} times as large"
        name = f"Llama step time, context {context} : 128"
        rows.append(Row(name=name, value=ratio(slow, fast), unit="ratio", note=memory))
    return rows


def _peer(folder: str, quick: bool) -> list[Row]:
    """Our batch-1 step at a context of 4,096 tokens against onnxruntime-genai's."""
    try:
        import onnxruntime_genai as genai
    except ImportError:
        print("onnxruntime-genai is not installed (extra 'bench')", file=sys.stderr)
        return []
    context, pairs = 4096, 20 if quick else 100
    torch.manual_seed(0)
    module = find("llama").build(PEER)
    checkpoint = Path(folder) / "peer.pt"
    save(checkpoint, "llama", PEER, module)
    bundle = _export(checkpoint, Path(folder) / "ours")
    theirs = _build_peer(module.state_dict(), Path(folder))
    tokens = np.random.default_rng(0).integers(1, PEER.vocab_size, context)

    session = Session.load(bundle, threads=THREADS)
    for first in range(0, context, 512):
        logits = session.step({"input_ids": tokens[None, first : first + 512]})["logits"]
    model = genai.Model(str(theirs))
    options = genai.GeneratorParams(model)
    length = context + 2 * pairs + 64  # no token ends the sequence before that
    options.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(tokens.astype(np.int32))
    generator.generate_next_token()
    ours = int(logits[0, -1].argmax())
    if generator.get_next_tokens()[0] != ours:
        raise SystemExit("the peer computes another next token: the models are not the same")

    token = np.array([[ours]])

    def our_step() -> None:
        token[0, 0] = session.step({"input_ids": token})["logits"][0, -1].argmax()

    mine, peer = paired(our_step, generator.generate_next_token, pairs)
    value = ratio(mine, peer)
    return [
        Row(
            name=f"Llama step, 35M parameters, batch 1, context {context}",
            value=value,
            unit="ratio",
            target="<= 1.1",
            holds=value <= 1.1,
            against="onnxruntime-genai, fp32",
            note=f"{THREADS} thread, greedy token included",
        )
    ]


def _build_peer(state: dict[str, torch.Tensor], folder: Path) -> Path:
    """The same weights as a Hugging Face folder, through the peer's model builder."""
    import genai_peer
    from safetensors.torch import save_file

    source, out = folder / "hf", folder / "genai"
    source.mkdir()
    names = {
        "layers.": "model.layers.",
        "embed_tokens.": "model.embed_tokens.",
        "norm.": "model.norm.",
    }
    tensors = {}
    for name, tensor in state.items():
        prefix = next((p for p in names if name.startswith(p)), "")
        renamed = name.replace(prefix, names.get(prefix, ""), 1).replace(".mixer.", ".self_attn.")
        tensors[renamed] = tensor.contiguous()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text(json.dumps(_hf_config()))
    genai_peer.add_tokenizer(source, PEER.vocab_size)
    return genai_peer.build(source, out, THREADS)


def _hf_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": PEER.hidden_size,
        "intermediate_size": PEER.intermediate_size,
        "num_hidden_layers": PEER.num_layers,
        "num_attention_heads": PEER.num_heads,
        "num_key_value_heads": PEER.num_kv_heads,
        "head_dim": PEER.head_size,
        "vocab_size": PEER.vocab_size,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": PEER.norm_eps,
        "rope_theta": PEER.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


if __name__ == "__main__":
    run(__doc__, measure)
