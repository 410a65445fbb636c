"""What tests of passes speak of: the vocabulary of their models, tracing and stepping a module."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from intaglio.passes import evaluate, pipeline, stepping
from intaglio.passes.base import Context

VOCABULARY = 31

Traced = Callable[[nn.Module], tuple[ir.Model, Context]]


def steps_exactly(
    module: nn.Module,
    traced: Traced,
    rows: int = 2,
    parts: Sequence[int] = (3, 1, 2, 1),
    kv: Literal["static", "grow"] = "static",
) -> Context:
    """Hold steps of `module`, from input_ids to logits, to it: all at once, each alone, `parts`.

    What the passes carried is returned.
    """
    model, context = traced(module.eval())
    pipeline.run(model, pipeline.standard(kv), context)
    tokens = sum(parts)
    session, ids = evaluate.session(model), torch.randint(VOCABULARY, (rows, tokens))
    with torch.no_grad():
        wanted = module(ids).numpy()
    for split in ([tokens], [1] * tokens, list(parts)):
        got = stepping.roll(model, context.states, {"input_ids": ids.numpy()}, split, session)
        np.testing.assert_allclose(got["logits"], wanted, atol=1e-5)
    return context
