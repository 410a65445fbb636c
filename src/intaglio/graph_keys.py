"""Keys of metadata in graphs: what passes write there, and whoever reads a bundle finds.

They are listed in docs/names.md.
"""

MODULE = "intaglio.module"  # of a node: path of the PyTorch module that it was traced from
FOLDED = "intaglio.folded"  # of an initializer that is no parameter: a folded constant
MADE_OF = "intaglio.made_of"  # of an initializer: the parameters that it was computed from
PARTS = "intaglio.parts"  # of an initializer: those whose bytes it holds one after the other
ROWS = "intaglio.rows"  # of an initializer with parts: how many of its rows are each one's
ONE_STEP = "intaglio.one_step"  # of a graph: a step of one token of one row is opened apart
LOW_BIT = "intaglio.low_bit"  # of codes: their sizes, and which parameters they stand for
