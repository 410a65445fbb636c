"""What a bundle carries along beside graphs and text: adapters that a session may switch to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from intaglio.runtime.adapters import FOLDER, Adapter


@dataclass(frozen=True)
class Bundled:
    """Adapters by name."""

    adapters: Mapping[str, Adapter]

    def save(self, bundle: Path) -> None:
        """Write them into the folder of a bundle."""
        (bundle / FOLDER).mkdir()
        for name, adapter in self.adapters.items():
            adapter.save(bundle / FOLDER / f"{name}.npz")
