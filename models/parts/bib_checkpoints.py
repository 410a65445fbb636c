"""BIB's released files: a language model, what was measured as its features, and a head.

The released code takes the encoder of DNABERT or ProtBERT and the files that it wrote itself:
features of the offline sequences, their standardised scores, the mean and the deviation of these,
the solution of the ridge regression in its dual form, and a linear head as auxiliary score.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models.layout import read_value, refuse

SCORES = ("offline_labels", "offline_coeffs", "offline_m", "offline_std")
FEATURES, HEAD = "offline_logits", "part_oracle"
FILES = (FEATURES, *SCORES, HEAD)
ALPHABETS = {69: "dna", 30: "protein"}  # by the words of DNABERT of triples and of ProtBERT
WORDS = "embeddings.word_embeddings.weight"
UNREAD = ("cls.", "bert.pooler.", "pooler.", "bert.embeddings.position_ids",
          "embeddings.position_ids")  # fmt: skip
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
IMMATERIAL = frozenset(
    {
        *("attention_probs_dropout_prob", "classifier_dropout", "directionality", "do_sample"),
        *("eos_token_ids", "gradient_checkpointing", "hidden_dropout_prob", "length_penalty"),
        *("max_length", "num_beams", "num_labels", "num_return_sequences", "num_rnn_layer"),
        *("output_past", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type", "repetition_penalty", "rnn", "rnn_dropout"),
        *("rnn_hidden", "split", "temperature", "tie_word_embeddings", "top_k", "top_p", *FILES),
    }
)


def fits(values: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Whether a config of BERT names the offline data beside it."""
    del keys
    return FEATURES in values


def configure(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config: of BERT's own, and of the shapes of the offline data.

    Raises:
        SourceError: if its words are neither triples of letters nor amino acids.
    """
    refuse(values, {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",),
                    "type_vocab_size": (2,), "is_decoder": (False,),
                    "add_cross_attention": (False,)})  # fmt: skip
    made: dict[str, Any] = {ours: read_value(values, name, int) for ours, name in SIZES.items()}
    words = made["vocab_size"]
    if words not in ALPHABETS:
        known = " and ".join(f"{size} ({name})" for size, name in ALPHABETS.items())
        raise SourceError(f"its config has vocab_size = {words}; the sizes that are known: {known}")
    return {
        **made,
        "alphabet": ALPHABETS[words],
        "norm_eps": read_value(values, "layer_norm_eps", float, 1e-12),
        "length": read_value(values, "length", int),
        "target": read_value(values, "target", float, 10.0),
        "offline": shapes[FEATURES][0],
    }


def weights(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The tensors by our names.

    The released module has words as a linear layer, whose matrix is turned.  The solution c of the
    dual form gives the weights of features, w = F'c.
    """
    found: dict[str, Tensor] = {}
    for name in tensors:
        if name.startswith(UNREAD):
            tensors[name]  # it is known, and nothing here reads it
        elif not name.startswith(FILES):
            found[f"bert.{name.removeprefix('bert.')}"] = tensors[name]
    words = found[f"bert.{WORDS}"]
    if words.shape == (config.hidden_size, config.vocab_size):
        found[f"bert.{WORDS}"] = words.T
    missing = [name for name in (FEATURES, *SCORES) if name not in tensors]
    missing += [n for n in (f"{HEAD}.main.weight", f"{HEAD}.main.bias") if n not in tensors]
    if missing:
        raise KeyError(*missing)
    features, labels = tensors[FEATURES], tensors["offline_labels"]
    scale = torch.stack([tensors[name].reshape(()).float() for name in SCORES[2:]])
    solution = features.double().T @ tensors["offline_coeffs"].double().reshape(-1)
    return {
        **found,
        "main.weight": tensors[f"{HEAD}.main.weight"],
        "main.bias": tensors[f"{HEAD}.main.bias"],
        "features": features.float(),
        "labels": labels.reshape(-1).float(),
        "weight": solution.float(),
        "scale": scale,
    }
