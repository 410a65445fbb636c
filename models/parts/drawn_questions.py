"""A toy task of pictures and questions: which colour is the picture at this place?

A picture is a square of squares, as many as it has tokens, each of one of eight colours with noise.
A row names the tokens of its picture, then asks: the word of a place, the word of its colour, as
often as there is time.  Words 0 to 7 are colours, 8 and above places.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

COLOURS = 8
NOISE = 0.1


def draw(
    rows: int, places: int, questions: int, image: tuple[int, int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, and questions about them.

    Args:
        rows: how many pictures.
        places: squares of a picture, the square of a whole number.
        questions: how many a row asks.
        image: channels, and pixels of a side of a picture; the id that stands for a picture.
        generator: what it is drawn with.

    Returns:
        input_ids [rows, places + 2 * questions], pixel_values [rows, 1, channels, side, side],
        and the colours [rows, questions] that are the answers.
    """
    channels, side, token = image
    grid = round(places**0.5)
    colours = torch.randint(COLOURS, (rows, places), generator=generator)
    bits = (colours[..., None] >> torch.arange(channels)) & 1
    squares = bits.float().reshape(rows, grid, grid, channels).permute(0, 3, 1, 2)
    pixels = F.interpolate(squares, size=(side, side), mode="nearest")
    pixels = pixels + NOISE * torch.randn(pixels.shape, generator=generator)
    asked = torch.randint(places, (rows, questions), generator=generator)
    answers = colours.gather(1, asked)
    asks = torch.stack((asked + COLOURS, answers), -1).flatten(1)
    ids = torch.cat((torch.full((rows, places), token), asks), 1)
    return ids, pixels[:, None], answers


def answered(logits: Tensor, questions: int) -> Tensor:
    """The logits [rows, questions, vocab] that answer, of logits [rows, time, vocab]."""
    return logits[:, -2 * questions :: 2]
