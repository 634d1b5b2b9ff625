"""The whole UNet as a function of its q/k/v weights, and back to what it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toys.tiny import frozen_bits, tiny_denoiser, tiny_spec
from trust_engine.errors import SpecError
from trust_engine.models.attention import cross_attention_modules, read_layer
from trust_engine.models.contract import Conditioning
from trust_engine.models.parameters import exchanged
from trust_engine.unlearn.end_to_end import EndToEndProblem, differentiable
from trust_engine.unlearn.objective import csr, exact_product, finite_product, slope
from trust_engine.unlearn.prompt_pairs import Pairs
from trust_engine.unlearn.trainer import SelectiveTrainer


def whole(style: str = "diffusers", **changes: object) -> EndToEndProblem:
    """Set the tiny UNet up, on random latents."""
    torch.manual_seed(0)
    denoiser = tiny_denoiser(style)
    weights = {}
    for name, module in cross_attention_modules(denoiser).items():
        layer = read_layer(module)
        for letter, weight in zip("qkv", (layer.q, layer.k, layer.v), strict=True):
            weights[f"{name}.to_{letter}.weight"] = (weight, layer.heads)
    now, goal, kept = (Conditioning(torch.randn(3, 6, 16)) for _ in range(3))
    rows = torch.arange(3)
    latents, timesteps = torch.randn(3, 2, 4, 4, 4), torch.tensor([801, 301])
    erase, keep = Pairs(latents, rows, now, goal), Pairs(latents, rows, kept)
    return EndToEndProblem(
        denoiser, weights, timesteps, erase, keep, tiny_spec(engine="global", **changes)
    )


def start(problem: EndToEndProblem) -> Tensor:
    """Return theta_0, ready to be differentiated."""
    return problem.base.clone().requires_grad_(True)


def gradient(problem: EndToEndProblem, checkpointing: bool = False) -> Tensor:
    """Differentiate the effect."""
    theta = start(problem)
    with differentiable(problem.denoiser, False, checkpointing):
        return torch.autograd.grad(problem.effect(theta, 0), theta)[0]


def test_it_starts_at_1_and_harms_nobody() -> None:
    problem = whole()
    theta = start(problem)
    effects = [float(problem.effect(theta, step).detach()) for step in range(12)]
    assert sum(effects) / 12 == pytest.approx(1, abs=0.2)
    assert float(problem.harm(theta, 0).detach()) < 1e-9


@pytest.mark.parametrize("style", ["diffusers", "ldm"])
def test_the_gradient_is_the_effects_slope(style: str) -> None:
    problem = whole(style)
    way = torch.randn_like(problem.base)
    expected = float((gradient(problem) * way).sum())

    def at(size: float) -> float:
        with torch.no_grad():
            return float(problem.effect(problem.base + size * way, 0))

    assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx(expected, rel=0.02)


def test_recomputed_activations_give_the_same_gradient() -> None:
    """Though the UNet's own weights are back in place while backward recomputes."""
    problem = whole()
    problem.base = problem.base + 0.1 * torch.randn_like(problem.base)
    plain, thrifty = gradient(problem), gradient(problem, checkpointing=True)
    torch.testing.assert_close(plain, thrifty)
    blocks = [m for m in problem.denoiser.module.modules() if hasattr(m, "attn2")]
    assert blocks and not any("forward" in block.__dict__ for block in blocks)


def test_finite_differences_agree_with_double_backward() -> None:
    """Within 2 % of the product's size, in float32."""
    problem = whole()
    theta = start(problem)
    with differentiable(problem.denoiser, True, False):
        (first,) = torch.autograd.grad(problem.effect(theta, 0), theta, create_graph=True)
        w = slope(lambda g: csr(g, torch.ones_like(g), problem.layout), first)
        exact = exact_product(first, theta, w)
    finite = finite_product(
        lambda here: torch.autograd.grad(problem.effect(here, 0), here)[0],
        theta,
        w,
        problem.layout,
    )
    assert float((exact - finite).norm()) < 0.02 * float(exact.norm())


@pytest.mark.parametrize("hessian", ["exact", "finite"])
def test_it_forgets(hessian: str) -> None:
    problem = whole(hessian=hessian, steps=12, budget=0.5, xi=-10.0, beta=0.5)
    run = SelectiveTrainer(problem, problem.spec)
    before = frozen_bits(problem.denoiser.module)
    with differentiable(problem.denoiser, hessian == "exact", False):
        steps = list(run)
    assert steps[-1].effect < 0.5 * steps[0].effect
    assert frozen_bits(problem.denoiser.module) == before


def test_passes_are_counted_sample_by_sample() -> None:
    problem = whole()
    spent = problem.cost.forward
    theta = start(problem)
    torch.autograd.grad(problem.effect(theta, 0), theta)
    assert problem.cost.forward - spent == 6  # three samples told, three for their goal
    assert problem.cost.backward == 3


def test_second_derivatives_and_recomputing_do_not_go_together() -> None:
    with (
        pytest.raises(SpecError, match="do not go together"),
        differentiable(tiny_denoiser(), True, True),
    ):
        pass


def test_exchanged_weights_are_put_back_after_an_error() -> None:
    module = tiny_denoiser().module
    name, parameter = next(iter(module.named_parameters()))
    before = frozen_bits(module)
    with pytest.raises(ZeroDivisionError), exchanged(module, {name: torch.zeros(3)}):
        assert dict(module.named_parameters())[name].shape == (3,)
        raise ZeroDivisionError
    assert dict(module.named_parameters())[name] is parameter
    assert frozen_bits(module) == before


def test_names_that_are_not_there_leave_everything_in_place() -> None:
    module = tiny_denoiser().module
    before = frozen_bits(module)
    name = next(iter(dict(module.named_parameters())))
    with (
        pytest.raises((AttributeError, KeyError)),
        exchanged(module, {name: torch.zeros(3), "no.such.weight": torch.zeros(3)}),
    ):
        pass
    assert frozen_bits(module) == before
