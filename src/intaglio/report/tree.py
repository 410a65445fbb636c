"""Time of modules as a tree along their paths."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Branch:
    """A module: its own time, and that of the modules within it."""

    name: str
    own: float = 0.0
    children: dict[str, "Branch"] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Time of the module with all that is within it."""
        return self.own + sum(child.total for child in self.children.values())

    def ordered(self) -> list["Branch"]:
        """Modules within it: numbered ones in their order, others by time."""
        found = list(self.children.values())
        if all(child.name.isdecimal() for child in found):
            return sorted(found, key=lambda child: int(child.name))
        return sorted(found, key=lambda child: -child.total)


def tree(times: Iterable[tuple[str, float]]) -> Branch:
    """The tree of module paths with their times; a module that only holds one joins with it."""
    root = Branch("")
    for path, time in times:
        branch = root
        for name in path.split(".") if path else []:
            branch = branch.children.setdefault(name, Branch(name))
        branch.own += time
    _join(root)
    return root


def _join(branch: Branch) -> None:
    pending = [branch]
    while pending:
        here = pending.pop()
        joined = {}
        for child in here.children.values():
            while not child.own and len(child.children) == 1:
                (only,) = child.children.values()
                only.name = f"{child.name}.{only.name}"
                child = only  # noqa: PLW2901
            joined[child.name] = child
            pending.append(child)
        here.children = joined
