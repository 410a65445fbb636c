"""Layouts: how checkpoints that other code wrote are read into a model here.

A layout is a record at the end of the model's file; `renamed` is all that most need of weights:
``renamed(tensors, {"A_log": "encoder.A_log"})``.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from intaglio.errors import SourceError

from ._values import fits, words

REQUIRED = object()
LIBRARY = frozenset(  # what transformers writes into a config.json whatever the model
    {
        *("_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures"),
        *("auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id"),
        *("finetuning_task", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder"),
        *("keys_to_ignore_at_inference", "label2id", "max_position_embeddings", "model_type"),
        *("output_attentions", "output_hidden_states", "pad_token_id", "prefix", "problem_type"),
        *("pruned_heads", "return_dict", "tokenizer_class", "torch_dtype", "torchscript"),
        *("transformers_version", "use_bfloat16", "use_cache"),
    }
)
Values = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """The names, shapes and config values of checkpoints of a model that other code wrote.

    `fits` is asked first, of the config that came with the weights ({} without one) and the names
    in the file: it answers for any values, and tells by as few as possible whose file it is.
    `configure` makes the values of `Model.configure` of the config and the shapes by name,
    `weights` the tensors by our names of those in the file and of the config that came out.

    Both raise `SourceError` for what they refuse, and may leave a `KeyError` that names the value
    or the tensors that are missing.  Whatever tensor is not asked for is unexpected in the file.
    `source` is the repository, its commit and the file that all this was read from.  `beside` are
    values of the config that name further files of the same directory: a tensor is given as
    ``VALUE``, the k-th of a list as ``VALUE.k``, and one of a state dict as ``VALUE.name``.

    `immaterial` are values of the config that change nothing of what is computed, beside those of
    `LIBRARY`: where it is given, a value that `configure` does not ask for and that is not among
    them is refused, unless it is null.
    """

    name: str
    source: str
    fits: Callable[[Values, Collection[str]], bool]
    configure: Callable[[Values, Shapes], dict[str, Any]]
    weights: Callable[[Mapping[str, Tensor], Any], dict[str, Tensor]]
    beside: tuple[str, ...] = ()
    immaterial: Collection[str] | None = None


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under new names, of new name -> name in the file.

    Raises:
        KeyError: the file lacks some; they are its arguments.
    """
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise KeyError(*missing)
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def read_value(values: Values, name: str, kind: Any, default: Any = REQUIRED) -> Any:
    """The config's value `name` of an annotation as a config has it, as ``int | None``.

    Raises:
        KeyError: it is missing and has no default.
        SourceError: it is of another kind.
    """
    found = values[name] if default is REQUIRED else values.get(name, default)
    if name in values and not fits(found, kind):
        raise SourceError(f"its config has {name} = {found!r}; it should be {words(kind)}")
    return found


def refuse(values: Values, supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Hold options to the values that are supported, by name; one that is absent passes.

    Raises:
        SourceError: one has another value.
    """
    for name, known in supported.items():
        if name in values and not any(_same(values[name], value) for value in known):
            choices = " or ".join(map(repr, known))
            raise SourceError(
                f"its config has {name} = {values[name]!r}, of which only {choices} is supported"
            )


def _same(found: object, known: object) -> bool:
    """Equal and of one kind: 1 is not true."""
    return found == known and isinstance(found, bool) == isinstance(known, bool)


class Asked(Mapping[str, Any]):
    """A config, and which of its values were asked for."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def check(self, immaterial: Collection[str], within: str = "") -> None:
        """Hold the values that nobody asked for to those that change nothing.

        Args:
            immaterial: their names, beside those of `LIBRARY`.
            within: the name of this config where it is a value of another.

        Raises:
            SourceError: one is not known to.
        """
        known = {*self.names, *LIBRARY, *immaterial}
        for name, value in self._values.items():
            if value is not None and name not in known:
                full = f"{within}.{name}" if within else name
                raise SourceError(f"its config has {full} = {value!r}, which is not known")
