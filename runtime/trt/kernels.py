"""The kernels of one plugin node as data: a plan and machine code for each compute capability.

They lie in a bundle as `trt/plugins.json` beside a file for each piece of code, and in an engine
as fields of its plugins: plans in each, and a piece of code, by its content, in one of those that
launch it.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from intaglio.errors import BundleError
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.launch import LaunchPlan
from intaglio.runtime.plain_files import parse_json

TARGET = "trt"
INDEX = "trt/plugins.json"  # of the main graph; that of another one lies beside it
FOLDER = "kernels"  # beside the index
_PLANS = "plans"


@dataclass(frozen=True, kw_only=True)
class NodeKernels:
    """What one kind of node launches.

    Attributes:
        op: the operator, as the plugin is called.
        plans: by compute capability.
        code: machine code by ``<capability>/<name>``, the names those of the plan.
    """

    op: str
    plans: Mapping[int, LaunchPlan]
    code: Mapping[str, bytes]

    @property
    def plan(self) -> LaunchPlan:
        """Any of the plans: inputs and outputs are the same for all."""
        return next(iter(self.plans.values()))

    def for_device(self, capability: int) -> LaunchPlan:
        """The plan for a GPU.

        Raises:
            BundleError: if there is no code for it.
        """
        if capability not in self.plans:
            known = ", ".join(map(str, sorted(self.plans)))
            raise BundleError(
                f"The kernels of {self.op} are for compute capability {known}; this GPU has "
                f"{capability}. Export again with --sm {capability}"
            )
        return self.plans[capability]

    def to_fields(self, node: str, carriers: dict[str, str]) -> dict[str, bytes]:
        """Named bytes, as a node of an engine keeps them.

        Args:
            node: its name.
            carriers: which node carries each piece of code, by its digest; this one takes those
                that none carries yet.
        """
        names = {key: hashlib.sha256(code).hexdigest() for key, code in self.code.items()}
        plans = {str(sm): plan.to_json() for sm, plan in self.plans.items()}
        fields = {_PLANS: json.dumps({"op": self.op, "plans": plans, "code": names}).encode()}
        for key, name in names.items():
            if carriers.setdefault(name, node) == node:
                fields[name] = zlib.compress(self.code[key])
        return fields

    def lie_in(self, engine: bytes) -> bool:
        """Whether the nodes of a serialized engine carry all of the code."""
        return all(zlib.compress(code) in engine for code in self.code.values())

    @classmethod
    def from_fields(cls, fields: Mapping[str, bytes], pieces: dict[str, bytes]) -> Self:
        """What `to_fields` wrote; the code that it carries is added to `pieces`.

        Args:
            fields: of a node of an engine.
            pieces: compressed code of all nodes, by its digest; others may still bring what this
                one launches.
        """
        pieces.update({name: data for name, data in fields.items() if name != _PLANS})
        head = json.loads(fields[_PLANS])
        return cls(
            op=head["op"],
            plans={int(sm): LaunchPlan.from_json(plan) for sm, plan in head["plans"].items()},
            code=_Carried(head["code"], pieces),
        )


class _Carried(Mapping[str, bytes]):
    """Code that the nodes of an engine carry for each other, by its names in one of them."""

    def __init__(self, names: Mapping[str, str], pieces: Mapping[str, bytes]) -> None:
        self._names, self._pieces = names, pieces

    def __getitem__(self, key: str) -> bytes:
        return zlib.decompress(self._pieces[self._names[key]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def index(
    kernels: Mapping[str, NodeKernels], nodes: Mapping[str, str], place: str = INDEX
) -> dict[str, Any]:
    """What `INDEX` holds: kernels by name, and for each node of the graph the name of its own.

    `place` is where it lies in the bundle, with its code beside it.
    """
    return {
        "kernels": {
            name: {
                "op": each.op,
                "plans": {str(sm): plan.to_json() for sm, plan in each.plans.items()},
                "code": {key: file_of(name, key, place) for key in each.code},
            }
            for name, each in kernels.items()
        },
        "nodes": dict(nodes),
    }


def file_of(name: str, key: str, place: str = INDEX) -> str:
    """The file of a bundle that holds the code `key` of the kernels `name` of an index."""
    capability, _, entry = key.partition("/")
    file = f"{name}.{entry}.sm_{capability}.cubin"
    return str(PurePosixPath(place).with_name(FOLDER) / file)


def _index(graph: BundleGraph) -> Any:
    name = graph.beside(TARGET, INDEX)
    try:
        return parse_json(graph.bundle.read(name))
    except ValueError as error:
        raise BundleError(f"{graph.root / name} is not JSON: {error}. Export again.") from error


def code_of(graph: BundleGraph) -> tuple[str, ...]:
    """The files from which machine code is loaded for an engine of the graph, by its own index.

    Raises:
        BundleError: if the index is absent or changed, or none.
    """
    with _told(graph):
        kernels = _index(graph)["kernels"].values()
        return tuple(str(path) for each in kernels for path in each["code"].values())


@contextlib.contextmanager
def _told(graph: BundleGraph) -> Iterator[None]:
    """Turn what an index of another form brings about into an error of ours.

    Raises:
        BundleError: in place of it.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{graph.root / graph.beside(TARGET, INDEX)} is no index of kernels. Export again."
        ) from error


def read(graph: BundleGraph) -> dict[str, NodeKernels]:
    """Kernels by the name of each node that launches them; checked against the manifest.

    Raises:
        BundleError: if a file is absent or changed.
    """
    with _told(graph):
        entry = _index(graph)
        kernels = {name: _kernels(graph, each) for name, each in entry["kernels"].items()}
        return {node: kernels[name] for node, name in entry["nodes"].items()}


def _kernels(graph: BundleGraph, entry: Any) -> NodeKernels:
    return NodeKernels(
        op=entry["op"],
        plans={int(sm): LaunchPlan.from_json(plan) for sm, plan in entry["plans"].items()},
        code={key: graph.bundle.read(path) for key, path in entry["code"].items()},
    )


def operators(graph: BundleGraph) -> dict[str, frozenset[int]]:
    """The operators whose plugins a graph's engine has, and the GPUs that all their code is for.

    Raises:
        BundleError: if the index is absent or changed.
    """
    found: dict[str, frozenset[int]] = {}
    with _told(graph):
        for each in _index(graph)["kernels"].values():
            capabilities = frozenset(map(int, each["plans"]))
            found[each["op"]] = found.get(each["op"], capabilities) & capabilities
    return found
