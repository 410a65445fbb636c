"""What tests of passes speak of: the vocabulary of their models, and what traces a module."""

from collections.abc import Callable

import onnx_ir as ir
from torch import nn

from intaglio.passes.base import Context

VOCABULARY = 31

Traced = Callable[[nn.Module], tuple[ir.Model, Context]]
