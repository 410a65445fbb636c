"""What an operator means: its plain loop, its fast form, its ONNX form, its samples."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx.parser
import onnxscript
import torch
from torch import Tensor

from intaglio.signature import ACTIVATIONS, DOMAIN, Formal, Signature

Sample = dict[str, Any]  # arguments of `Op.reference` and `Op.forward`, by name


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operator of the ONNX standard or of ours, and what PyTorch has to know of it.

    `signature` says what it takes, carries and costs.  `reference` is the plain loop over tokens,
    the meaning to which everything else is held; `forward` takes the same arguments and is the
    fast form.  The arguments that are ONNX inputs bear the names of the signature; `attributes`
    turns the others into ONNX attributes.

    An op with `torch_op` stays one node in torch.export.  torch's ONNX converter refuses nodes
    newer than its own opset, so `translation`, an entry of ``custom_translation_table``, emits
    the bare node ``intaglio::<onnx_type>``, described by `bare_schema`; it takes inputs and
    attributes exactly as the standard does, and is moved to `domain` after tracing.

    An op of our own has `own`, the schema that the standard lacks, and `body`, which writes a node
    with the inputs `present` and the given attributes in standard operators, as text of ONNX.
    """

    signature: Signature
    since: int
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
        for kind in ("inputs", "outputs"):
            taken = [formal.name for formal in getattr(self.schema, kind)]
            named = [formal.name for formal in getattr(self.signature, kind)]
            if len(named) > len(taken):
                raise TypeError(f"op {self.name!r}: {self.onnx_type} has {kind} {taken}: {named}")
        bare = self.own
        if bare is None and self.torch_op is not None:
            bare = bare_schema(self.onnx_type, self.since)
        object.__setattr__(self, "bare_schema", bare)

    @property
    def name(self) -> str:
        """The name of its file."""
        return self.signature.name

    @property
    def onnx_type(self) -> str:
        """The operator's type in ONNX."""
        return self.signature.onnx_type

    @property
    def domain(self) -> str:
        """The domain of that type, empty for the standard."""
        return self.signature.domain

    @property
    def ort_domain(self) -> str | None:
        """Where ONNX Runtime has a kernel for the same inputs and outputs."""
        return self.signature.ort_domain

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in their order."""
        return self.signature.names

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


def own_schema(signature: Signature, doc: str) -> onnx.defs.OpSchema:
    """Describe an operator of our own as its signature does."""
    kinds = {int: onnx.defs.OpSchema.AttrType.INT, str: onnx.defs.OpSchema.AttrType.STRING}
    floats = [f"tensor({kind})" for kind in ("float16", "bfloat16", "float", "double")]
    return onnx.defs.OpSchema(
        signature.onnx_type,
        signature.domain,
        1,
        doc=doc,
        inputs=[_parameter(formal) for formal in signature.inputs],
        outputs=[_parameter(formal) for formal in signature.outputs],
        type_constraints=[(ACTIVATIONS, floats, "Any float.")],
        attributes=[
            onnx.defs.OpSchema.Attribute(name, kinds[kind], required=True)
            for name, kind in signature.attributes.items()
        ],
    )


def _parameter(formal: Formal) -> onnx.defs.OpSchema.FormalParameter:
    options = onnx.defs.OpSchema.FormalParameterOption
    dtype = {"float32": "float"}.get(formal.dtype, formal.dtype)
    return onnx.defs.OpSchema.FormalParameter(
        formal.name,
        dtype if dtype == ACTIVATIONS else f"tensor({dtype})",
        param_option=options.Optional if formal.optional else options.Single,
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
    named = f" <{', '.join(attributes)}>" if attributes else ""
    signature = f"{op.onnx_type}{named} ({inputs}) => ({outputs})"
    return onnx.parser.parse_function(f"{head} {signature} {{\n{op.body(present, attributes)}\n}}")


def overload(present: Collection[str], attributes: Mapping[str, Any]) -> str:
    """Name the variant of an operator with these inputs and attributes."""
    return "_".join([*present, *(f"{name}{value}" for name, value in attributes.items())])
