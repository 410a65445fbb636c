"""Speech in a folder of onnxruntime-genai: an encoder's graph beside the decoder's.

genai's type ``whisper`` takes features of 3,000 frames once for a sequence.  Its encoder gives the
keys and values of each layer's attention to them, which every step reads and none changes: what
`prepare` gives a step graph, under names of genai's own.  It has to give hidden states too, which
genai makes room for and nothing reads.  Source: onnxruntime-genai, ``src/models/whisper.cpp`` and
the class `CrossCache` of ``src/models/kv_cache.cpp``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir

from intaglio.errors import OptionError
from intaglio.passes.graph import dims
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.state import BATCH, Layout, StateSpec

ENCODER = "genai_encoder.onnx"
FRAMES = 3000
POSITIONS = FRAMES // 2
HIDDEN = "encoder_hidden_states"
PORTS = ("key", "value")


def prepared(graph: GraphEntry) -> list[StateSpec]:
    """What is computed once for a sequence, of a step graph."""
    return [state for state in graph.states if state.layout is Layout.PREPARED]


def faults(graph: GraphEntry, heads: int, size: int) -> Iterator[str]:
    """What of the conditions of `graph` genai has no place for, in words.

    `heads` are those of the queries, `size` is that of a head: genai has one number of each.
    """
    names = ", ".join(spec.name for spec in graph.conditions)
    given = [(spec.dtype, spec.shape[2:]) for spec in graph.conditions]
    if given != [("float32", (FRAMES,))]:
        yield (
            f"it is given {names} once for a sequence, where genai has a place for the features of "
            f"speech alone, float32 [batch, mels, {FRAMES}]; its models of pictures are cut into "
            "other graphs."
        )
    states = prepared(graph)
    layers = [layer for layer in range(len(states) // 2) for _ in PORTS]
    wanted = (BATCH, heads, POSITIONS, size)
    for state, layer, port in zip(states, layers, PORTS * len(layers), strict=False):
        if (state.port, state.layer) != (port, layer) or state.shape[1:] != wanted[1:]:
            yield (
                f"module {state.module!r} reads {state.input!r} {list(state.shape)}, where genai "
                f"has keys and values {list(wanted)} of layer {layer}."
            )
    caches = len(graph.states) - len(states)
    if len(states) != caches:
        yield f"it has {caches} caches and reads {len(states)} values that are computed once."


def name_as_genai(decoder: ir.Model, encoder: ir.Model, states: Sequence[StateSpec]) -> int:
    """Give what the encoder hands to the decoder genai's names; return the size of hidden states.

    Raises:
        OptionError: if what the encoder gives comes from no value [batch, 1500, size].
    """
    inputs = {value.name: value for value in decoder.graph.inputs}
    outputs = {value.name: value for value in encoder.graph.outputs}
    hidden = _hidden_states(encoder.graph)
    for state in states:
        inputs[state.input].name = f"past_{state.port}_cross_{state.layer}"
        outputs[state.input].name = f"present_{state.port}_cross_{state.layer}"
    hidden.name = HIDDEN
    encoder.graph.outputs.append(hidden)
    return int((dims(hidden) or ())[2])


def _hidden_states(graph: ir.Graph) -> ir.Value:
    """The last value [batch, 1500, size] of the encoder that all of its outputs come from."""
    needed: dict[ir.Value, set[int]] = {}
    for index, output in enumerate(graph.outputs):
        waiting = [output]
        while waiting:
            value = waiting.pop()
            seen = needed.setdefault(value, set())
            if index not in seen:
                seen.add(index)
                node = value.producer()
                waiting += [] if node is None else [each for each in node.inputs if each]
    for node in reversed(graph):
        for value in node.outputs:
            shape = dims(value) or ()
            common = len(needed.get(value, ())) == len(graph.outputs)
            if common and len(shape) == 3 and shape[1] == POSITIONS and isinstance(shape[2], int):
                return value
    raise OptionError(
        "onnxruntime-genai cannot run this model: its encoder computes no hidden states "
        f"[batch, {POSITIONS}, size] that all of its keys and values come from."
    )


def complete(config: dict[str, Any], features: str, hidden: int) -> None:
    """Make the ``genai_config.json`` of a decoder that of one with an encoder."""
    model = config["model"]
    decoder = model["decoder"]
    model["type"] = "whisper"
    decoder["inputs"] |= {f"cross_past_{port}_names": f"past_{port}_cross_%d" for port in PORTS}
    model["encoder"] = {
        "filename": ENCODER,
        "session_options": {"provider_options": []},
        "hidden_size": hidden,
        "head_size": decoder["head_size"],
        "num_attention_heads": decoder["num_attention_heads"],
        "num_hidden_layers": decoder["num_hidden_layers"],
        "inputs": {"audio_features": features},
        "outputs": {
            HIDDEN: HIDDEN,
            **{f"cross_present_{port}_names": f"present_{port}_cross_%d" for port in PORTS},
        },
    }
