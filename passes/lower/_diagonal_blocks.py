"""DiagonalSSM in blocks of tokens, for runtimes that pay for each node that they start.

The body of the operator is a Scan with a dozen nodes for each token.  Here an iteration takes
`BLOCK` tokens: what they keep, what they add and what they read is one node each, and only
``h <- keep h + add`` goes from token to token.  Neither a decay is divided by nor are decays of
several tokens multiplied, so that none overflows or vanishes; a token is computed by the same
operations wherever a call is cut.  Tokens that fill the last block keep all (dt = 0) and add
nothing (u = 0).  A single token needs no loop.

Within, a value of tokens has the axes [batch, tokens, channels, states], of size one where it does
not differ; so nothing is laid out anew in an iteration.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

BLOCK = 16  # tokens of an iteration; fewer start more nodes, more leave the processor's cache
FLOAT = 1  # what ONNX calls float32
INTS = {"last": -1, "middle": -2, "one": 1, "zero": 0, "block": BLOCK}


def body(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """A node with the inputs `present`, as text of ONNX."""
    lti = bool(attributes["lti"])
    tokens = {"drive": "last", "dt": "last"}  # and where each gets an axis of size one
    if not lti:
        tokens |= {"write": "middle", "read": "last"}
    whole = {name: f"{name}_all" for name in tokens}
    results = "float[batch, time, channels, last_one] y, float[batch, single, channels, states]"
    return "\n".join(
        [
            *(f"{name} = Constant <value_ints = [{n}]> ()" for name, n in INTS.items()),
            *_of_tokens(present, attributes),
            *(f"{name}_all = Unsqueeze ({name}, {axis})" for name, axis in tokens.items()),
            *_start(present),
            "time = Shape <start = 1, end = 2> (input)",
            "alone = Equal (time, one)",
            f"found, after = If <then_branch = token () => ({results} after_it) {{",
            *_tokens(whole, 1, state="start", y="y", after="after_it", lti=lti),
            f"}}, else_branch = tokens () => ({results} after_all) {{",
            *_blocks(list(tokens), lti=lti),
            "}> (alone)",
            "outputs = Squeeze (found, last)",
            "output = CastLike (outputs, input)",
            "present_state = Squeeze (after, one)",
        ]
    )


def _of_tokens(present: Collection[str], attributes: Mapping[str, Any]) -> Iterator[str]:
    """What drives the states, the step size, one where none is given, B and C."""
    yield f"u = Cast <to = {FLOAT}> (input)"
    yield f"write = Cast <to = {FLOAT}> (B)"
    yield f"read = Cast <to = {FLOAT}> (C)"
    if "delta" in present:
        yield f"dt = Cast <to = {FLOAT}> (delta)"
    else:
        yield "rows = Shape <start = 0, end = 2> (input)"
        yield "sizes = Concat <axis = 0> (rows, one)"
        yield "unit = Constant <value_floats = [1.0]> ()"
        yield "dt = Expand (unit, sizes)"
    scaled = attributes["discretization"] == "mamba" and "delta" in present
    yield f"drive = {'Mul (dt, u)' if scaled else 'Identity (u)'}"


def _start(present: Collection[str]) -> Iterator[str]:
    if "past_state" in present:
        yield "start = Unsqueeze (past_state, one)"
    else:
        yield "outer = Shape <start = 0, end = 1> (input)"
        yield "inner = Shape (A)"
        yield "shape = Concat <axis = 0> (outer, one, inner)"
        yield "nothing = Constant <value_floats = [0.0]> ()"
        yield "start = Expand (nothing, shape)"


def _blocks(tokens: list[str], *, lti: bool) -> Iterator[str]:
    """All tokens of a call, block by block."""
    yield "missing = Neg (time)"
    yield "filling = Mod (missing, block)"
    yield "pads = Concat <axis = 0> (zero, zero, zero, zero, zero, filling, zero, zero)"
    for name in tokens:
        yield f"{name}_full = Pad ({name}_all, pads)"
        yield f"{name}_place = Shape <start = 2> ({name}_all)"
        yield f"{name}_sizes = Concat <axis = 0> (zero, last, block, {name}_place)"
        yield f"{name}_apart = Reshape ({name}_full, {name}_sizes)"
        yield f"{name}_blocks = Transpose <perm = [1, 0, 2, 3, 4]> ({name}_apart)"
    axes = ", ".join("0" for _ in tokens)
    taken = ", ".join(f"float[batch, {BLOCK}, a_{name}, b_{name}] {name}_t" for name in tokens)
    yield (
        f"after_all, found_blocks = Scan <num_scan_inputs = {len(tokens)}, "
        f"scan_input_axes = [{axes}], scan_output_axes = [0], "
        f"body = of_block (float[batch, single, channels, states] state, {taken}) "
        f"=> (float[batch, single, channels, states] next, "
        f"float[batch, {BLOCK}, channels, last_one] answers) {{"
    )
    each = {name: f"{name}_t" for name in tokens}
    yield from _tokens(each, BLOCK, state="state", y="answers", after="next", lti=lti)
    yield f"}}> (start, {', '.join(f'{name}_blocks' for name in tokens)})"
    yield "rowwise = Transpose <perm = [1, 0, 2, 3, 4]> (found_blocks)"
    yield "wide = Concat <axis = 0> (zero, last, drive_place)"
    yield "together = Reshape (rowwise, wide)"
    yield "y = Slice (together, zero, time, one)"


def _tokens(
    of: Mapping[str, str], count: int, *, state: str, y: str, after: str, lti: bool
) -> Iterator[str]:
    """`count` tokens from `state`: their results `y`, and the state `after` them."""
    yield f"rate = Mul ({of['dt']}, A)"
    yield "keep = Exp (rate)"
    # a product each; that of matrices has less overhead than one with two broadcast sides
    write = "Mul ({drive}, write)" if lti else "MatMul ({drive}, {write})"
    yield f"added = {write.format(**of)}"
    if count == 1:
        yield f"kept = Mul (keep, {state})"
        yield "states = Add (kept, added)"
        yield f"{after} = Identity (states)"
    else:
        yield from _one_after_the_other(count, state, after)
    if lti:
        yield "weighed = Mul (states, read)"
        yield f"{y} = ReduceSum <keepdims = 1> (weighed, last)"
    else:
        yield f"{y} = MatMul (states, {of['read']})"


def _one_after_the_other(count: int, state: str, after: str) -> Iterator[str]:
    """The state after each of `count` tokens."""
    for name in ("keep", "added"):
        parts = ", ".join(f"{name}_{t}" for t in range(count))
        yield f"{parts} = Split <axis = 1, num_outputs = {count}> ({name})"
    for t in range(count):
        yield f"kept_{t} = Mul (keep_{t}, {state})"
        state = f"state_{t}" if t < count - 1 else after
        yield f"{state} = Add (kept_{t}, added_{t})"
    after_each = [*(f"state_{t}" for t in range(count - 1)), after]
    yield f"states = Concat <axis = 1> ({', '.join(after_each)})"
