"""Compute once what does not depend on the inputs, but never into a parameter.

Folding Transpose(W) would lose the name W, which passes, reports and refinements need; so a node
that touches an initializer of the source stays.  Numbers, shapes and casts of constants fold.
"""

import onnx_ir as ir
import onnxscript.optimizer

from intaglio.graph_keys import FOLDED
from intaglio.passes.base import Exact, PassResult

SEQUENCES = frozenset(
    (
        *("SplitToSequence", "SequenceAt", "SequenceConstruct", "SequenceInsert", "SequenceErase"),
        *("SequenceLength", "SequenceEmpty", "SequenceMap", "ConcatFromSequence"),
        *("Optional", "OptionalGetElement", "OptionalHasElement"),
    )
)
"""What makes no tensor of tensors, which the folder cannot take."""


class FoldConstants(Exact):
    """Fold constant expressions that no parameter takes part in."""

    limit: int = 262_144
    """Largest array, in elements, that folding may create."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fold until nothing more folds."""
        constants = set(model.graph.initializers.values())
        parameters = {value for value in constants if FOLDED not in value.metadata_props}

        def keep_parameters(node: ir.Node) -> bool | None:
            kept = node.op_type in SEQUENCES or any(value in parameters for value in node.inputs)
            return False if kept else None

        changed = False
        while onnxscript.optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            output_size_limit=self.limit,
            should_fold=keep_parameters,
        ).modified:
            changed = True
        for value in set(model.graph.initializers.values()) - constants:
            value.metadata_props[FOLDED] = "true"
        return PassResult(changed=changed)
