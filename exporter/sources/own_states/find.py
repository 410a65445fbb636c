"""Find the states that a module carries itself, and describe its inputs with them.

A pair of an input and an output is a state where the user says so, where the module keeps it in
itself, where names pair up (`names`; those of keys, of named tuples, or in the return statement),
where both are nested alike, as the ``(h, c)`` of an LSTM, or where an input that is called like a
state has the shape and dtype of one output, and no other input has.  One that `forward` takes, and
the examples leave out, is tried (`left_out`).
"""

import inspect
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.loading import Inputs, LoadOptions
from intaglio.exporter.sources.axes import Layouts
from intaglio.exporter.sources.examples import (
    describe_inputs,
    guess_specs,
    name_axes,
    read_inputs,
    sizes_of,
    spec_of,
)
from intaglio.exporter.sources.guess_axes import EXAMPLE, example_sizes
from intaglio.exporter.sources.input_spec import InputSpec, Takes, sampler
from intaglio.exporter.sources.named_forward import named_forward
from intaglio.exporter.sources.outputs import leaves, name_outputs
from intaglio.passes.base import OwnState
from intaglio.spelling import perhaps
from intaglio.state import BATCH, TIME

from .beside_others import beside_others
from .from_empty import from_empty
from .functional import Functional, flatten, present
from .grown import grown, told, with_entries
from .initial import initial_of, split_initial
from .kept import as_it_was, find_kept
from .left_out import caches_left_out, states_left_out
from .paired_names import pair, says_state
from .returned import returned_names
from .state_axes import Shape, Sizing, changes_per_call, settle

