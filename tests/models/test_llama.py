"""Llama: its window, and its rotary positions."""

import torch

from intaglio.models.llama import LLAMA, Attention, Config, rotary, rotate


def test_a_window_hides_what_lies_before_it() -> None:
    """With a window of 3, one layer sees the token and the two before it."""
    torch.manual_seed(0)
    config = Config(hidden_size=16, num_layers=1, window=3)
    module = LLAMA.build(config).eval()
    ids = torch.arange(8)[None]
    changed = ids.clone()
    changed[0, 2] = 99
    with torch.no_grad():
        differs = (module(ids) != module(changed)).any(-1)[0]
    assert differs.tolist() == [False, False, True, True, True, False, False, False]


def test_scores_depend_on_the_distance_of_positions_alone() -> None:
    """Rotating query and key makes their product a function of how far apart they are."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 12, 8)
    cos, sin = rotary(12, 8, 10_000.0, q)
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-1, -2))[0, 0]
    for distance in range(12):
        expected = scores[distance, 0].expand(12 - distance)
        # angles are computed in single precision, whatever the dtype of the model
        torch.testing.assert_close(scores.diagonal(-distance), expected, rtol=1e-5, atol=1e-5)


def test_a_window_as_wide_as_the_sequence_is_full_attention() -> None:
    """The mask and `is_causal` say the same."""
    torch.manual_seed(0)
    full = Attention(Config(hidden_size=16)).eval()
    masked = Attention(Config(hidden_size=16, window=9)).eval()
    masked.load_state_dict(full.state_dict())
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(masked(x), full(x))
