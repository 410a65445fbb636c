"""llama.cpp for low_bit_speed.py, in an environment that has llama-cpp-python and gguf.

``llama_worker.py make CONFIG FILE FORMAT`` writes a decoder of the qwen3 architecture with random
weights and quantizes it; ``llama_worker.py serve FILE THREADS`` answers as `low_bit_worker` does;
``llama_worker.py types FILE`` prints how many weights are of each type, and which the head's is.
"""

import json
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from low_bit_worker import CAPACITY, Prefill, Step, serve

FORMATS = {"Q4_0": 2, "Q2_K": 10, "TQ2_0": 37}  # llama.h, llama_ftype
EMBEDDING = "token_embd.weight"


def make(config: dict[str, Any], file: Path, form: str) -> None:
    """Write `file` in `form`, by way of a file in half precision beside it."""
    half = file.with_name("half.gguf")
    if not half.exists():
        _write(config, half)
    llama: Any = import_module("llama_cpp")
    options = llama.llama_model_quantize_default_params()
    options.ftype, options.nthread = FORMATS[form], 2
    if llama.llama_model_quantize(str(half).encode(), str(file).encode(), options):
        raise SystemExit(f"llama.cpp could not write {form}")


def _write(config: dict[str, Any], file: Path) -> None:
    gguf: Any = import_module("gguf")
    random, writer = np.random.default_rng(0), gguf.GGUFWriter(str(file), "qwen3")
    hidden, heads, kv = (config[k] for k in ("hidden", "heads", "kv_heads"))
    head, ff, layers, vocabulary = (config[k] for k in ("head_dim", "ff", "layers", "vocabulary"))
    writer.add_block_count(layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(1)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(vocabulary)

    def weight(name: str, rows: int, columns: int) -> None:
        drawn = random.standard_normal((rows, columns), np.float32) * 0.02
        writer.add_tensor(name, drawn.astype(np.float16))

    def norm(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    weight(EMBEDDING, vocabulary, hidden)
    norm("output_norm.weight", hidden)
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight", hidden)
        norm(f"blk.{i}.ffn_norm.weight", hidden)
        norm(f"blk.{i}.attn_q_norm.weight", head)
        norm(f"blk.{i}.attn_k_norm.weight", head)
        weight(f"blk.{i}.attn_q.weight", heads * head, hidden)
        weight(f"blk.{i}.attn_k.weight", kv * head, hidden)
        weight(f"blk.{i}.attn_v.weight", kv * head, hidden)
        weight(f"blk.{i}.attn_output.weight", hidden, heads * head)
        weight(f"blk.{i}.ffn_gate.weight", ff, hidden)
        weight(f"blk.{i}.ffn_up.weight", ff, hidden)
        weight(f"blk.{i}.ffn_down.weight", hidden, ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: str, threads: int) -> tuple[Prefill, Step]:
    """A file of llama.cpp, through its C interface."""
    llama: Any = import_module("llama_cpp")
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    options = llama.llama_context_default_params()
    options.n_ctx = options.n_batch = CAPACITY
    options.n_threads = options.n_threads_batch = threads
    context = llama.llama_init_from_model(model, options)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    memory = llama.llama_get_memory(context)

    def run(tokens: list[int]) -> int:
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama.cpp could not decode")
        logits = llama.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())

    def prefill(tokens: list[int]) -> int:
        llama.llama_memory_clear(memory, True)
        return run(tokens)

    return prefill, lambda token: run([token])


def types(file: str) -> dict[str, Any]:
    """Parts of the weights in each type, and the type of the head, which is the embedding."""
    gguf: Any = import_module("gguf")
    sizes: Counter[str] = Counter()
    head = ""
    for tensor in gguf.GGUFReader(file).tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        head = tensor.tensor_type.name if tensor.name == EMBEDDING else head
    return {"weights": dict(sizes), "head": head}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "make":
        make(json.loads(rest[0]), Path(rest[1]), rest[2])
    elif what == "types":
        print(json.dumps(types(rest[0])))
    else:
        serve(lambda: load(rest[0], int(rest[1])), int(rest[1]))
