"""CSR and CIP against their definitions, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trust_engine.models.attention import CrossAttention
from trust_engine.unlearn.objective import (
    InfluenceScale,
    cip,
    csr,
    distance,
    exact_product,
    finite_product,
    pushed,
    slope,
)
from trust_engine.unlearn.theta_layout import Layout

GAMMA, TAU = 2.0, 0.5


def problem() -> tuple[CrossAttention, Tensor, Tensor, Tensor]:
    """Make a small layer, states, a context and the goal for its output."""
    torch.manual_seed(0)
    q, k, v, out = (torch.randn(6, n, dtype=torch.float64) for n in (5, 4, 4, 6))
    layer = CrossAttention(q, k, v, out[:5], None, heads=2)
    x, context = torch.randn(2, 7, 5).double(), torch.randn(2, 3, 4).double()
    return layer, x, context, torch.randn(2, 7, 5).double()


def layout() -> Layout:
    """Lay its q, k and v out."""
    layer = problem()[0]
    return Layout.of((layer.q, layer.k, layer.v), (2, 2, 2))


def one(size: int) -> Layout:
    """Lay one part out."""
    return Layout((torch.Size((size,)),), (1,))


def gradient_at(theta: Tensor, create_graph: bool = False) -> Tensor:
    """Differentiate the concept effect by q, k and v."""
    layer, x, context, goal = problem()
    effect = distance(layer.with_weights(*layout().parts(theta))(x, context), goal, 1.7)
    return torch.autograd.grad(effect, theta, create_graph=create_graph)[0]


def start() -> Tensor:
    """Return the layer's weights, ready to be differentiated."""
    layer = problem()[0]
    return layout().join((layer.q, layer.k, layer.v)).requires_grad_(True)


def mask() -> Tensor:
    """Mark about half of the entries."""
    return torch.rand_like(start()) > 0.5


def test_distance_is_the_mean_square_in_units_of_scale() -> None:
    assert float(distance(torch.full((2, 3), 5.0), torch.full((2, 3), 2.0), 3.0)) == 3.0


def test_a_goal_lies_as_far_beyond_the_anchor_as_eta_says() -> None:
    anchor, concept = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])
    assert torch.equal(pushed(anchor, concept, 0.0), anchor)
    assert pushed(anchor, concept, 0.5).tolist() == [0.0, 2.0]


def test_csr_is_the_norm_of_the_masked_gradient() -> None:
    two = Layout((torch.Size((2,)), torch.Size((1,))), (1, 1))
    value = csr(torch.tensor([3.0, 9.0, 4.0]), torch.tensor([1, 0, 1]), two)
    torch.testing.assert_close(value, torch.tensor(5.0))


def test_csr_differentiates_to_the_hessian_vector_product() -> None:
    """Its slope along random directions is the finite difference of the gradient's norm."""
    theta, marked, step = start(), mask(), 1e-5
    (along,) = torch.autograd.grad(
        csr(gradient_at(theta, create_graph=True), marked, layout()), theta
    )
    for _ in range(3):
        way = torch.randn_like(theta)

        def norm(size: float, way: Tensor = way) -> Tensor:
            moved = (start() + size * way).detach().requires_grad_(True)
            return csr(gradient_at(moved), marked, layout())

        measured = (norm(step) - norm(-step)) / (2 * step)
        exact = (along * way).sum()
        torch.testing.assert_close(exact, measured, rtol=1e-6, atol=1e-9)
        assert abs(float(exact)) > 1e-3


def penalties() -> dict[str, Callable[[Tensor], Tensor]]:
    """Fix all but the gradient."""
    marked, parts = mask(), layout()
    scale = InfluenceScale.of(gradient_at(start()), parts)
    return {
        "csr": lambda g: csr(g, marked, parts),
        "cip": lambda g: cip(g, scale, parts, GAMMA, TAU),
    }


@pytest.mark.parametrize("name", ["csr", "cip"])
def test_the_penaltys_gradient_is_a_hessian_product(name: str) -> None:
    """dR/dtheta, straight from autograd, equals H w with w = dR/dg."""
    torch.manual_seed(3)
    penalty, theta = penalties()[name], start()
    gradient = gradient_at(theta, create_graph=True)
    (straight,) = torch.autograd.grad(penalty(gradient), theta, retain_graph=True)
    product = exact_product(gradient, theta, slope(penalty, gradient))
    torch.testing.assert_close(straight, product)


