"""The kernels of one plugin node as data: a plan and machine code for each compute capability.

They lie in a bundle as `trt/plugins.json` beside a file for each piece of code, and in an engine
as fields of its plugins.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.launch import Plan

INDEX = "trt/plugins.json"
FOLDER = "trt/kernels"
_PLANS = "plans"


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What one kind of node launches.

    Attributes:
        op: the operator, as the plugin is called.
        plans: by compute capability.
        code: machine code by ``<capability>/<name>``, the names those of the plan.
    """

    op: str
    plans: Mapping[int, Plan]
    code: Mapping[str, bytes]

    @property
    def plan(self) -> Plan:
        """Any of the plans: inputs and outputs are the same for all."""
        return next(iter(self.plans.values()))

    def for_device(self, capability: int) -> Plan:
        """The plan for a GPU.

        Raises:
            BundleError: if there is no code for it.
        """
        if capability not in self.plans:
            known = ", ".join(map(str, sorted(self.plans)))
            raise BundleError(
                f"The kernels of {self.op} are for compute capability {known}; this GPU has "
                f"{capability}. Export again with --sm {capability}."
            )
        return self.plans[capability]

    def to_fields(self) -> dict[str, bytes]:
        """Named bytes, as an engine keeps them: each node its own, so code is compressed."""
        plans = {str(sm): plan.to_json() for sm, plan in self.plans.items()}
        head = json.dumps({"op": self.op, "plans": plans}).encode()
        return {_PLANS: head, **{name: zlib.compress(code) for name, code in self.code.items()}}

    @classmethod
    def from_fields(cls, fields: Mapping[str, bytes]) -> Self:
        """What `to_fields` wrote."""
        head = json.loads(fields[_PLANS])
        return cls(
            op=head["op"],
            plans={int(sm): Plan.from_json(plan) for sm, plan in head["plans"].items()},
            code={name: zlib.decompress(x) for name, x in fields.items() if name != _PLANS},
        )


def index(kernels: Mapping[str, Kernels], nodes: Mapping[str, str]) -> dict[str, Any]:
    """What `INDEX` holds: kernels by name, and for each node of the graph the name of its own."""
    return {
        "kernels": {
            name: {
                "op": each.op,
                "plans": {str(sm): plan.to_json() for sm, plan in each.plans.items()},
                "code": {key: file_of(name, key) for key in each.code},
            }
            for name, each in kernels.items()
        },
        "nodes": dict(nodes),
    }


def file_of(name: str, key: str) -> str:
    """The file of a bundle that holds the code `key` of the kernels `name`."""
    capability, _, entry = key.partition("/")
    return f"{FOLDER}/{name}.{entry}.sm_{capability}.cubin"


def read(bundle: Bundle) -> dict[str, Kernels]:
    """Kernels by the name of each node that launches them; checked against the manifest.

    Raises:
        BundleError: if a file is absent or changed.
    """
    entry = json.loads(bundle.read(INDEX))
    kernels = {
        name: Kernels(
            op=each["op"],
            plans={int(sm): Plan.from_json(plan) for sm, plan in each["plans"].items()},
            code={key: bundle.read(path) for key, path in each["code"].items()},
        )
        for name, each in entry["kernels"].items()
    }
    return {node: kernels[name] for node, name in entry["nodes"].items()}


def operators(bundle: Bundle) -> dict[str, frozenset[int]]:
    """The operators whose plugins a bundle's engine has, and the GPUs that all their code is for.

    Raises:
        BundleError: if the index is absent or changed.
    """
    found: dict[str, frozenset[int]] = {}
    for each in json.loads(bundle.read(INDEX))["kernels"].values():
        capabilities = frozenset(map(int, each["plans"]))
        found[each["op"]] = found.get(each["op"], capabilities) & capabilities
    return found
