"""Complex numbers of a program become pairs of real ones that say the same."""

import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from intaglio.exporter.tracing.complex_numbers import pair_complex_numbers


class Turning(nn.Module):
    """Products, sums, powers of e, views and moves of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.poles = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        angles = torch.outer(torch.arange(x.shape[1]).float(), torch.tensor([1.0, 0.5, 0.1, 0.01]))
        turns = torch.polar(torch.ones_like(angles), angles)[None] * 1.5
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns.to(x.device)
        poles = torch.exp(torch.view_as_complex(self.poles)) * 2j
        moved = (z.transpose(1, -1)[:, :3] * poles[:3, None]).conj().permute(0, 2, 1)
        both = z[..., 1:] + moved
        real = (x[..., :4].to(torch.complex64) * z).real
        return {
            "pairs": torch.view_as_real(z).flatten(2),
            "sum": both.abs(),
            "parts": both.real * both.imag,
            "real": real,
            "repeated": torch.cat((z.tile(2, 1, 1), z.repeat(2, 1, 1)), 1).imag,
            "turned": z.flip(1).narrow(1, 0, 2).real,
            "padded": (F.pad(z, (0, 0, 2, 0))[:, : x.shape[1]] + z.cumsum(-2)).imag,
            "chosen": torch.where(z.real > 0, z, poles.expand_as(z)).flatten(1).imag,
            "apart": torch.unflatten(z, -1, (2, 2)).real,
            "picked": z.unsqueeze(-2).expand(-1, -1, 3, -1).select(2, 1).imag,
        }


def test_every_operator_on_pairs_gives_what_it_gives_on_complex_numbers() -> None:
    """At another length and another number of rows than were captured."""
    torch.manual_seed(0)
    module, free = Turning(), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with torch.no_grad():
        program = export(module, (torch.randn(2, 7, 8),), dynamic_shapes={"x": free})
        pair_complex_numbers(program)
        values = [node.meta.get("val") for node in program.graph.nodes]
        assert not any(value.is_complex() for value in values if isinstance(value, Tensor))
        x = torch.randn(3, 11, 8)
        for name, found in program.module()(x).items():
            torch.testing.assert_close(found, module(x)[name], rtol=1e-5, atol=1e-5)


class Weighted(nn.Module):
    """Complex weights, products of matrices with them, and what a state space layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.poles = nn.Parameter(torch.complex(-torch.rand(5), torch.randn(5)))
        self.enter = nn.Parameter(torch.randn(5, 8, dtype=torch.complex64))
        self.register_buffer("leave", torch.randn(8, 5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        enter = ((torch.exp(self.poles * 0.1) - 1) / self.poles)[:, None] * self.enter
        u = x.to(torch.complex64) @ enter.T
        powers = torch.exp(self.poles) ** torch.arange(x.shape[1])[:, None]
        joined = torch.cat([torch.zeros_like(u[:, :1]), u], 1) + x[..., :1].mean(1, keepdim=True)
        out = torch.einsum("btn,dn->btd", u - powers, self.get_buffer("leave"))
        return {
            "real": out.real,
            "angle": (1 / u).log().imag,
            "joined": torch.view_as_real(-joined).flatten(2),
            "stacked": torch.stack([u, x[..., :5] * u], -1).abs(),
        }


def test_complex_weights_become_pairs_as_well() -> None:
    torch.manual_seed(1)
    module, free = Weighted(), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with torch.no_grad():
        program = export(module, (torch.randn(2, 7, 8),), dynamic_shapes={"x": free})
        pair_complex_numbers(program)
        held = [*program.state_dict.values(), *program.constants.values()]
        assert not any(value.is_complex() for value in held)
        assert program.state_dict["poles"].shape == (5, 2)
        x = torch.randn(3, 11, 8)
        for name, found in program.module()(x).items():
            torch.testing.assert_close(found, module(x)[name], rtol=1e-4, atol=1e-4)


def test_what_is_not_known_is_left_to_the_converter() -> None:
    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            real: Tensor = torch.linalg.inv(torch.complex(x, x + 1)).real
            return real

    program = export(Inverse(), (torch.eye(3),))
    pair_complex_numbers(program)
    assert any("inv" in str(node.target) for node in program.graph.nodes)
