"""`--condition NAME=FILE.npz|VALUE`: what is typed, as arrays."""

from pathlib import Path

import numpy as np
import pytest

from intaglio.cli.condition_values import read_conditions
from intaglio.errors import InputError, IntaglioError, OptionError
from intaglio.runtime.graph_entry import TensorSpec

SPECS = (
    TensorSpec("ids", "int64", ("batch", "source")),
    TensorSpec("mask", "int64", ("batch", "source"), default=1),
    TensorSpec("guidance", "float32", ()),
)


def test_numbers_lists_and_files_are_read(tmp_path: Path) -> None:
    """One row may leave its batch out; a file's only array needs no name."""
    np.savez(tmp_path / "one.npz", anything=np.ones((2, 3), np.int64))
    np.savez(tmp_path / "two.npz", ids=np.zeros((1, 2), np.int64), other=np.ones(1))
    for text, shape in (
        ("[4, 5, 6]", (1, 3)),
        ("[[4, 5], [6, 7]]", (2, 2)),
        (str(tmp_path / "one.npz"), (2, 3)),
        (str(tmp_path / "two.npz"), (1, 2)),
    ):
        found = read_conditions([f"ids={text}", "guidance=2"], SPECS)
        assert {name: (x.shape, x.dtype.name) for name, x in found.items()} == {
            "ids": (shape, "int64"),
            "guidance": ((), "float32"),
        }


@pytest.mark.parametrize(
    ("texts", "kind", "words"),
    [
        (["ids"], OptionError, "give NAME=FILE.npz or NAME=VALUE"),
        (["idx=[1]"], OptionError, "takes these conditions: ids, mask, guidance"),
        (["ids=[1]", "ids=[2]"], OptionError, "given twice"),
        (["ids=[1]"], OptionError, "--condition guidance=FILE.npz or --condition guidance=VALUE"),
        (["ids=[1.5]"], InputError, "should be int64 numbers"),
        (["ids=one"], InputError, "should be int64 numbers"),
        (["ids=[[1], [2, 3]]"], InputError, "should be int64 numbers"),
        (["ids=nowhere.npz"], InputError, "cannot be read"),
    ],
)
def test_what_is_no_condition_is_told(
    texts: list[str], kind: type[IntaglioError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        read_conditions(texts, SPECS)
