"""Features of each row's picture, put where the row's tokens stand that mean one."""

import torch
from vision_language import EDGE, MARKER, llava, smolvlm

from intaglio.exporter.sources.huggingface.splicing import spliced_by_row, with_marks

PLACES = 4


def test_tokens_beyond_the_features_of_a_picture_stay_as_they_are() -> None:
    """And those of one row never take the features of another."""
    torch.manual_seed(0)
    model = llava().eval()
    ids = torch.tensor([[MARKER] * (PLACES + 2), [5] * (PLACES + 2)])
    shown = torch.randn(2, 3, EDGE, EDGE)
    with torch.no_grad(), spliced_by_row(model):
        both = model(input_ids=ids, pixel_values=shown, output_hidden_states=True)
        text = model(input_ids=ids, output_hidden_states=True)
    first, plain = both.hidden_states[0], text.hidden_states[0]
    assert not torch.equal(first[0, :PLACES], plain[0, :PLACES])
    assert torch.equal(first[0, PLACES:], plain[0, PLACES:])
    assert torch.equal(first[1], plain[1])


def test_pictures_that_are_all_zeros_keep_their_place() -> None:
    """The library leaves them out, and the number of features with them."""
    model = smolvlm().eval()
    shown = torch.randn(2, 2, 3, EDGE, EDGE)
    shown[0, 1] = 0
    ids = torch.full((2, 2 * PLACES), MARKER)
    with torch.no_grad(), spliced_by_row(model) as counts:
        found = model(input_ids=ids, pixel_values=shown).logits
        one = model(input_ids=ids[1:], pixel_values=shown[1:]).logits
    assert counts == [2 * PLACES, 2 * PLACES]
    torch.testing.assert_close(found[1:], one)


def test_about_half_of_the_tokens_that_are_drawn_stand_for_a_picture() -> None:
    ids = with_marks((4, 50), 20, 60, torch.Generator().manual_seed(0))
    assert 60 < int((ids == 60).sum()) < 140
    assert int(ids[ids != 60].max()) < 20