NONE = "none"  # in place of a state: there is none


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a module takes, the states among it, values of scalars, and what was decided."""

    takes: Takes
    states: tuple[OwnState, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def describe(
    module: nn.Module, inputs: Inputs | None, options: LoadOptions, owner: str
) -> Described:
    """Describe what `module` takes; where it carries states itself, it may get a flat form.

    Raises:
        SourceError: as `describe_inputs`, or if what it keeps has no value to start from.
        OptionError: if `options` name states or axes that are not there.
    """
    plain = options.states is not None and NONE in options.states
    if plain or options.whole or (options.condition and not options.states):
        return _plainly(module, inputs, options, owner)
    arguments = with_entries(_arguments(module, inputs, owner))
    left_out = states_left_out(module, arguments, options.axes or {}, options.states or {})
    if left_out is not None:
        arguments |= left_out.arguments
    else:
        arguments |= caches_left_out(module, arguments)
    trial = _try(module, arguments)
    if trial is None:
        _refuse_unknown(options, owner)
        return _plainly(module, inputs, options, owner)
    form, outputs, aliases = trial
    known = {} if left_out is None else dict(left_out.outputs)
    asked = options.states or {}
    caches = grown({name: form.inputs[name] for name in form.given}, outputs)
    if not any(says_state(name) or name in asked for name in caches):
        caches = {}
    known |= {name: each.output for name, each in caches.items()}
    layouts = Layouts.of(options.axes or {})
    _refuse_free(asked, layouts)
    along = beside_others(module, arguments) if not asked else set()
    pairs = _pairs(asked, form, outputs, aliases, owner, known, layouts, along)
    if caches or form.grows:
        states = {n: pairs[n][0] for n in form.given if n in pairs and n not in caches}
        takes = from_empty(module, form, caches, states, options, owner)
        if takes is not None:
            return Described(takes=takes, notes=takes.notes)
        if form.grows:
            raise _not_by_tokens(form)
        pairs = {name: pair for name, pair in pairs.items() if name not in caches}
    if not pairs and not form.changes:
        found = _plainly(module, inputs, options, owner)
        return replace(found, notes=(*found.notes, *told(form.inputs, outputs)))
    found = _described(module, form, outputs, pairs, options, owner)
    return found if pairs else replace(found, notes=(*found.notes, *told(form.inputs, outputs)))


def _not_by_tokens(form: Functional) -> SourceError:
    return SourceError(
        f"The module keeps {next(iter(form.grows)).words}, which each call makes longer, and what "
        "it gives for several tokens at once is not what it gives for one after the other. Give it "
        "a causal mask, or an example of one token in each call; or --state none, to export what a "
        "first call gives."
    )


def _plainly(
    module: nn.Module, inputs: Inputs | None, options: LoadOptions, owner: str
) -> Described:
    """A module that carries no states itself."""
    takes = describe_inputs(module, inputs, options.axes, owner, options.condition)
    return Described(takes=takes, notes=takes.notes)


def _arguments(module: nn.Module, inputs: Inputs | None, owner: str) -> dict[str, Any]:
    """Example arguments of `forward`, those of one nested argument put together."""
    if inputs is None:
        return dict(sampler(guess_specs(module, owner))({BATCH: 2, TIME: 3}, 0))
    given = read_inputs(inputs, module)
    named_forward(module, list(given))
    known = _parameters(module)
    found: dict[str, Any] = {}
    for name, value in given.items():
        stem, _, place = name.rpartition("_")
        if name not in known and stem in known and place.isdigit():
            found.setdefault(stem, []).append(value)
        else:
            found[name] = value
    return {n: tuple(v) if type(v) is list and n not in given else v for n, v in found.items()}


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


Trial = tuple[Functional, dict[str, Tensor], dict[str, set[str]]]


def _try(module: nn.Module, arguments: Mapping[str, Any]) -> Trial | None:
    """The flat form, outputs by name, and the further names of each; None if it does not run."""

    def run() -> dict[str, Tensor]:
        return name_outputs(module, module(**arguments))

    try:
        kept = find_kept(module, run)
    except SourceError:
        raise
    except Exception:  # noqa: BLE001  what does not run is told by who traces it
        return None
    if not all(isinstance(x, Tensor) for x in _tensors(arguments)):
        return None
    form = flatten(arguments, kept)
    raw: list[Any] = []
    hook = module.register_forward_hook(lambda _module, _given, result: raw.append(result))
    try:
        with torch.no_grad(), as_it_was(module):
            run()
    except Exception:  # noqa: BLE001
        return None
    finally:
        hook.remove()
    return form, name_outputs(module, raw[0]), _aliases(module, raw[0])


def _tensors(arguments: Mapping[str, Any]) -> list[Any]:
    return [entry for value in arguments.values() for _, entry in leaves(value)]


def _aliases(module: nn.Module, result: Any) -> dict[str, set[str]]:
    """What else each output is called: by a named tuple, or in the return statement."""
    names = list(name_outputs(module, result))
    found: dict[str, set[str]] = {name: {name} for name in names if not name.startswith("output")}
    found = {name: found.get(name, set()) for name in names}
    entries = list(leaves(result)) if not isinstance(result, Tensor) else [((), result)]
    if isinstance(result, tuple) and sum(x is not None for x in result) == 1:
        entries = [(path[1:], value) for path, value in entries]
    fields = getattr(result, "_fields", ())
    top = returned_names(module)
    for name, (path, _) in zip(names, entries, strict=True):
        if fields and path:
            found[name].add("_".join(map(str, (fields[int(path[0])], *path[1:]))))
        place = int(path[0]) if path and isinstance(path[0], int) else 0
        flat = len(top) == len(names)
        word = top[names.index(name)] if flat else top[place] if place < len(top) else ""
        if word and not isinstance(result, Mapping):
            rest = () if flat else path[1:]
            found[name].add("_".join(map(str, (word, *rest))))
    return found


def _pairs(
    asked: Mapping[str, str],
    form: Functional,
    outputs: Mapping[str, Tensor],
    aliases: Mapping[str, set[str]],
    owner: str,
    known: Mapping[str, str],
    layouts: Layouts,
    along: Container[str],
) -> dict[str, tuple[str, str]]:
    """The output of each state, and how that is known.

    Some are `known` before; those that lie `along` others are none, unless names pair up.
    """
    names = list(outputs)
    inputs = form.inputs
    found = {name: (output, "the model goes on from it") for name, output in known.items()}
    for name, text in asked.items():
        found[name] = (_asked(name, text, inputs, aliases, owner), "as asked")
    for nested in form.slots.values():
        for name in nested.names:
            found.setdefault(name, (form.after(name), "kept by the module"))
    if asked:
        return found
    free = {n: x for n, x in inputs.items() if n not in found and not _free_axes(n, layouts)}

    def alike(name: str, output: str) -> bool:
        a, b = inputs[name], outputs[output]
        return a.shape == b.shape and a.dtype == b.dtype

    taken = set(known.values())

    def take(name: str, output: str, why: str) -> None:
        if name not in found and output not in taken and alike(name, output):
            found[name] = (output, why)
            taken.add(output)

    for name, place in pair(list(free), [aliases[n] for n in names]).items():
        take(name, names[place], "their names pair up")
    for argument in form.arguments.values():
        groups = list(_groups(names, len(argument.names)))
        if len(argument.names) > 1 and len(groups) == 1:
            for name, output in zip(argument.names, groups[0], strict=True):
                take(name, output, "they are nested alike")
    free = {name: x for name, x in free.items() if name not in along}
    for name in free:
        fits = [output for output in names if alike(name, output)]
        rivals = [other for other in free if other != name and fits and alike(other, fits[0])]
        if says_state(name) and len(fits) == 1 and not rivals:
            take(name, fits[0], "no other input and output are of its shape")
    if len(found) == len(inputs):
        return {}
    for name in free:
        fits = [output for output in names if output not in taken and alike(name, output)]
        if name not in found and says_state(name) and fits and len(names) > 1:
            raise _ambiguous(name, fits, owner)
    return found


def _free_axes(name: str, layouts: Layouts) -> list[str]:
    """The axes of an input, but for the batch, that the user wants free: a state has none."""
    shape = layouts.inputs[name].shape if name in layouts.inputs else ()
    return [dim for dim in shape if isinstance(dim, str) and dim != BATCH]


def _refuse_free(asked: Mapping[str, str], layouts: Layouts) -> None:
    for name, text in asked.items():
        for axis in _free_axes(name, layouts):
            raise OptionError(
                f"--state {name}={text}: --axes leaves {axis!r} free, and a state has one size on "
                f"every axis but {BATCH!r}. Give the axis a size, or name it {BATCH!r} where its "
                "entries are rows that do not meet."
            )


def _ambiguous(name: str, fits: Sequence[str], owner: str) -> OptionError:
    lines = " or ".join(f"--state {name}={output}" for output in fits)
    return OptionError(
        f"The input {name!r} of {_inside(owner)} is called like a state, and which output it "
        f"becomes cannot be told from names and shapes. Say it: {lines}; or --state none, where it "
        "is none."
    )


def _inside(owner: str) -> str:
    """An owner in the middle of a sentence."""
    return owner[:1].lower() + owner[1:]


def _groups(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """Runs of `size` outputs nested in one entry: ``output_1_0``, ``output_1_1``; or all."""
    if len(names) == size:
        yield list(names)
        return
    stems = dict.fromkeys(name.rpartition("_")[0] for name in names if name.count("_") > 1)
    for stem in stems:
        group = [name for name in names if name.rpartition("_")[0] == stem]
        if len(group) == size:
            yield group


def _asked(
    name: str,
    text: str,
    inputs: Mapping[str, Tensor],
    aliases: Mapping[str, set[str]],
    owner: str,
) -> str:
    """The output that the user named, without an initial value behind it."""
    who = _inside(owner)
    if name not in inputs:
        raise OptionError(
            f"--state {name}={text}: {who} has no input {name!r}{perhaps(name, inputs)}; it has: "
            f"{', '.join(inputs)}."
        )
    wanted = split_initial(text, [n for o, more in aliases.items() for n in (o, *more)])[0]
    for output, more in aliases.items():
        if wanted == output or wanted in more:
            return output
    raise OptionError(
        f"--state {name}={text}: {who} has no output {wanted!r}{perhaps(wanted, aliases)}; it "
        f"has: {', '.join(aliases)}."
    )


def _described(
    module: nn.Module,
    form: Functional,
    outputs: Mapping[str, Tensor],
    pairs: Mapping[str, tuple[str, str]],
    options: LoadOptions,
    owner: str,
) -> Described:
    form.renamed = {name: f"{name}_out" for name in outputs if name in form.inputs}
    states = {name: form.renamed.get(output, output) for name, (output, _) in pairs.items()}
    if form.changes:
        present(module, form)
    sizing = Sizing(
        run=lambda given: name_outputs(module, module(**given)), examples=form.inputs, states=states
    )
    if not states:
        return _plainly(module, form.inputs, options, owner)
    layouts = Layouts.of(options.axes or {})
    shapes = _shapes(sizing, layouts, owner)
    timeless = not any(TIME in shape for shape in shapes.values())
    if form.slots and timeless and not options.axes and changes_per_call(sizing):
        raise _per_call(form, sizing)
    specs = [_spec(n, x, shapes[n], owner, own=n in states) for n, x in form.inputs.items()]
    own = tuple(
        OwnState(
            input=name,
            output=output,
            initial=initial_of(module, name, output, form, options, shapes[name]),
        )
        for name, output in states.items()
    )
    defaults = {n: float(x) for n, x in form.inputs.items() if not x.ndim and n not in states}
    notes = [note(state, pairs[state.input][1], shapes) for state in own]
    if timeless and not options.axes and changes_per_call(sizing):
        notes.append(_fixed(sizing, shapes))
    notes += [f"The input {n!r} is {x:g} where it is left out." for n, x in defaults.items()]
    if not any(BATCH in shape for shape in shapes.values()):
        notes.append("No axis of the inputs was found to be the batch: the bundle runs one row.")
    own_sizes = sizes_of(specs)
    sizes = example_sizes(
        lambda **given: sizing.run(given), sampler(specs), own_sizes, layouts.spans
    )
    takes = Takes.of(specs, sizes={**EXAMPLE, **sizes}, spans=layouts.spans)
    return Described(takes=takes, states=own, defaults=defaults, notes=tuple(notes))


def _fixed(sizing: Sizing, shapes: Mapping[str, Shape]) -> str:
    name = sizing.plain[0]
    words = "x".join(map(str, shapes[name]))
    return (
        f"Each call takes {name} of {words}, as the example has it: in parts of other sizes the "
        f"model gives something else. For another size: --axes {name}:..."
    )


def _per_call(form: Functional, sizing: Sizing) -> SourceError:
    slot = next(iter(form.slots))
    name = sizing.plain[0]
    sizes = "x".join(map(str, (BATCH, *sizing.examples[name].shape[1:])))
    return SourceError(
        f"The module writes {slot.words} once in each call, and what the next call returns depends "
        "on it: a sequence in parts would not give what it gives at once. Write it in training "
        f"only, under `if self.training:`, or say how much each call takes: --axes {name}:{sizes}."
    )


def _shapes(sizing: Sizing, layouts: Layouts, owner: str) -> dict[str, Shape]:
    named = [_spec(n, x, x.shape, owner, own=True) for n, x in sizing.examples.items()]
    name_axes(named, layouts)  # refuses what does not fit
    return settle(sizing, {name: layout.shape for name, layout in layouts.inputs.items()})


def _spec(
    name: str,
    value: Tensor,
    shape: Sequence[int | str] | None,
    owner: str,
    *,
    own: bool = False,
) -> InputSpec:
    """Describe one input; a state is drawn at random even where its example is all zeros."""
    if value.ndim and value.numel() and not own:
        spec = spec_of(name, value, owner)
        usual = (BATCH, TIME, *value.shape[2:])[: value.ndim]
        return replace(spec, shape=usual if shape is None else tuple(shape))
    dims = tuple(value.shape if shape is None else shape)
    if not own:
        return InputSpec(name, value.dtype, dims, value=float(value))
    half = value.dtype in (torch.float16, torch.bfloat16)
    kind = torch.float32 if half else value.dtype
    return InputSpec(name, kind, dims, below=None if kind.is_floating_point else 3)


def note(state: OwnState, why: str, shapes: Mapping[str, Shape]) -> str:
    """What a user hears of a state, and how to say otherwise."""
    words = "x".join(map(str, shapes[state.input]))
    start = "a value of its own" if isinstance(state.initial, np.ndarray) else f"{state.initial:g}"
    return (
        f"{state.input} ({words}) is a state that becomes {state.output} ({why}); it starts from "
        f"{start}. To say otherwise: --state {state.input}=OUTPUT, or --state none."
    )


def _refuse_unknown(options: LoadOptions, owner: str) -> None:
    if options.states:
        name, text = next(iter(options.states.items()))
        raise OptionError(
            f"--state {name}={text}: {_inside(owner)} does not run on its example inputs, so that "
            "its outputs are not known. Give examples that it runs on: --inputs FILE.npz."
        )
