"""Running one operator in ONNX Runtime, and cutting a sequence into calls."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from intaglio.ops.op import Op, Sample, overload, own_function

Array = npt.NDArray[Any]
Engine = Callable[[Sample], list[Array]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def engine_of() -> Callable[..., Engine]:
    """An operator as ONNX Runtime runs it, for the inputs and attributes that a sample has.

    In the standard domain ONNX Runtime 1.32 has no kernel for the recurrent operators and none for
    Attention-25: it inlines the body that the standard gives them.
    """

    def make(op: Op, sample: Sample, domain: str, opset: int) -> Engine:
        names = [name if isinstance(sample.get(name), Tensor) else "" for name in op.inputs]
        while not names[-1]:
            names.pop()
        outputs = [formal.name for formal in op.schema.outputs][
            : 3 if op.name == "attention" else 2
        ]
        node = helper.make_node(
            op.onnx_type, names, outputs, domain=domain, **op.attributes(sample)
        )
        inputs = [
            # the body of a convolution is built for the size of its kernel
            helper.make_tensor_value_info(
                name,
                TensorProto.FLOAT,
                list(sample[name].shape) if name == "weight" else [None] * sample[name].dim(),
            )
            for name in names
            if name
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(
            helper.make_graph([node], op.name, inputs, results), opset_imports=imports
        )
        return _engine(model, names)

    return make


@pytest.fixture(scope="session")
def own_engine_of() -> Callable[..., Engine]:
    """An operator of our own as ONNX Runtime runs the body that it carries."""

    def make(op: Op, sample: Sample, opset: int) -> Engine:
        present = [name for name in op.inputs if isinstance(sample.get(name), Tensor)]
        attributes = op.attributes(sample)
        outputs = [formal.name for formal in op.schema.outputs]
        node = helper.make_node(
            op.onnx_type,
            [name if name in present else "" for name in op.inputs],
            outputs,
            domain=op.domain,
            overload=overload(present, attributes),
            **attributes,
        )
        inputs = [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(sample[name].numpy().dtype),
                [None] * sample[name].dim(),
            )
            for name in present
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        model = helper.make_model(
            helper.make_graph([node], op.name, inputs, results),
            functions=[own_function(op, present, attributes, opset)],
            opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(op.domain, 1)],
        )
        return _engine(model, present)

    return make


def _engine(model: onnx.ModelProto, names: Sequence[str]) -> Engine:
    model.ir_version = onnx.IR_VERSION
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(given: Sample) -> list[Array]:
        results: list[Array] = session.run(None, {n: given[n].numpy() for n in names if n})
        return results

    return run


def cuts(length: int, parts: Sequence[int]) -> Iterator[list[int]]:
    """Two parts, each out of `parts`, and what is left of `length`."""
    for first, second in itertools.product(parts, repeat=2):
        if first + second <= length:
            yield [part for part in (first, second, length - first - second) if part]
    yield [1] * length


@pytest.fixture(scope="session")
def cut_into() -> Callable[[int, Sequence[int]], list[list[int]]]:
    """Every way to give a sequence in two parts of the given sizes and a rest; and one by one."""
    return lambda length, parts: [[length], *cuts(length, parts)]


@pytest.fixture(scope="session")
def close() -> Callable[[Tensor | Array, Tensor | Array, float], None]:
    """max|a-b| <= limit * max|b|."""

    def check(got: Tensor | Array, wanted: Tensor | Array, limit: float) -> None:
        a, b = (np.asarray(x, np.float64) for x in (got, wanted))
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= limit * max(np.abs(b).max(initial=0), 1e-30)

    return check
