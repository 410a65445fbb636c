"""The ONNX form of `dplr_delta_rule`: its schema, its node, its body as a Scan over tokens."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from intaglio import operators

from .op import own_node, own_schema

FLOAT = 1  # what ONNX calls float32

SCHEMA = own_schema(
    operators.DPLR_DELTA_RULE,
    "S <- diag(exp(decay)) S + b (S^T a)^T + key value^T, output = S^T query; carried along time.",
)
_node = own_node(SCHEMA)


def translation(
    query: Any,
    key: Any,
    value: Any,
    a: Any,
    b: Any,
    decay: Any = None,
    past_state: Any = None,
    *,
    num_heads: int,
) -> Any:
    """Emit the node for the torch op."""
    return _node(query, key, value, a, b, decay, past_state, num_heads=num_heads)


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Write the recurrence as a Scan over tokens: two rows read, one product of rank two adds.

    b and key lie beside each other as columns, what is read and value as rows.
    """
    heads = attributes["num_heads"]
    tokens = ["q_row", "a_row", "v_row", "columns"] + ["kept"] * ("decay" in present)
    taken = ", ".join(f"float[batch, heads, m_{name}, n_{name}] {name}_t" for name in tokens)
    axes = ", ".join("1" for _ in tokens)
    state = "float[batch, heads, keys, values]"
    decayed = "Mul (kept_t, state)" if "decay" in present else "Identity (state)"
    scan = (
        f"present_state, rows = Scan <num_scan_inputs = {len(tokens)}, "
        f"scan_input_axes = [{axes}], scan_output_axes = [1], body = token ({state} state, "
        f"{taken}) => ({state} next, float[batch, heads, one, values] output_t) {{"
    )
    return "\n".join(
        [
            f"apart = Constant <value_ints = [0, 0, {heads}, -1]> ()",
            "last = Constant <value_ints = [-1]> ()",
            "row = Constant <value_ints = [-2]> ()",
            *_laid("query", "q_row", "row"),
            *_laid("a", "a_row", "row"),
            *_laid("value", "v_row", "row"),
            *_laid("key", "k_column", "last"),
            *_laid("b", "b_column", "last"),
            "columns = Concat <axis = -1> (b_column, k_column)",
            *(_decays() if "decay" in present else ()),
            *(["start = Identity (past_state)"] if "past_state" in present else _zeros(heads)),
            scan,
            "read = MatMul (a_row_t, state)",
            "both = Concat <axis = -2> (read, v_row_t)",
            "added = MatMul (columns_t, both)",
            f"decayed = {decayed}",
            "next = Add (decayed, added)",
            "output_t = MatMul (q_row_t, next)",
            f"}}> (start, {', '.join(tokens)})",
            "packed = Shape (value)",
            "output_all = Reshape <allowzero = 1> (rows, packed)",
            "output = CastLike (output_all, query)",
        ]
    )


def _laid(name: str, laid: str, axis: str) -> Iterator[str]:
    """An input as a row or a column of each head, [B, T, heads, 1, D] or [B, T, heads, D, 1]."""
    yield f"{laid}_wide = Cast <to = {FLOAT}> ({name})"
    yield f"{laid}_heads = Reshape ({laid}_wide, apart)"
    yield f"{laid} = Unsqueeze ({laid}_heads, {axis})"


def _decays() -> Iterator[str]:
    yield from _laid("decay", "g_column", "last")
    yield "kept = Exp (g_column)"


def _zeros(heads: int) -> Iterator[str]:
    """A state of zeros, of the sizes of keys and values."""
    yield "outer = Shape <start = 0, end = 1> (query)"
    yield f"heads_alone = Constant <value_ints = [{heads}]> ()"
    for name, of in (("keys", "query"), ("values", "value")):
        yield f"width_of_{name} = Shape <start = 2, end = 3> ({of})"
        yield f"{name} = Div (width_of_{name}, heads_alone)"
    yield "shape = Concat <axis = 0> (outer, heads_alone, keys, values)"
    yield "zero = Constant <value = float {0.0}> ()"
    yield "start = Expand (zero, shape)"
