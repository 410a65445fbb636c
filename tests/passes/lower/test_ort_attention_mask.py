"""OrtAttentionMask: a mask of padding in the size that the kernel takes."""

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.base import Context
from intaglio.passes.lower.ort_attention_mask import OrtAttentionMask

TEXT = """
    <ir_version: 13, opset_import: ["" : 24]>
    g (float[batch, 2, time, 4] q, float[batch, 1, 1, time] mask) => (float[batch, 2, time, 4] y)
    { y = Attention (q, q, q, mask) }
"""


def test_a_mask_that_all_queries_share_is_repeated() -> None:
    """The kernel refuses it otherwise; padding hides the last token of the first row."""
    model = ir.from_onnx_text(TEXT)
    assert OrtAttentionMask().run(model, Context()).changed
    random = np.random.default_rng(0)
    mask = np.zeros((2, 1, 1, 3), np.float32)
    mask[0, ..., -1] = -np.inf
    q = random.standard_normal((2, 2, 3, 4)).astype(np.float32)
    found = evaluate.run(model, {"q": q, "mask": mask})["y"]
    scores = np.exp(q @ q.swapaxes(2, 3) / 2 + mask)
    wanted = scores / scores.sum(-1, keepdims=True) @ q
    np.testing.assert_allclose(found, wanted, atol=1e-5)
