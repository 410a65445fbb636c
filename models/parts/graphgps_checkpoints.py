"""Official checkpoints of GraphGPS: what their names and shapes say of the config."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models.layout import read_value

MARK = "post_mp.FC_layers.0.weight"
LOCAL = {"nn.0.weight": "gine", "A.weight": "gated-gcn", "att_src": "gat"}


def fits(values: Mapping[str, Any], keys: Collection[str]) -> bool:
    """Whether a file is one of GraphGPS: only it ends in such a head."""
    del values
    return MARK in keys or f"model.{MARK}" in keys


def _plain(names: Collection[str]) -> dict[str, str]:
    """Our name of each name in an official file, whose older ones lack the prefix."""
    return {name.removeprefix("model."): name for name in names}


def configure(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config, of shapes, and of a config of GraphGym as JSON for what these do not show."""
    s = {name: shapes[theirs] for name, theirs in _plain(shapes).items()}
    gt = read_value(values, "gt", dict, {})
    layer, places = "layers.0.", "encoder.node_encoder.encoder2."
    local = [kind for end, kind in LOCAL.items() if f"{layer}local_model.{end}" in s]
    softmax, linear = f"{layer}self_attn.in_proj_weight" in s, f"{layer}self_attn.to_q.weight" in s
    heads = s[f"{layer}local_model.att_src"][1] if local == ["gat"] else None
    size = s[f"{layer}ff_linear1.weight"][1]
    made: dict[str, Any] = {
        "edge_types": s["encoder.edge_encoder.encoder.weight"][0],
        "hidden_size": size,
        "num_layers": len({n.split(".")[1] for n in s if n.startswith("layers.")}),
        "outputs": s["post_mp.FC_layers.2.weight"][0],
        "local": local[0] if local else "none",
        "attention": "softmax" if softmax else "linear" if linear else "none",
        "num_heads": heads or read_value(gt, "n_heads", int),
        "pooling": read_value(read_value(values, "model", dict, {}), "graph_pooling", str, "add"),
    }
    if linear:
        count, head = s[f"{layer}self_attn.fast_attention.projection_matrix"]
        made |= {"head_size": head, "random_features": count}
        made["num_heads"] = s[f"{layer}self_attn.to_q.weight"][0] // head
    laplacian = f"{places}linear_A.weight" in s
    if not laplacian and not any(name.startswith(places) for name in s):
        kinds = s["encoder.node_encoder.encoder.weight"][0]
        return {**made, "node_types": kinds, "encoding": "none"}
    made["node_types"], plain = s["encoder.node_encoder.encoder1.encoder.weight"]
    made |= {"encoding_width": size - plain, "encoding_norm": f"{places}raw_norm.weight" in s}
    depth = len([name for name in s if re.fullmatch(rf"{places}pe_encoder\.\d+\.weight", name)])
    if laplacian:
        normed = s.get(f"{places}raw_norm.weight")
        layers = depth + 1 if depth else 1
        known = normed[0] if normed else read_value(values, "encoding_size", int)
        return {**made, "encoding": "laplacian", "encoding_layers": layers, "encoding_size": known}
    first = f"{places}pe_encoder.0.weight" if depth else f"{places}pe_encoder.weight"
    made["encoding_layers"] = depth or None
    return {**made, "encoding": "random-walk", "encoding_size": s[first][1]}


def weights(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The tensors by our names, which are the official ones.

    Raises:
        SourceError: if edges are attended from and to by different maps.
    """
    found = {name: tensors[theirs] for name, theirs in _plain(tensors).items()}
    if config.local == "gat":
        for name in [name for name in found if name.endswith("lin_dst.weight")]:
            if not torch.equal(found.pop(name), found[name.replace("lin_dst", "lin_src")]):
                raise SourceError(f"{name} is another map than lin_src, which is not supported")
    return found
