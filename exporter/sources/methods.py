"""Several graphs of one module: each of its methods, or of the modules within it, by itself.

A graph keeps the names of the whole module's parameters, so that what two graphs share is stored
once.  Example inputs and axes are given for all graphs together: each takes those that it names.
"""

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.options.loading import Inputs, LoadOptions, as_graphs
from intaglio.graphs import AT, CODES, THEN, Generation, Graph
from intaglio.runtime.graph_entry import MAIN
from intaglio.spelling import perhaps

from .examples import describe_inputs, read_inputs
from .source import Source

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def with_methods(source: Source, options: LoadOptions, inputs: Inputs | None) -> Source:
    """`source` as the graph main of `options.graphs`, with the others beside it.

    Args:
        source: of a module.
        options: with graphs, and axes of inputs.  A graph whose method is forward and that has no
            inputs of its own, where none are given, is `source` as it is, if its inputs are known.
        inputs: example inputs of all graphs.

    Raises:
        OptionError: if there is no graph main, or a name does not fit a file.
        SourceError: if the module has no such method, or its inputs are not known.
    """
    graphs = as_graphs(options.graphs)
    if MAIN not in graphs:
        raise OptionError(
            f"The graphs are {', '.join(graphs)}; one of them has to be called {MAIN}, as in "
            f"--graph {MAIN}=METHOD."
        )
    for name in graphs:
        if not NAME.fullmatch(name):
            raise OptionError(f"The graph {name!r} should be called by letters, digits, - and _.")
    examples = {} if inputs is None else read_inputs(inputs, source.module)
    made = {name: _graph(source, name, graph, examples, options) for name, graph in graphs.items()}
    taken = {key for each in made.values() for key in each.dynamic}
    made = {
        name: replace(each, beside=frozenset(taken - each.dynamic.keys()))
        for name, each in made.items()
    }
    plan = graphs[MAIN].generates
    if plan is not None:
        _check_plan(plan, made)
    return replace(made.pop(MAIN), others=made, generates=plan)


def _check_plan(plan: Generation, made: Mapping[str, Source]) -> None:
    """Hold what a generation names to the inputs of the graphs.

    Raises:
        OptionError: if a graph, an input or a condition that it names is not there.
    """
    for graph in (plan.advance, plan.finish):
        if graph not in made or graph == MAIN:
            raise OptionError(
                f"The generation takes a graph {graph!r}; beside main there are: "
                f"{', '.join(name for name in made if name != MAIN) or 'none'}."
            )
    needed = {
        MAIN: {plan.tokens, *plan.unconditional},
        plan.advance: {CODES, AT, THEN, *plan.carried},
    }
    for graph, names in needed.items():
        lacks = sorted(names - made[graph].dynamic.keys())
        if lacks:
            raise OptionError(
                f"The generation gives {lacks[0]!r} to the graph {graph!r}, which takes "
                f"{', '.join(made[graph].dynamic)}."
            )


def _graph(
    source: Source, name: str, graph: Graph, examples: Mapping[str, Any], options: LoadOptions
) -> Source:
    if source.dynamic and graph == Graph() and not examples:
        return source
    module = as_forward(source.module, graph.method)
    takes = inspect.signature(module.forward).parameters
    own = {key: value for key, value in examples.items() if key in takes}
    given = graph.inputs if graph.inputs is not None else own or None
    axes = {key: dims for key, dims in options.axes.items() if key in takes} | dict(graph.axes)
    owner = f"The method {graph.method!r} of the graph {name!r}"
    conditions = [key for key in options.condition if key in takes]
    described = describe_inputs(module, given, axes, owner, conditions)
    return replace(
        source,
        body=module,
        dynamic=described.dynamic,
        sample=described.sample,
        sizes=described.sizes,
        spans=described.spans,
        bounds=described.bounds,
    )


def as_forward(module: nn.Module, method: str) -> nn.Module:
    """The module with `method` as its forward; parameters and buffers are the module's own.

    Raises:
        SourceError: if it has no such method, nor a module of that name within it.
    """
    kind = type(module)
    found = getattr(kind, method, None)
    if method == "forward":
        return module
    if callable(found) and not hasattr(nn.Module, method) and not method.startswith("_"):
        forward: Callable[..., Any] = found
    else:
        forward = _of_submodule(module, method)
    turned = copy.copy(module)
    turned.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return turned


def _of_submodule(module: nn.Module, path: str) -> Callable[..., Any]:
    """A forward that calls a module within another one."""
    inner = dict(module.named_modules()).get(path)
    if inner is None or not path:
        own = [name for name in vars(type(module)) if not name.startswith("_")]
        within = [name for name, _ in module.named_children()]
        raise SourceError(
            f"{type(module).__name__} has no method {path!r}, nor a module of that name"
            f"{perhaps(path, [*own, *within])}; it has: "
            f"{', '.join(dict.fromkeys([*own, *within]))}."
        )

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(path)(*args, **kwargs)

    parameters = inspect.signature(inner.forward).parameters.values()
    owner = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(forward)["__signature__"] = inspect.Signature([owner, *parameters])
    return forward