@pytest.mark.parametrize("name", ["csr", "cip"])
def test_the_finite_difference_agrees_with_the_exact_product(name: str) -> None:
    """Within 2 % of the product's size, in float64."""
    torch.manual_seed(3)
    penalty, theta = penalties()[name], start()
    gradient = gradient_at(theta, create_graph=True)
    w = slope(penalty, gradient)
    exact = exact_product(gradient, theta, w)
    finite = finite_product(gradient_at, theta, w, layout())
    assert float((exact - finite).norm()) < 2e-2 * float(exact.norm())


def test_a_short_direction_takes_as_long_a_finite_step() -> None:
    """So that its product is as exact: no difference of gradients is lost to rounding."""
    theta, w = start(), mask().double()
    short, long = (finite_product(gradient_at, theta, size * w, layout()) for size in (1e-9, 1.0))
    torch.testing.assert_close(short, 1e-9 * long, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("count", [1, 7])
def test_a_finite_step_moves_each_entry_by_a_hundredth_of_thetas_size(count: int) -> None:
    """Of its root mean square, to both sides; what w leaves out stays."""
    theta, w, seen = torch.tensor([3.0, -4.0] * 4), torch.zeros(8), []
    w[:count] = 5.0

    def gradient(at: Tensor) -> Tensor:
        seen.append(at.detach())
        return at

    finite_product(gradient, theta, w, one(8))
    move = 0.01 * 12.5**0.5 * (w > 0)
    torch.testing.assert_close(torch.stack(seen), torch.stack([theta + move, theta - move]))


def test_csr_of_an_empty_mask_or_no_gradient_has_a_finite_slope() -> None:
    theta = start()
    value = csr(gradient_at(theta, create_graph=True), torch.zeros_like(theta), layout())
    (way,) = torch.autograd.grad(value, theta)
    assert float(way.abs().max()) == 0


def count(gradient: Tensor, *parts: int) -> float:
    """Take CIP by the gradient's own scale."""
    lie = Layout(
        tuple(torch.Size((n,)) for n in parts or (len(gradient),)), (1,) * (len(parts) or 1)
    )
    return float(cip(gradient, InfluenceScale.of(gradient, lie), lie, GAMMA, TAU))


def test_cip_counts_softly_what_tops_gamma() -> None:
    """|g| of 0, 1, 2, 6 are z-scores of -0.5, 0, 0.5, 2.5: -4, -2, 0, 8 times tau above gamma."""
    scale = InfluenceScale(torch.tensor([1.0]), torch.tensor([2.0]))
    value = float(cip(torch.tensor([0.0, -1.0, 2.0, -6.0]), scale, one(4), gamma=0.5, tau=0.25))
    assert value == pytest.approx((0.0179862 + 0.1192029 + 0.5 + 0.9996646) / 4)


def test_cip_lies_between_0_and_1() -> None:
    for size in (1e-12, 1.0, 1e12):
        assert 0 <= count(torch.randn(131) * size, 81, 50) <= 1


def test_cip_counts_influential_entries() -> None:
    row = torch.full((1000,), 1.0) + torch.linspace(0, 0.01, 1000)
    scale = InfluenceScale(torch.tensor([1.0]), torch.tensor([1.0]))
    for influential in (0, 10, 100, 500):
        now = row.clone()
        now[:influential] += 50.0
        share = float(cip(now, scale, one(1000), GAMMA, 0.05))
        assert share == pytest.approx(influential / 1000, abs=0.001)


def test_cip_falls_as_influence_shrinks() -> None:
    """Its scale is theta_0's: a moving one would hide that every influence has shrunk."""
    gradient = torch.randn(1000)
    lie = one(1000)
    scale = InfluenceScale.of(gradient, lie)
    shares = [float(cip(gradient * size, scale, lie, GAMMA, TAU)) for size in (1.0, 0.5, 0.1)]
    assert shares[0] > 2 * shares[1] > 2 * shares[2]


def test_cip_counts_influence_of_either_sign() -> None:
    gradient = torch.randn(500)
    assert count(gradient.abs()) == count(gradient)


def test_cip_of_no_influence_at_all_has_a_finite_slope() -> None:
    gradient, lie = torch.zeros(25, requires_grad=True), one(25)
    value = cip(gradient, InfluenceScale.of(gradient, lie), lie, GAMMA, TAU)
    (way,) = torch.autograd.grad(value, gradient)
    assert bool(way.isfinite().all())
