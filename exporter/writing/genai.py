"""A bundle that is an onnxruntime-genai folder as well: its runtime opens the folder unchanged.

genai wants, at the top of a folder, ``genai_config.json``, the decoder's graph, and the tokenizer's
files; caches go by templates of names, which are those of step graphs.  The graph beside those of
the bundle shares their weights.  Sources: onnxruntime-genai, ``src/config.cpp``, and for speech,
whose encoder is a graph beside the decoder's, ``src/models/whisper.cpp`` (`genai_speech.py`).
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from intaglio.errors import OptionError
from intaglio.passes.base import Context
from intaglio.passes.graph import attribute, dims, load_graph
from intaglio.passes.lower.genai_inputs import COUNT, MASK, GenaiInputs
from intaglio.runtime.graph_entry import MAIN, NOT_RUN, GraphEntry, TargetEntry
from intaglio.runtime.manifest import Manifest
from intaglio.state import Layout, StateSpec

from . import genai_speech

GRAPH = "genai.onnx"
CONFIG = "genai_config.json"
CONTEXT = 32_768  # where neither position tables nor the source's config end it
PORTS = ("key", "value")
UNSAID = "Export without --layout genai; intaglio.runtime runs it."


def add_genai(folder: Path, manifest: Manifest) -> Manifest:
    """Add what onnxruntime-genai needs to the bundle in `folder`; return the manifest with it.

    Raises:
        OptionError: if the bundle has what genai cannot feed, which it names.
    """
    main = manifest.main
    _require_none(_faults(main))
    lowered = main.targets["ort"]
    model = load_graph(folder, lowered.path)
    config = _config(manifest, _query_heads(model))
    GenaiInputs(speech=bool(main.conditions)).run(model, Context())
    if main.conditions:
        _add_encoder(folder, manifest, model, config)
    _save(model, folder / GRAPH)
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    if manifest.text:
        for file in sorted((folder / manifest.text["tokenizer"]).parent.iterdir()):
            shutil.copyfile(file, folder / file.name)
    entry = TargetEntry(
        path=GRAPH,
        data=lowered.data,
        opset=lowered.opset,
        parity=f"{NOT_RUN} (the graph of ort with its lengths as genai gives them)",
    )
    return manifest.with_graph(MAIN, replace(main, targets={**main.targets, "genai": entry}))


def _add_encoder(
    folder: Path, manifest: Manifest, decoder: ir.Model, config: dict[str, Any]
) -> None:
    """Add the graph that runs once for a sequence; `decoder` and `config` are told of it."""
    main = manifest.main
    sizes = config["model"]["decoder"]
    _require_none(genai_speech.faults(main, sizes["num_attention_heads"], sizes["head_size"]))
    assert main.prepare is not None
    encoder = load_graph(folder, manifest.graphs[main.prepare].targets["ort"].path)
    hidden = genai_speech.name_as_genai(decoder, encoder, genai_speech.prepared(main))
    genai_speech.complete(config, main.conditions[0].name, hidden)
    _save(encoder, folder / genai_speech.ENCODER)


def _require_none(faults: Iterator[str]) -> None:
    for fault in faults:
        raise OptionError(f"onnxruntime-genai cannot run this model: {fault} {UNSAID}")


def _save(model: ir.Model, path: Path) -> None:
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _faults(graph: GraphEntry) -> Iterator[str]:
    """What stands in the way, in words."""
    caches = _caches(graph)
    if not caches:
        yield "it carries no state from token to token."
    for state in caches:
        if not _is_cache(state):
            yield (
                f"module {state.module!r} carries {state.input!r} of layout {state.layout}, where "
                "genai knows key-value caches in one buffer alone."
            )
    layers = [state.layer for state in caches if state.port == "key"]
    if layers != list(range(len(layers))):
        yield f"only its layers {', '.join(map(str, layers))} have a cache."
    if len({state.shape for state in caches}) > 1:
        yield "its caches are of different shapes."
    if [spec.dtype for spec in graph.inputs] != ["int64"]:
        names = ", ".join(spec.name for spec in graph.inputs)
        yield f"it takes {names}, where genai gives token ids alone."
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape) != 3:
        yield f"it gives {', '.join(spec.name for spec in graph.outputs)}, not logits alone."


def _caches(graph: GraphEntry) -> list[StateSpec]:
    """What a step changes."""
    return [state for state in graph.states if state.layout is not Layout.PREPARED]


def _is_cache(state: StateSpec) -> bool:
    name = rf"past_key_values\.{state.layer}\.{state.port}"
    return (
        state.layout is Layout.STATIC
        and state.port in PORTS
        and re.fullmatch(name, state.input) is not None
    )


def _query_heads(model: ir.Model) -> int:
    """Heads of the queries, of the first attention: genai takes one number for all layers."""
    for node in model.graph.all_nodes():
        if node.op_type == "GroupQueryAttention":
            return int(attribute(node, "num_heads"))
        if node.op_type == "Attention":
            return int((dims(node.inputs[0]) or (0, 0))[1])
    raise OptionError(f"onnxruntime-genai cannot run this model: it has no attention. {UNSAID}")


def _config(manifest: Manifest, heads: int) -> dict[str, Any]:
    """``genai_config.json``: names, sizes, and how to search unless the program says otherwise."""
    graph = manifest.main
    caches = _caches(graph)
    cache = caches[0]
    kv_heads, size = (int(cache.shape[axis]) for axis in (1, 3))
    known = manifest.source.get("config") or {}
    longest = graph.limits.max_context or known.get("max_position_embeddings") or CONTEXT
    ends = (manifest.text or {}).get("eos") or known.get("eos_token_id") or 0
    ends = ends if isinstance(ends, list) else [ends]
    lengths = {COUNT: COUNT} if graph.conditions else {"attention_mask": MASK}
    return {
        "model": {
            "type": "decoder",
            "vocab_size": graph.outputs[0].shape[2],
            "context_length": longest,
            "bos_token_id": known.get("bos_token_id") or 0,
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            "pad_token_id": known.get("pad_token_id") or ends[0],
            "decoder": {
                "filename": GRAPH,
                "session_options": {"provider_options": []},
                "hidden_size": known.get("hidden_size") or heads * size,
                "head_size": size,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "num_hidden_layers": len(caches) // len(PORTS),
                "inputs": {
                    "input_ids": graph.inputs[0].name,
                    **(lengths if graph.past_length else {}),
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": graph.outputs[0].name,
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "max_length": longest,
            "do_sample": False,
            "past_present_share_buffer": True,
        },
    }
