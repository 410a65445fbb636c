"""What an operator declares, once: its meaning, its fast form, its ONNX form, its samples."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx.parser
import onnxscript
import torch
from torch import Tensor

DOMAIN = "intaglio"

Sample = dict[str, Any]  # arguments of `Op.reference` and `Op.forward`, by name


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator of the ONNX standard or of ours, and what PyTorch has to know of it.

    `reference` is the plain loop over tokens, the meaning to which everything else is held;
    `forward` takes the same arguments and is the fast form.  `inputs` names the arguments that
    are ONNX inputs, in the order of the standard ("" where it has one more that is never used);
    `attributes` turns the others into ONNX attributes.  ONNX Runtime has a native kernel for the
    same signature in `ort_domain`, or None.

    An op with `torch_op` stays one node in torch.export.  torch's ONNX converter refuses nodes
    newer than its own opset, so `translation`, an entry of ``custom_translation_table``, emits
    the bare node ``intaglio::<onnx_type>``, described by `bare_schema`; it takes inputs and
    attributes exactly as the standard does, and is moved to `domain` after tracing.

    An op of our own has `own`, the schema that the standard lacks, and `body`, which writes a node
    with the inputs `present` and the given attributes in standard operators, as text of ONNX.
    """

    name: str
    onnx_type: str
    since: int
    domain: str = ""
    ort_domain: str | None = None
    inputs: Sequence[str]
    attributes: Callable[[Sample], Mapping[str, Any]]
    reference: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., tuple[Tensor, ...] | Tensor]
    samples: Callable[[torch.dtype], list[Sample]]
    tolerance: Mapping[torch.dtype, float]
    source: str
    torch_op: Any = None
    translation: Callable[..., Any] | None = None
    own: onnx.defs.OpSchema | None = None
    body: Callable[[Collection[str], Mapping[str, Any]], str] | None = None
    bare_schema: onnx.defs.OpSchema | None = field(init=False)

    def __post_init__(self) -> None:
        """Check the declaration against the standard and derive the bare schema."""
        taken = [formal.name for formal in self.schema.inputs]
        if len(self.inputs) > len(taken):
            raise TypeError(f"op {self.name!r}: {self.onnx_type} takes {taken}, not {self.inputs}")
        bare = self.own
        if bare is None and self.torch_op is not None:
            bare = bare_schema(self.onnx_type, self.since)
        object.__setattr__(self, "bare_schema", bare)

    @property
    def schema(self) -> onnx.defs.OpSchema:
        """The operator's entry in the ONNX standard, or its own."""
        return self.own or onnx.defs.get_schema(self.onnx_type, self.since, self.domain)


def bare_schema(onnx_type: str, since: int) -> onnx.defs.OpSchema:
    """Describe a standard operator once more, in the domain intaglio, version 1."""
    schema = onnx.defs.get_schema(onnx_type, since, "")
    return onnx.defs.OpSchema(
        onnx_type,
        DOMAIN,
        1,
        doc=f"The same as {onnx_type} of the ONNX standard, opset {since}.",
        inputs=list(schema.inputs),
        outputs=list(schema.outputs),
        type_constraints=[
            (kind.type_param_str, list(kind.allowed_type_strs), kind.description)
            for kind in schema.type_constraints
        ],
        attributes=[
            onnx.defs.OpSchema.Attribute(name, entry.default_value, entry.description)
            if entry.default_value.type
            else onnx.defs.OpSchema.Attribute(name, entry.type, entry.description, required=True)
            for name, entry in schema.attributes.items()
        ],
    )


def bare_node(onnx_type: str, since: int) -> Any:
    """Return the function that emits ``intaglio::<onnx_type>`` while torch's exporter runs."""
    opset = onnxscript.values.Opset(DOMAIN, 1)
    return onnxscript.values.Op(opset, onnx_type, bare_schema(onnx_type, since))


def own_node(schema: onnx.defs.OpSchema) -> Any:
    """Return the function that emits an operator of our own while torch's exporter runs."""
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), schema.name, schema)


def own_schema(
    onnx_type: str,
    doc: str,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    optional: Collection[str] = (),
    attributes: Collection[str] = (),
    strings: Collection[str] = (),
) -> onnx.defs.OpSchema:
    """Describe an operator of our own: types by name ("T" for any float).

    `attributes` are integers, `strings` are attributes as well.
    """
    single, option = (
        getattr(onnx.defs.OpSchema.FormalParameterOption, name) for name in ("Single", "Optional")
    )
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    kinds = onnx.defs.OpSchema.AttrType
    floats = [f"tensor({kind})" for kind in ("float16", "bfloat16", "float", "double")]
    return onnx.defs.OpSchema(
        onnx_type,
        DOMAIN,
        1,
        doc=doc,
        inputs=[
            parameter(name, kind, param_option=option if name in optional else single)
            for name, kind in inputs.items()
        ],
        outputs=[parameter(name, kind) for name, kind in outputs.items()],
        type_constraints=[("T", floats, "Any float.")],
        attributes=[
            *(attribute(name, kinds.INT, required=True) for name in attributes),
            *(attribute(name, kinds.STRING, required=True) for name in strings),
        ],
    )


def own_function(
    op: Op, present: Collection[str], attributes: Mapping[str, Any], opset: int
) -> onnx.FunctionProto:
    """Write a node of an operator of our own as a function of standard ones.

    The function is one overload among several: `overload` tells for which attributes and inputs.
    """
    if op.body is None:
        raise TypeError(f"op {op.name!r} has no body")
    inputs = ", ".join(op.inputs)
    outputs = ", ".join(formal.name for formal in op.schema.outputs)
    variant = overload(present, attributes)
    head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}], overload: "{variant}">'
    signature = f"{op.onnx_type} <{', '.join(attributes)}> ({inputs}) => ({outputs})"
    return onnx.parser.parse_function(f"{head} {signature} {{\n{op.body(present, attributes)}\n}}")


def overload(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Name the variant of an operator with these inputs and attributes."""
    return "_".join([*present, *(f"{name}{value}" for name, value in attributes.items())])
