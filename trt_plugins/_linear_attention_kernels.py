"""The kernels of LinearAttention, see `linear_attention.py` for what each computes."""

import triton
import triton.language as tl


@triton.jit
def recurrent(
    query,
    key,
    value,
    past_state,
    decay,
    beta,
    T,
    output,
    present_state,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    PER_KEY: tl.constexpr,
    RATES: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """All tokens of one head and row, for BV columns of the state."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    in_k = tl.arange(0, BK)
    in_v = tl.program_id(0) * BV + tl.arange(0, BV)
    k_mask, v_mask = in_k < K, in_v < V
    mask = k_mask[:, None] & v_mask[None, :]
    cells = ((row * H + head) * K + in_k[:, None]) * V + in_v[None, :]
    if past_state is None:
        state = tl.zeros([BK, BV], tl.float32)
    else:
        state = tl.load(past_state + cells, mask=mask, other=0.0).to(tl.float32)
    for t in range(T):
        token = row * T + t
        at = token * H + head
        k = tl.load(key + at * K + in_k, mask=k_mask, other=0.0).to(tl.float32)
        u = tl.load(value + at * V + in_v, mask=v_mask, other=0.0).to(tl.float32)
        if decay is not None:
            if PER_KEY:
                g = tl.load(decay + at * K + in_k, mask=k_mask, other=0.0).to(tl.float32)
                state *= tl.exp(g)[:, None]
            else:
                state *= tl.exp(tl.load(decay + at).to(tl.float32))
        if beta is not None:
            rate = tl.load(beta + token * RATES + head % RATES).to(tl.float32)
            u = rate * (u - tl.sum(state * k[:, None], 0))
        state += k[:, None] * u[None, :]
        for i in tl.static_range(GROUP):
            read = at * GROUP + i
            q = tl.load(query + read * K + in_k, mask=k_mask, other=0.0).to(tl.float32)
            o = tl.sum(state * q[:, None], 0) * SCALE
            tl.store(output + read * V + in_v, o.to(output.dtype.element_ty), mask=v_mask)
    tl.store(present_state + cells, state.to(present_state.dtype.element_ty), mask=mask)


@triton.jit
def within(
    query,
    key,
    decay,
    beta,
    T,
    scores,
    inverse,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    SCALE: tl.constexpr,
    PER_KEY: tl.constexpr,
    RATES: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """P of each query head, and X of the delta rules, of one chunk of one head and row."""
    start = tl.program_id(0) * C
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    in_c, in_k = tl.arange(0, C), tl.arange(0, BK)
    t_mask = start + in_c < T
    mask = t_mask[:, None] & (in_k < K)[None, :]
    token = row * T + start + in_c
    at = token * H + head
    k = tl.load(key + at[:, None] * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
    later = in_c[:, None] - in_c[None, :]
    if PER_KEY:
        reach = _summed(decay, at, t_mask, mask, in_k, K, PER_KEY)
        for i in tl.static_range(GROUP):
            q = tl.load(query + (at * GROUP + i)[:, None] * K + in_k[None, :], mask=mask, other=0.0)
            p = _decayed(q, key, decay, reach, row * T + start, head, T, start, H, K, C, BK)
            p = tl.where(later >= 0, p * SCALE, 0.0)
            tl.store(
                scores + (at * GROUP + i)[:, None] * C + in_c[None, :], p, mask=t_mask[:, None]
            )
        if beta is not None:
            kk = _decayed(k, key, decay, reach, row * T + start, head, T, start, H, K, C, BK)
    else:
        if decay is not None:
            g = tl.load(decay + at, mask=t_mask, other=0.0).to(tl.float32)
            reach = tl.cumsum(g, 0)
            kept = tl.exp(tl.minimum(reach[:, None] - reach[None, :], 0.0))
        else:
            kept = tl.full([C, C], 1.0, tl.float32)
        for i in tl.static_range(GROUP):
            q = tl.load(query + (at * GROUP + i)[:, None] * K + in_k[None, :], mask=mask, other=0.0)
            p = tl.dot(q.to(tl.float32), tl.trans(k), input_precision=PRECISION)
            p = tl.where(later >= 0, p * kept * SCALE, 0.0)
            tl.store(
                scores + (at * GROUP + i)[:, None] * C + in_c[None, :], p, mask=t_mask[:, None]
            )
        if beta is not None:
            kk = tl.dot(k, tl.trans(k), input_precision=PRECISION) * kept
    if beta is not None:
        rate = tl.load(beta + token * RATES + head % RATES, mask=t_mask, other=0.0).to(tl.float32)
        x = -tl.where(later > 0, rate[:, None] * kk, 0.0)
        for i in range(1, C):
            chosen = in_c[:, None] == i
            line = tl.sum(tl.where(chosen, x, 0.0), 0)
            line += tl.sum(line[:, None] * x, 0)
            x = tl.where(chosen, line[None, :], x)
        x = tl.where(later == 0, 1.0, x) * _across_columns(rate, in_c)
        tl.store(inverse + at[:, None] * C + in_c[None, :], x, mask=t_mask[:, None])


@triton.jit
def _across_columns(values, in_c):
    """The values of rows [C] as factors of columns [1, C]."""
    return tl.sum(tl.where(in_c[:, None] == in_c[None, :], values[:, None], 0.0), 0)[None, :]


@triton.jit
def _summed(decay, at, t_mask, mask, in_k, K: tl.constexpr, PER_KEY: tl.constexpr):
    """The log decay summed from the start of the chunk: [C, BK], or [C, 1] per head."""
    if PER_KEY:
        g = tl.load(decay + at[:, None] * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
        return tl.cumsum(g, 0)
    else:  # noqa: RET505  triton takes one return per branch
        return tl.cumsum(tl.load(decay + at, mask=t_mask, other=0.0).to(tl.float32), 0)[:, None]


@triton.jit
def _decayed(
    rows,
    key,
    decay,
    reach,
    first,
    head,
    T,
    start,
    H: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
):
    """sum_d rows[t, d] k[s, d] e^{G[t, d] - G[s, d]} for s <= t, column by column from the last.

    G[t] - G[s] grows by the decay of one token from column to column; with both exponentials apart,
    e^{-G} would overflow.
    """
    in_c, in_k = tl.arange(0, C), tl.arange(0, BK)
    products = tl.zeros([C, C], tl.float32)
    ahead = reach - tl.sum(tl.where(in_c[:, None] == C - 1, reach, 0.0), 0)[None, :]
    for i in range(C):
        s = C - 1 - i
        inside = in_k < tl.where(start + s < T, K, 0)
        at = (first + s) * H + head
        k = tl.load(key + at * K + in_k, mask=inside, other=0.0).to(tl.float32)
        column = tl.sum(rows * tl.exp(tl.minimum(ahead, 0.0)) * k[None, :], 1)
        products = tl.where(in_c[None, :] == s, column[:, None], products)
        ahead += tl.load(decay + at * K + in_k, mask=inside, other=0.0).to(tl.float32)[None, :]
    return products


@triton.jit
def across(
    query,
    key,
    value,
    past_state,
    decay,
    scores,
    inverse,
    T,
    output,
    present_state,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    SCALE: tl.constexpr,
    PER_KEY: tl.constexpr,
    C: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All chunks of one head and row, for BV columns of the state."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    in_c, in_k = tl.arange(0, C), tl.arange(0, BK)
    in_v = tl.program_id(0) * BV + tl.arange(0, BV)
    k_mask, v_mask = in_k < K, in_v < V
    state_mask = k_mask[:, None] & v_mask[None, :]
    cells = ((row * H + head) * K + in_k[:, None]) * V + in_v[None, :]
    if past_state is None:
        state = tl.zeros([BK, BV], tl.float32)
    else:
        state = tl.load(past_state + cells, mask=state_mask, other=0.0).to(tl.float32)
    for start in range(0, T, C):
        t_mask = start + in_c < T
        at = (row * T + start + in_c) * H + head
        mask = t_mask[:, None] & k_mask[None, :]
        o_mask = t_mask[:, None] & v_mask[None, :]
        k = tl.load(key + at[:, None] * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
        u = tl.load(value + at[:, None] * V + in_v[None, :], mask=o_mask, other=0.0)
        u = u.to(tl.float32)
        if decay is not None:
            reach = _summed(decay, at, t_mask, mask, in_k, K, PER_KEY)  # [C, BK] or [C, 1]
            kept = tl.exp(reach)
            whole = tl.sum(tl.where(in_c[:, None] == C - 1, reach, 0.0), 0)  # [BK] or [1]
        if inverse is not None:
            x = tl.load(inverse + at[:, None] * C + in_c[None, :], mask=t_mask[:, None], other=0.0)
            seen = k * kept if decay is not None else k
            u -= tl.dot(seen, state, input_precision=PRECISION)
            u = tl.dot(x, u, input_precision=PRECISION)
        for i in tl.static_range(GROUP):
            read = (at * GROUP + i)[:, None]
            q = tl.load(query + read * K + in_k[None, :], mask=mask, other=0.0).to(tl.float32)
            p = tl.load(scores + read * C + in_c[None, :], mask=t_mask[:, None], other=0.0)
            if decay is not None:
                q *= kept
            o = tl.dot(q, state, input_precision=PRECISION) * SCALE
            o = tl.dot(p, u, acc=o, input_precision=PRECISION)
            tl.store(output + read * V + in_v[None, :], o.to(output.dtype.element_ty), mask=o_mask)
        if decay is not None:
            k *= tl.exp(whole[None, :] - reach)
            state *= tl.exp(whole)[:, None]
        state = tl.dot(tl.trans(k), u, acc=state, input_precision=PRECISION)
    tl.store(present_state + cells, state.to(present_state.dtype.element_ty), mask=state_mask)
