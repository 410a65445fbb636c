"""S4: bases of HiPPO, the generating function, C and C~, and engines for each basis."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import intaglio
from intaglio.errors import SourceError
from intaglio.models.parts import hippo
from intaglio.models.s4 import S4, Config, Kernel, discrete, truncated, untruncated

KEYS = Path(__file__).parents[1] / "data" / "keys" / "s4.json"
SMALL = Config(
    input_size=2, output_size=3, hidden_size=4, num_layers=1, state_size=8, context=64, dt_min=0.02
)


def test_the_bases_are_those_of_the_paper() -> None:
    """Entry by entry, for four states."""
    A, B = hippo.transition("legs", 4)
    r = np.sqrt([1, 3, 5, 7])
    wanted = -np.array(
        [[1, 0, 0, 0], [r[1], 2, 0, 0], [r[2], r[1] * r[2], 3, 0], [*(r[:3] * r[3]), 4]]
    )
    np.testing.assert_allclose(A, wanted)
    np.testing.assert_allclose(B, r)
    A, B = hippo.transition("legt", 4)
    signs = [[1, -1, 1, -1], [1, 1, -1, 1], [1, 1, 1, -1], [1, 1, 1, 1]]
    np.testing.assert_allclose(A, -np.outer(r, r) * signs / 2)
    np.testing.assert_allclose(B, r / 2)
    A, B = hippo.transition("fout", 4)
    turn = np.zeros((4, 4))
    turn[2, 3], turn[3, 2] = -np.pi, np.pi
    column = np.array([1, 0, np.sqrt(2), 0])
    np.testing.assert_allclose(A, turn - np.outer(column, column))
    np.testing.assert_allclose(B, column)


@pytest.mark.parametrize("basis", hippo.BASES)
def test_a_basis_is_diagonal_plus_low_rank(basis: str) -> None:
    """B^T A^k B in both coordinates, and A + P^T P a skew-symmetric one but for its diagonal."""
    A, B = hippo.transition(basis, 16)
    normal = A + hippo.low_rank(basis, 16).mT @ hippo.low_rank(basis, 16)
    level = normal.diagonal().mean() * torch.eye(16)
    torch.testing.assert_close(normal - level, -(normal - level).mT)
    poles, P, b = hippo.diagonal_plus_low_rank(basis, 16)
    assert (poles.real < 1e-9).all()
    P, b = torch.cat((P, P.conj()), -1), torch.cat((b, b.conj()))
    other = torch.diag(torch.cat((poles, poles.conj()))) - P.mT @ P.conj()
    for power in range(4):
        one = B @ torch.linalg.matrix_power(A, power) @ B
        two = b.conj() @ torch.linalg.matrix_power(other, power) @ b
        torch.testing.assert_close(two.real, one)


def test_eigenvectors_tell_which_bases_have_poles() -> None:
    """Nearly parallel for Legendre polynomials, all but orthogonal for waves."""
    found = {basis: hippo.condition(hippo.transition(basis, 64)[0]) for basis in hippo.BASES}
    assert found["fout"] < 100
    assert min(found["legs"], found["legt"]) > 1e12


def test_the_timescale_rule() -> None:
    """Legt and fout forget what is older than 2 / dt tokens; legs looks back about 1 / dt."""
    assert hippo.timescale("legs", 1000) == 1e-3
    for basis in ("legt", "fout"):
        A, B = hippo.transition(basis, 64)
        dt = hippo.timescale(basis, 100)
        step, into = hippo.zero_order_hold(A, B, dt)
        held = [float((torch.linalg.matrix_power(step, t) @ into).norm()) for t in (90, 110)]
        assert held[1] < 0.3 * held[0]
    drawn = hippo.timescales(2000, 1e-3, 1e-1, torch.Generator().manual_seed(0))
    assert 1e-3 <= drawn.min() < drawn.max() <= 1e-1
    assert 0.45 < (drawn < 1e-2).double().mean() < 0.55


def test_discrete_systems_are_those_of_the_rules() -> None:
    """A single state, by hand."""
    A, B = torch.tensor([[-2.0]]).double(), torch.tensor([3.0]).double()
    step, into = hippo.bilinear(A, B, 0.5)
    np.testing.assert_allclose([step.item(), into.item()], [0.5 / 1.5, 1.5 / 1.5])
    step, into = hippo.zero_order_hold(A, B, 0.5)
    np.testing.assert_allclose([step.item(), into.item()], [np.exp(-1), 1.5 * (1 - np.exp(-1))])


@pytest.mark.parametrize("basis", hippo.BASES)
@pytest.mark.parametrize("context", [32, 33])
def test_the_generating_function_gives_the_response(basis: str, context: int) -> None:
    """k_l = C M^l N token by token, C by undoing C~ = C (1 - M^L), in float64."""
    torch.manual_seed(0)
    config = replace(SMALL, basis=basis, rank=hippo.RANKS[basis], context=context, dt_min=0.05)
    kernel = Kernel(config).double()
    with torch.no_grad():
        got = kernel()
        C = untruncated(kernel, torch.view_as_complex(kernel.C), context)
        step, into = discrete(kernel)
        both, state, rows = torch.cat((C, C.conj()), -1)[0], into, []
        for _ in range(context):
            rows.append((both * state).sum(-1).real)
            state = (step @ state[..., None])[..., 0]
    torch.testing.assert_close(got, torch.stack(rows, -1), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        truncated(kernel, C, context), torch.view_as_complex(kernel.C.detach())
    )


@pytest.mark.parametrize(("basis", "form"), [("legs", "mixed by a matrix"), ("fout", "poles")])
def test_the_step_form_follows_from_conditioning(basis: str, form: str, tmp_path: Path) -> None:
    """Numbers that a matrix mixes where eigenvectors are nearly parallel, poles where not."""
    torch.manual_seed(0)
    config = replace(SMALL, basis=basis, state_size=16, context=128)
    inputs = S4.inputs(config, 3, 12, torch.Generator().manual_seed(0))
    assert S4.axes is not None
    report = intaglio.export(
        S4.build(config), tmp_path / "out", inputs=inputs, axes=S4.axes(config), steps=128
    )
    shapes = [s.shape for s in report.manifest.main.states]
    assert ("batch", 4, 16) in shapes
    assert not [shape for shape in shapes if "capacity" in shape]
    assert report.manifest.main.limits.max_context == 128
    assert any(form in note for note in report.notes)


def _listed() -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    listed = json.loads(KEYS.read_text())
    return listed["config"], {name: tuple(shape) for name, shape in listed["keys"].items()}


def test_official_checkpoints_of_full_size_are_read() -> None:
    values, shapes = _listed()
    (layout,) = S4.layouts
    assert layout.fits(values, shapes)
    config = S4.configure(layout.configure(values, shapes))
    assert (config.hidden_size, config.state_size, config.num_layers) == (512, 64, 6)
    with torch.device("meta"):
        module = S4.build(config)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    module.load_state_dict(layout.weights(tensors, config), assign=True)


@pytest.mark.parametrize("made_for", [0, 16, 64])
def test_whatever_length_c_was_made_for_the_kernel_is_the_same(made_for: int) -> None:
    """A file keeps C before its first use, and C~ of `l_kernel` positions after it."""
    torch.manual_seed(0)
    config = replace(SMALL, dt_min=0.1)
    module = S4.build(config).double()
    (layout,) = S4.layouts
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    path = "s4_layers.0.layer.kernel."
    kernel = module.get_submodule("s4_layers.0.layer.kernel")
    assert isinstance(kernel, Kernel)
    with torch.no_grad():
        wanted = kernel()
        C = untruncated(kernel, torch.view_as_complex(kernel.C), config.context)
        C = truncated(kernel, C, made_for) if made_for else C
    state[path + "C"], state[path + "l_kernel"] = torch.view_as_real(C), torch.tensor(made_for)
    module.load_state_dict(layout.weights(state, config))
    assert int(kernel.get_buffer("l_kernel")) == config.context
    torch.testing.assert_close(kernel(), wanted, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused_by_name() -> None:
    values, shapes = _listed()
    (layout,) = S4.layouts
    with pytest.raises(SourceError, match="l_max"):
        layout.configure({}, shapes)
    with pytest.raises(SourceError, match="bidirectional = True"):
        layout.configure({**values, "bidirectional": True}, shapes)
    with pytest.raises(SourceError, match="legt takes a rank of 2"):
        S4.build(replace(SMALL, basis="legt"))
    with pytest.raises(SourceError, match="There is no basis 'lagt'"):
        S4.build(replace(SMALL, basis="lagt"))
    with pytest.raises(SourceError, match="3 systems for 4 channels"):
        S4.build(replace(SMALL, systems=3))
