"""A loop over tokens -> the operators that compute the same, as far as there are some.

What a loop carries falls into groups that depend on each other.  In the order of dependence

* a state that is ``a * state + b`` entry by entry becomes `DiagonalSSM` where a is a decay, a
  cumulative sum where a is 1, and a shift in time where a is 0 (`_affine_steps`);
* one that outer products are added to and vectors read becomes `LinearAttention`
  (`_outer_products`);
* any other group stays a Scan, of what depends on its states alone.

Everything else in the body is computed of all tokens at once (`_all_tokens`).  All of it is read
from the graph: factors depend on data alone, decays lie between 0 and 1 whatever the data
(`analysis.intervals`), results read the state as the operator gives it.  Where a part is not shown,
the group stays a loop; where a node cannot be computed of all tokens at once, the Scan stays.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import Emitter, describe, replace_uses
from intaglio.passes.own_ops import define

from ._all_tokens import UnliftedError
from ._loop_body import LoopBody
from ._loop_parts import Parts, StaysInLoop


class RecogniseRecurrences(Exact):
    """Write loops over tokens as the recurrent operators that compute the same."""

    for_tokens = True

    def rewrite(self, model: ir.Model) -> PassResult:
        """Take apart every Scan of the graph."""
        notes = []
        loops = [node for node in model.graph if node.op_type == "Scan" and not node.domain]
        for node in loops:
            kinds = _taken_apart(node)
            if kinds:
                notes.append(f"{describe(node)} becomes {', '.join(kinds)}")
        if loops:
            common.RemoveUnusedNodesPass()(model)  # what was emitted and not taken included
            define(model)
        return PassResult(changed=bool(notes), notes=notes)


def _taken_apart(node: ir.Node) -> list[str]:
    """What `node` has become; nothing where it stays."""
    looped: set[int] = set()
    while True:
        try:
            body = LoopBody(node)
        except UnliftedError:
            return []
        try:
            parts = Parts(Emitter(node), body, looped)
            results, finals = parts.results(), parts.finals()
        except StaysInLoop as kept:
            if looped.issuperset(kept.states):
                return []
            looped |= set(kept.states)
            continue
        except UnliftedError:
            return []
        finally:
            body.close()
        if not parts.smaller:
            return []
        for old, new in zip(node.outputs, [*finals, *results], strict=True):
            if new is not None:
                replace_uses(old, new)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        return parts.kinds
