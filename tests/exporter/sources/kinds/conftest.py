"""A small language model of plain PyTorch, and the files that PyTorch exports it to."""

import contextlib
import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

CONTEXT, VOCABULARY = 40, 16


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (y.reshape(b, t, self.heads, -1).transpose(1, 2) for y in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: Tensor = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return z


class Net(nn.Module):
    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.layers = nn.ModuleList([Block(width, heads)])
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.embed(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.head(x)
        return y


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="session")
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of free.pt2, fixed.pt2, new.onnx (opset 20), old.onnx (17), fixed.onnx."""
    folder = tmp_path_factory.mktemp("exported")
    ids = torch.randint(VOCABULARY, (2, 9))
    shapes = {"input_ids": {0: Dim("b"), 1: Dim("t", max=CONTEXT)}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        free = torch.export.export(net, (ids,), dynamic_shapes=shapes)
        fixed = torch.export.export(net, (ids,))
        torch.export.save(free, folder / "free.pt2")
        torch.export.save(fixed, folder / "fixed.pt2")
        for name, program in (("new", free), ("fixed", fixed)):
            torch.onnx.export(
                program,
                (),
                folder / f"{name}.onnx",
                dynamo=True,
                verbose=False,
                external_data=name == "new",
            )
        torch.onnx.export(
            net,
            (ids,),
            folder / "old.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_axes={"input_ids": {0: "b", 1: "t"}},
        )
    return folder
