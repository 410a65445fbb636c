"""What each mixer is by hand, with the same weights: with our operators, or as a step cell.

A form of operators takes all tokens, as the mixer does; a cell is the form of states that no
operator of ours takes.  Several mixers share one form.  A text says why a mixer's own source is
what an engineer would write today.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import with_cells as cells
from . import with_operators as operators
from .with_cells import SQUARE, WIDE, Cell

Form = Callable[..., Tensor] | Cell | str

LAYERS = "layers of torch.nn alone, as by hand"
GROWS = "keeps keys and values of all tokens, which neither an operator of ours with such weights\
 nor a cell does"

ONE = (1,)
FORMS: dict[str, dict[str, Form]] = {
    "loops": {
        "gated": operators.gated,
        "lstm_cells": operators.of_cells("LSTM"),
        "gru_cells": operators.of_cells("GRU"),
        "rnn_layers": operators.rnn_layers,
        "lstm_tuples": operators.of_cells("LSTM"),
        "delta_rule": operators.delta_rule,
        "gated_delta": operators.gated_delta,
        "selective_scan": operators.selective_scan,
        "min_gru": operators.min_gru,
        "rg_lru": operators.rg_lru,
        "none_at_first": Cell(cells.none_at_first, (WIDE, ONE)),
        "only_later": Cell(cells.only_later, (WIDE, ONE)),
        "in_place_neighbour": operators.in_place_neighbour,
        "two_back": Cell(cells.two_back, (WIDE, WIDE)),
        "token_before": operators.token_before,
        "wkv": Cell(cells.wkv, (WIDE, WIDE, WIDE), (0.0, 0.0, -1e38)),
        "before_update": operators.before_update,
        "learned_start": operators.learned_start,
        "start_of_first": Cell(cells.start_of_first, (WIDE, ONE)),
        "position": operators.position,
        "running_mean": Cell(cells.running_mean, (WIDE, ONE)),
        "welford": Cell(cells.welford, (WIDE, WIDE, ONE)),
        "two_loops": Cell(cells.two_loops, (WIDE, WIDE)),
        "grown": Cell(cells.grown),
        "linear_attention": operators.linear_attention_loop,
        "m_lstm": Cell(cells.m_lstm, (SQUARE, WIDE, ONE)),
        "indrnn_leaky": Cell(cells.leaky),
        "lmu": Cell(cells.lmu, ((6,), WIDE)),
        "liquid": Cell(cells.liquid),
        "conv_window": operators.conv_window,
        "clipped_window": operators.clipped_window,
        "first_kept": Cell(cells.first_kept, (WIDE, WIDE, ONE)),
        "language_model": operators.language_model,
        "mixed_stack": operators.mixed_stack,
    },
    "pairs": {
        "linear_attention": operators.linear_attention_pairs,
        "retention": operators.retention,
        "rotary_retention": operators.rotary_retention,
        "state_space_dual": operators.dual,
        "one_group": operators.dual,
        "taylor": operators.taylor,
        "gated_pairs": operators.gated_pairs,
        "gated_inputs": operators.gated_inputs,
        "divided_gates": operators.divided_gates,
        "shared_keys": operators.shared_keys,
        "led_log_space": operators.led_log_space,
    },
    "recurrences": {
        "hgrn": operators.hgrn,
        "min_lstm": operators.min_lstm,
        "sru": operators.sru,
        "sru_peephole": Cell(cells.sru_peephole),
        "qrnn": operators.qrnn,
        "ind_rnn": Cell(cells.ind_rnn),
        "antisymmetric": Cell(cells.antisymmetric),
        "unicornn": Cell(cells.unicornn, (WIDE, WIDE)),
        "fast_weights": Cell(cells.fast_weights, (SQUARE, WIDE)),
        "ema": operators.ema,
        "s4d_step": operators.s4d_step,
        "lru_complex": Cell(cells.lru, (WIDE, WIDE)),
        "retention": operators.retention,
        "gla": operators.gla,
        "mamba2_step": operators.dual,
        "gsa": operators.gsa,
        "rwkv7_step": operators.rwkv7_step,
        "titans_linear": Cell(cells.titans_linear, (SQUARE, SQUARE)),
        "s_lstm": Cell(cells.s_lstm, (WIDE, WIDE, WIDE, WIDE)),
        "merged_heads": operators.merged_heads,
        "chunks": operators.chunks,
        "s5": Cell(cells.s5, ((6,), (6,))),
        "rwkv6": operators.rwkv6,
        "ttt_linear": operators.ttt_linear,
        "memory_slots": Cell(
            cells.memory_slots, (WIDE, WIDE, (5, 8)), (0.0, 0.0, lambda m: m.memory)
        ),
        "clockwork": Cell(cells.clockwork, (WIDE, ONE)),
    },
    "scans": {
        "gated_scan": operators.gated,
        "gated_associative_scan": operators.gated,
    },
    "scores": {
        "relative_keys_and_values": GROWS,
        "transformer_xl": GROWS,
        "music_transformer": GROWS,
        "disentangled": GROWS,
        "buckets": GROWS,
        "talking_heads": GROWS,
        "stick_breaking": GROWS,
        "contextual_positions": GROWS,
        "differential": operators.differential,
        "attention_free": GROWS,
        "m_lstm_parallel": Cell(cells.m_lstm_heads, ((2, 4, 4), (2, 4), (2, 1)), (0.0, 0.0, -1e38)),
    },
    "streams": {
        "spectral_denoiser": LAYERS,
        "dual_path": LAYERS,
        "cumulative_norm": Cell(cells.cumulative_norm, (ONE, ONE, ONE)),
        "dilated_stack_padded_once": LAYERS,
        "strided_encoder": LAYERS,
        "causal_vocoder": LAYERS,
        "codec": LAYERS,
        "stacked_frames": LAYERS,
        "pooled_frames": LAYERS,
        "log_space_scan": operators.log_space_scan,
        "decayed_prefix_sum": operators.decayed_prefix_sum,
        "log_cumulative_sum": Cell(cells.log_cumulative_sum, starts=(-1e38,)),
        "cumulative_maximum": Cell(cells.cumulative_maximum, starts=(-1e38,)),
        "cumulative_product": Cell(cells.cumulative_product, starts=(1.0,)),
        "cumulative_mean": Cell(cells.cumulative_mean, (WIDE, ONE)),
    },
}


class ByHand(nn.Module):
    """A form with the module of its mixer, whose weights it takes."""

    def __init__(self, form: Form, module: nn.Module) -> None:
        super().__init__()
        self.form, self.module = form, module


class Operated(ByHand):
    """Of all tokens."""

    def forward(self, x: Tensor) -> Any:
        return self.form(self.module, x)  # type: ignore[operator]


class Stepped(ByHand):
    """Of one token and the states before it."""

    def forward(self, x: Tensor, h: tuple[Tensor, ...]) -> Any:
        assert isinstance(self.form, Cell)
        return self.form.call(self.module, x, *h)


def difference(form: Form, module: nn.Module, x: Tensor, axis: int) -> float:
    """How far a form is from its module, of its largest result, on tokens of `x` along `axis`."""
    assert not isinstance(form, str)
    with torch.no_grad():
        wanted = module(x)
        if not isinstance(form, Cell):
            found = form(module, x)
        else:
            h, results = form.started(module, x.shape[0], x.dtype), []
            for token in x.unbind(axis):
                y, h = form.call(module, token, *h)
                results.append(y)
            found = torch.stack(results, axis)
    return float((found - wanted).abs().max() / wanted.abs().max())
