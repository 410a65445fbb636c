"""A graph that loops for ever, or asks for terabytes, is stopped; others run as they do."""

import resource

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from intaglio.passes import evaluate
from intaglio.passes.run_limits import RunLimits, limited

TEXT = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[n] x) => (float[m] y) <int64 rounds = {%d}, bool on = {1}, int64[1] times = {%d}>
    {
        z = Loop (rounds, on, x) <body = b (int64 i, bool c, float[n] a) => (bool d, float[n] e)
            { d = Identity (c) e = Neg (a) }>
        y = Tile (z, times)
    }
"""
X = {"x": np.ones(1 << 16, np.float32)}


def graph(rounds: int = 3, times: int = 2) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT % (rounds, times)))


def test_a_loop_without_end_is_stopped_and_not_begun_again() -> None:
    limits = RunLimits(seconds=0.2)
    with limited(limits):
        session = evaluate.session(graph(rounds=1 << 62))
        for _ in range(2):
            with pytest.raises(TimeoutError, match="more than 0 s on one call"):
                session.run(None, X)


def test_memory_beyond_the_limit_is_refused_and_the_limit_taken_back() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited(RunLimits(bytes=1 << 28)):
        session = evaluate.session(graph(times=4096))
        with pytest.raises(Exception, match=r"(?i)alloc"):
            session.run(None, X)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_limits_leave_what_a_graph_gives_alone() -> None:
    with limited(RunLimits.of(graph())):
        (found,) = evaluate.session(graph()).run(None, X)
    np.testing.assert_array_equal(found, np.tile(-X["x"], 2))
