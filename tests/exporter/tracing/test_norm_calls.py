"""Norms without weights are converted with as many ones as they norm, whatever the batch."""

import torch
from torch import nn
from torch.export import Dim, export

from intaglio.exporter.tracing.norm_calls import CALL, settle_norm_calls


def test_a_norm_without_a_weight_gets_one_of_its_own_size() -> None:
    module = nn.Sequential(nn.RMSNorm(8, elementwise_affine=False), nn.RMSNorm(8))
    free = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    program = export(module, (torch.randn(2, 5, 8),), dynamic_shapes=free)
    settle_norm_calls(program)
    norms = [node for node in program.graph.nodes if node.target is CALL]
    assert [tuple(node.args[2].meta["val"].shape) for node in norms] == [(8,), (8,)]
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(program.module()(x), module(x))
