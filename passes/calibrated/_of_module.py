"""Whether a graph still has the weights of the module that it was traced from."""

import numpy as np
import onnx_ir as ir
from torch import nn

from intaglio.passes.graph import constant


def other_weight(module: nn.Module, model: ir.Model) -> str | None:
    """The name of a parameter that an initializer of the graph has other contents than; else None.

    Those that the graph knows by no name any more, as weights of few bits, are passed over.
    """
    for name, parameter in module.named_parameters(remove_duplicate=False):
        held = constant(model.graph.initializers.get(name))
        if held is not None and not np.array_equal(held, parameter.detach().double().numpy()):
            return name
    return None
