"""What each operator makes of bounds, by name, see `bounds`."""

from ._moved_bounds import MOVES
from ._number_bounds import NUMBERS

RULES = {**NUMBERS, **MOVES}
