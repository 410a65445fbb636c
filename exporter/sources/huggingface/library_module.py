"""Build the library's own module from a directory: its class, its config, its weights.

The module is built without memory, and the tensors of the files become its parameters: what is
fp32 in the file is mapped, what is half precision is widened.  The library renames and merges keys
of older checkpoints and ties what the config ties; what it reports is held to here.  It is given
tensors, not a path, and may not ask the network.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.low_bit_projections import CONFIG as LOW_BIT
from intaglio.exporter.sources.low_bit_projections import put_in, split
from intaglio.exporter.sources.state_dict import check_names, check_shapes, check_values
from intaglio.quiet import quiet, summary

from .directory import Directory, stored_bytes
from .module_size import check_counts, within

ATTENTIONS = ("sdpa", "eager")  # in the order in which they are tried
SHOWN = 6


def build(directory: Directory, *, allow_code: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module with its weights, in eval mode and float32, and notes for people.

    Raises:
        SourceError: if the library does not know the model, or the weights do not fit it.
    """
    held = directory.tensors()
    tensors, stored = split(directory.path, held, directory.config.get(LOW_BIT))
    with quiet(), _offline(), within(held, packed=bool(stored)):
        config = _config(directory, allow_code=allow_code)
        kind = _class(directory, config, allow_code=allow_code)
        module, report = _fill(directory, kind, config, tensors)
    notes = tuple(put_in(module, stored, report))
    _check(directory, module, report)
    return module.eval().requires_grad_(requires_grad=False), (
        *notes,
        *_cost(directory, tensors, module),
        *_unused(report["unexpected_keys"]),
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let the library find no repository that a config names, as that of a backbone."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _config(directory: Directory, *, allow_code: bool) -> Any:
    import transformers

    kind, path = directory.config.get("model_type"), directory.path
    check_counts(directory.config, path / "config.json")
    auto = _auto_map(directory)
    known = isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
    if not known and auto and not allow_code:
        raise SourceError(
            f"{path} is built by code of its own ({', '.join(_code_files(auto))}). Where that is "
            "trusted, allow it with --allow-code."
        )
    if not known and not auto:
        raise SourceError(
            f"{path / 'config.json'} says model_type {kind!r}, which transformers "
            f"{transformers.__version__} does not know. Install a version that does, or say how "
            "the model is built: give the weights file with --model package.module:factory."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(
            path.resolve(), local_files_only=True, trust_remote_code=allow_code
        )
    except Exception as error:
        raise SourceError(f"{path / 'config.json'} is refused: {summary(error)}.") from error
    if hasattr(config, LOW_BIT):  # the library would ask for the quantizer's own package
        delattr(config, LOW_BIT)
    return config


def _auto_map(directory: Directory) -> Mapping[str, Any]:
    """The classes of its own that a directory names, by those of the library.

    Raises:
        SourceError: if it is no table.
    """
    auto = directory.config.get("auto_map") or {}
    if not isinstance(auto, Mapping):
        raise SourceError(f"{directory.path / 'config.json'} has an auto_map that is no table.")
    return auto


def _code_files(auto_map: Mapping[str, Any]) -> list[str]:
    """Files, or repositories, that an auto_map takes classes from."""
    names = [name for entry in auto_map.values() for name in _as_list(entry) if name]
    return sorted({f"{name.rpartition('.')[0]}.py" for name in names})


def _as_list(value: Any) -> list[str]:
    return [str(x) for x in value] if isinstance(value, list | tuple) else [str(value)]


def _architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _class(directory: Directory, config: Any, *, allow_code: bool) -> Any:
    """The class that the directory names, of the library or of its own code."""
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    name, auto = _architecture(directory.config), _auto_map(directory)
    reference = next((r for r in map(str, auto.values()) if r.rpartition(".")[2] == name), None)
    if reference is not None and allow_code:
        try:
            return get_class_from_dynamic_module(
                reference, str(directory.path.resolve()), local_files_only=True
            )
        except Exception as error:
            raise SourceError(
                f"The code of {directory.path} ({reference}) cannot be loaded: {summary(error)}."
            ) from error
    kind = None if name is None else getattr(transformers, name, None)
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind  # a config may name anything that the library has: a trainer, a pipeline
    if name is None:
        for family in (transformers.AutoModelForCausalLM, transformers.AutoModel):
            if type(config) in family._model_mapping:  # noqa: SLF001  the library has no other way
                return family._model_mapping[type(config)]  # noqa: SLF001
    raise SourceError(
        f"{directory.path / 'config.json'} names the architecture {name!r}, which transformers "
        f"{transformers.__version__} does not have. Install a version that does."
    )


def _fill(
    directory: Directory, kind: Any, config: Any, tensors: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the module and put the weights into it; return what the library says it did."""
    for attention in ATTENTIONS:
        options = {"attn_implementation": attention, "experts_implementation": "batched_mm"}
        try:
            module, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported, and refused below
                output_loading_info=True,
                **options,
            )
        except Exception as error:
            if attention != ATTENTIONS[-1] and "attention implementation" in str(error):
                continue
            raise SourceError(
                f"{kind.__name__} cannot be built from {directory.path}: {summary(error)}."
            ) from error
        return module, report
    raise AssertionError(ATTENTIONS)


def _cost(directory: Directory, tensors: Mapping[str, Tensor], module: nn.Module) -> Iterator[str]:
    """Say what widening half precision costs."""
    before = stored_bytes(tensors)
    half = sorted(before.keys() & {"float16", "bfloat16"})
    if half:
        after = sum(x.nbytes for x in module.state_dict(keep_vars=True).values())
        yield (
            f"{directory.path.name}: {' and '.join(half)} weights are widened to float32: "
            f"{sum(before.values()):,} bytes become {after:,}."
        )


def _check(directory: Directory, module: nn.Module, report: Mapping[str, Any]) -> None:
    """Refuse weights that do not fill the module, or that belong to a larger one."""
    path = directory.path
    if report.get("error_msgs"):
        raise SourceError(f"The weights of {path} cannot be loaded: {report['error_msgs'][0]}")
    check_shapes([tuple(entry) for entry in report["mismatched_keys"]], path)
    expected = list(module.state_dict())
    missing = set(report["missing_keys"])
    forms = {_form(name) for name in expected}
    alike = [name for name in report["unexpected_keys"] if _form(name) in forms]
    if missing or alike:
        unexpected = list(report["unexpected_keys"]) if missing else alike
        found = [name for name in expected if name not in missing] + unexpected
        check_names(found, expected, path)
    check_values(dict(module.named_parameters()), module, path)


def _form(name: str) -> str:
    """`name` without the numbers in it, which count layers."""
    return re.sub(r"\d+", "#", name)


def _unused(names: Any) -> Iterator[str]:
    if names:
        shown = sorted(names)
        more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        yield f"{len(shown)} weights have no place in the model: {', '.join(shown[:SHOWN])}{more}."
