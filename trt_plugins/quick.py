"""Our kernels as quickly deployable plugins of full TensorRT 10.9 and later.

TensorRT takes the PTX of a kernel into the engine, with its launch as expressions over the shapes,
and the engine then needs neither Python nor a plugin library.  Such a plugin is one launch: of a
plan, those variants that are one become tactics, and TensorRT times them when it builds.  Every
variant computes all shapes, so that any of them may be chosen.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-plugins.html
"""

import inspect
from collections.abc import Callable, Sequence
from types import GenericAlias
from typing import Any

from intaglio.errors import UnsupportedError
from intaglio.runtime.launch import Buffer, Expression, Launch, LaunchPlan, Size

from .ahead import CompiledPlan

NAMESPACE = "intaglio"
WIDE = (
    48 << 10
)  # bytes of shared memory beyond which a kernel has to ask, which TensorRT may not do

_DTYPES = {
    "float16": ("FP16", "HALF"),
    "bfloat16": ("BF16", "BF16"),
    "float32": ("FP32", "FLOAT"),
    "int32": ("INT32", "INT32"),
    "bool": ("BOOL", "BOOL"),
}
_CALLS = {"ceil_div": "cdiv", "max": "max", "min": "min"}


def define(trt: Any, name: str, compiled: CompiledPlan, inputs: Sequence[str]) -> str:
    """Register a plugin that launches what was compiled.

    Args:
        trt: the module `tensorrt`, with `tensorrt.plugin` imported.
        name: of the plugin; one for each request.
        compiled: kernels for the compute capability of the engine's GPU.
        inputs: names of the plan's inputs; absent ones are not among those of the node.

    Returns:
        What names the plugin: ``intaglio::<name>``.

    Raises:
        UnsupportedError: if no variant is one launch with shared memory that needs no asking.
    """
    quick, plan = trt.plugin, compiled.plan
    launches = [
        variant.launches[0]
        for variant in plan.variants
        if len(variant.launches) == 1 and variant.launches[0].shared <= WIDE
    ]
    if not launches:
        raise UnsupportedError(
            f"{name}: every way to compute it takes several kernels or more than {WIDE >> 10} KB "
            "of shared memory; a quickly deployable plugin is one launch."
        )
    present = [index for index, dtype in enumerate(plan.inputs) if dtype is not None]
    names = [inputs[index] for index in present]
    for launch in launches:
        _check(name, launch, plan, present)
    identity = f"{NAMESPACE}::{name}"
    one: Any = quick.TensorDesc
    several = GenericAlias(tuple, (one,) * len(plan.outputs))

    def described(*tensors: Any) -> Any:
        by_index = dict(zip(present, tensors, strict=True))
        made = tuple(
            quick.from_shape_expr(
                tuple(_express(quick, size, by_index) for size in output.shape),
                getattr(trt.DataType, _DTYPES[output.dtype][1]),
            )
            for output in plan.outputs
        )
        return made if len(made) > 1 else made[0]

    def tuned(*_: Any) -> Any:
        kinds = [*(plan.inputs[index] for index in present), *(o.dtype for o in plan.outputs)]
        dtypes = ", ".join(_DTYPES[str(kind)][0] for kind in kinds)
        tactics = list(range(1, len(launches) + 1))
        return [quick.AutoTuneCombination(dtypes, "LINEAR", tactics)]

    def implemented(*given: Any) -> Any:
        *tensors, _, tactic = given
        launch = launches[max(tactic, 1) - 1]
        by_index = dict(zip(present, tensors, strict=True))
        how = quick.KernelLaunchParams()
        how.grid_x, how.grid_y, how.grid_z = (
            _express(quick, size, by_index) for size in launch.grid
        )
        how.block_x, how.shared_mem = launch.threads, launch.shared
        sizes = [each for each in launch.arguments if not isinstance(each, Buffer)]
        extra = quick.SymIntExprs(len(sizes))
        for index, size in enumerate(sizes):
            extra[index] = quick.SymInt32(_express(quick, size, by_index))
        return launch.entry, compiled.code[launch.code].ptx, how, extra

    tensors = dict.fromkeys(names, one)
    made = several if len(plan.outputs) > 1 else one
    known = {**tensors, "outputs": several}
    kernel = GenericAlias(tuple, (str, str, quick.KernelLaunchParams, quick.SymIntExprs))
    quick.register(identity)(_signed(described, tensors, made))
    quick.autotune(identity)(
        _signed(tuned, known, GenericAlias(list, (quick.AutoTuneCombination,)))
    )
    quick.aot_impl(identity)(_signed(implemented, {**known, "tactic": int}, kernel))
    return identity


def _check(name: str, launch: Launch, plan: LaunchPlan, present: Sequence[int]) -> None:
    """Hold a launch to the order in which TensorRT passes arguments: inputs, integers, outputs."""
    inputs = [Buffer("input", index) for index in present]
    outputs = [Buffer("output", index) for index in range(len(plan.outputs))]
    count = len(launch.arguments) - len(inputs) - len(outputs)
    order = [*inputs, *launch.arguments[len(inputs) : len(inputs) + count], *outputs]
    if list(launch.arguments) != order or any(
        isinstance(each, Buffer) for each in order[len(inputs) : len(inputs) + count]
    ):
        raise UnsupportedError(f"{name}: {launch.entry} takes its arguments in another order.")


def _signed(function: Callable[..., Any], parameters: dict[str, Any], returns: Any) -> Any:
    """The function with the signature that TensorRT reads."""

    def call(*args: Any, **named: Any) -> Any:
        return function(*args, *named.values())

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__dict__["__signature__"] = inspect.Signature(
        [inspect.Parameter(name, kind, annotation=note) for name, note in parameters.items()],
        return_annotation=returns,
    )
    return call


def _express(quick: Any, size: Size, inputs: dict[int, Any]) -> Any:
    """A size in the words of tensorrt.plugin."""
    if not isinstance(size, Expression):
        return size
    if size.operation == "dim":
        index, axis = size.of
        return inputs[int(index)].shape_expr[axis]  # type: ignore[arg-type]
    a, b = (_express(quick, each, inputs) for each in size.of)
    if size.operation in _CALLS:
        return getattr(quick, _CALLS[size.operation])(a, b)
    return {
        "sum": lambda: a + b,
        "sub": lambda: a - b,
        "prod": lambda: a * b,
        "less": lambda: a < b,
        "floor_div": lambda: a // b,
    }[size.operation]()
