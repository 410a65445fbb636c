"""S2FT: what is trained are slices, and another order changes nothing."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intaglio.models import llama
from intaglio.models.tuning import S2FT, of_text

CONFIG = llama.Config(vocab_size=256, hidden_size=16, intermediate_size=20, num_layers=2)
TEXT = bytes(range(256)) * 4


def base() -> Any:
    torch.manual_seed(0)
    module = llama.build(CONFIG).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


ALL: dict[str, Any] = {"up": 0.2, "down": 0.3, "value": 0.5, "output": 0.5}


@pytest.mark.parametrize("select", ["random", "small", "large"])
def test_another_order_computes_the_same(select: Any) -> None:
    """With no step trained, every layer is in another order and the logits are what they were."""
    module = base()
    ids = torch.randint(256, (2, 9))
    with torch.no_grad():
        before, weight = module(ids), module.layers[0].mlp.up_proj.weight.clone()
        S2FT(**ALL, select=select, steps=0).tune(module, of_text(TEXT))
        after = module(ids)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(module.layers[0].mlp.up_proj.weight, weight)


def test_the_chosen_share_is_trained_and_nothing_else() -> None:
    """Entries of all layers together: 20% of 40 channels, and so on; each is a slice."""
    module, plain = base(), base()
    count = S2FT(**ALL, steps=3, rate=0.1).tune(module, of_text(TEXT, 4, 16))
    groups = 2 * CONFIG.num_kv_heads // 2  # half of those of two layers
    rows, wide = CONFIG.head_size, CONFIG.head_size * CONFIG.num_heads // CONFIG.num_kv_heads
    assert count == 8 * 16 + 12 * 16 + groups * rows * 16 + groups * wide * 16
    same = ("gate_proj", "q_proj", "k_proj", "norm", "embed_tokens", "lm_head")
    for (name, after), before in zip(module.named_parameters(), plain.parameters(), strict=True):
        if any(part in name for part in same):  # the same entries, perhaps in another order
            torch.testing.assert_close(
                after.flatten().sort().values, before.flatten().sort().values
            )
        assert after.requires_grad


def test_the_smallest_are_chosen() -> None:
    """Channels of norm 0 come first: their rows are those that change."""
    module = base()
    for layer in module.layers:
        with torch.no_grad():
            layer.mlp.up_proj.weight[[4, 7]] = 0
    S2FT(up=0.1, down=0.0, select="small", steps=2, rate=0.1).tune(module, of_text(TEXT, 4, 16))
    for layer in module.layers:
        assert layer.mlp.up_proj.weight[:2].abs().max() > 0


def test_the_loss_falls() -> None:
    """On a text of two letters in turn."""
    module = base()
    start = copy.deepcopy(module)
    draw = of_text(b"ab" * 200, 4, 32)
    S2FT(up=0.5, down=0.5, steps=40, rate=0.02).tune(module, draw)
    rows = draw(torch.Generator().manual_seed(9))

    def loss(net: nn.Module) -> Tensor:
        with torch.no_grad():
            logits = net(rows[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    assert loss(module) < 0.85 * loss(start)
