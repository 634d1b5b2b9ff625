"""Relabelling: the concept's pictures are seen as their anchors, and the rest as before."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from fakes.webui_forge import in_place
from toys.tiny import frozen_bits, tiny_model
from trust_engine.diff import LowRankOffset
from trust_engine.diff.overlaid import Overlaid
from trust_engine.errors import DivergenceError
from trust_engine.models.contract import Denoiser
from trust_engine.models.recompute import recomputed
from trust_engine.unlearn.scrubbing import relabel
from trust_engine.unlearn.scrubbing.blocks import blocks_of, innermost, picture_layers
from trust_engine.unlearn.scrubbing.noised import Drawn
from trust_engine.unlearn.scrubbing.relabel import Relabelling, RelabelPlan

PLAN = RelabelPlan(steps=4, batch=4)
N = 3  # pictures of a kind


def drawn(prompts: list[str], seed: int) -> Drawn:
    """Make up pictures of prompts."""
    x = torch.randn(len(prompts), 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Drawn(x, tiny_model().encoder.encode(prompts))


def factors(denoiser: Denoiser, rank: int = 2) -> dict[str, LowRankOffset]:
    """Make up a scrubbing of every third layer."""
    generator, found = torch.Generator().manual_seed(5), {}
    for key, layer in list(picture_layers(denoiser).items())[::3]:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        up = 0.05 * torch.randn(len(weight), rank, *weight.shape[2:], generator=generator)
        down = 0.2 * torch.randn(rank, weight.shape[1], generator=generator)
        found[key] = LowRankOffset(up, down)
    return found


def training(denoiser: Denoiser | None = None, **changes: Any) -> Relabelling:
    """Set one up."""
    own = denoiser or tiny_model().denoiser
    told = {"plan": PLAN, "rows": 4, "seed": 0, "offsets": factors(own), **changes}
    plan, offsets, seed, rows = (told.pop(n) for n in ("plan", "offsets", "seed", "rows"))
    return Relabelling(
        own, offsets, drawn(["a gun"] * N, 1), drawn(["a thing"] * N, 2),
        drawn(["a cat", "a dog", "a cat and a dog"], 3), tiny_model().encoder.encode([""]),
        plan, seed, rows, **told,
    )  # fmt: skip


def finished(**changes: Any) -> Relabelling:
    """Run one to its end."""
    made = training(**changes)
    for _ in made:
        pass
    return made


def errors(made: Relabelling, offsets: dict[str, LowRankOffset]) -> tuple[float, float]:
    """Return E and P under offsets, over many samples."""
    lent, told = Overlaid(made.denoiser, offsets), torch.Generator().manual_seed(9)
    many = training(made.denoiser, plan=replace(PLAN, batch=32))
    with torch.no_grad():
        batch, rest = many._of_concept(told), many._of_rest(told)
        alphas = made.denoiser.schedule.alphas[batch.t]
        snr = (alphas / (1 - alphas)).clamp(max=5).view(-1, 1, 1, 1)
        seen, _ = made.denoiser.schedule.split(batch.x, batch.t, lent(batch.x, batch.t, batch.cond))
        moved = lent(rest.x, rest.t, rest.cond) - made.denoiser(rest.x, rest.t, rest.cond)
        return float((snr * (seen - batch.goal).square()).mean()), float(moved.square().mean())


def test_the_concept_is_seen_as_its_anchor_and_the_rest_stays() -> None:
    plan = replace(PLAN, steps=16, rate=0.1)
    made = finished(plan=plan)
    before, after = errors(made, made.begun_with), errors(made, made.offsets)
    assert after[0] < 0.97 * before[0]
    strict = finished(plan=replace(plan, beta=1e3))
    assert errors(strict, strict.offsets)[1] < 0.7 * min(before[1], after[1])


def test_only_the_factors_up_are_trained_and_nothing_hangs_on_the_network() -> None:
    model = tiny_model()
    bits = frozen_bits(model.denoiser.module)
    made = training(model.denoiser)
    for _ in zip(range(2), made, strict=False):
        pass
    assert frozen_bits(model.denoiser.module) == bits
    for module in model.denoiser.module.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in module.__dict__
    for key, offset in made.offsets.items():
        assert torch.equal(offset.down, made.begun_with[key].down)
        assert not torch.equal(offset.up, made.begun_with[key].up)


@pytest.mark.parametrize("stop", [1, 3])
def test_one_that_was_stopped_goes_on_to_the_same_bits(stop: int) -> None:
    whole, first = finished(), training()
    for done in first:
        if done == stop:
            break
    second = training(begun=first.kept)
    assert list(second) == list(range(stop + 1, PLAN.steps + 1))
    for key, offset in second.offsets.items():
        assert torch.equal(offset.up, whole.offsets[key].up)


def ups(made: Relabelling) -> Tensor:
    """Return all factors as one vector."""
    return torch.cat([offset.up.flatten() for offset in made.offsets.values()])


def paths_of(denoiser: Denoiser) -> list[str]:
    """List the modules that recompute their inside."""
    told = torch.zeros(1, 4, 4, 4), torch.tensor([0]), tiny_model().encoder.encode(["a gun"])
    blocks = blocks_of(denoiser, lambda: denoiser(*told))
    paths = innermost(denoiser.module, blocks)
    assert len(paths) == len(blocks) and sum("transformer_blocks" in path for path in paths) > 1
    return paths


def test_little_room_changes_nothing_but_last_digits() -> None:
    whole, one, calls = training(), tiny_model().denoiser, list[str]()
    paths = paths_of(one)
    small = training(one, rows=1, blocks=paths)
    for path in paths:
        module = one.module.get_submodule(path)
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
    next(iter(whole)), next(iter(small))
    assert whole.moved.grad is not None and small.moved.grad is not None
    largest = float(whole.moved.grad.abs().max())
    torch.testing.assert_close(small.moved.grad, whole.moved.grad, rtol=0, atol=1e-4 * largest)
    # Picture by picture: the concept's, and of the rest what theta_0 says and what is trained.
    assert len(calls) == PLAN.batch * 3 * len(paths)


def held_by_host(denoiser: Denoiser) -> Denoiser:
    """Hold a network's weights as inference tensors, and let its blocks write in place."""
    for block in denoiser.module.modules():
        if hasattr(block, "attn2"):
            block.forward = in_place(block)
        for name, parameter in block._parameters.items():
            if parameter is not None:
                with torch.inference_mode():
                    block._parameters[name] = torch.nn.Parameter(parameter.clone(), False)
    return denoiser


@pytest.mark.parametrize("stepping", [False, True], ids=["alone", "where a host may write"])
def test_blocks_that_write_in_place_are_computed_again(stepping: bool) -> None:
    whole, paths = training(), paths_of(tiny_model().denoiser)
    small = training(held_by_host(tiny_model().denoiser), rows=1, blocks=paths, in_place=True)
    held = allow_mutation_on_saved_tensors() if stepping else contextlib.nullcontext()
    next(iter(whole))
    with held:
        next(iter(small))
    assert whole.moved.grad is not None and small.moved.grad is not None
    largest = float(whole.moved.grad.abs().max())
    torch.testing.assert_close(small.moved.grad, whole.moved.grad, rtol=0, atol=1e-4 * largest)
    assert all(p.is_inference() for p in small.denoiser.module.parameters())


def test_the_inside_of_a_block_is_computed_again_on_the_way_back() -> None:
    block, seen = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(inplace=True)), []
    block[0].register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 3)
    with recomputed([block]):
        block(x.requires_grad_()).sum().backward()
    assert len(seen) == 2 and x.grad is not None and "forward" not in block.__dict__


class Told(torch.nn.Linear):
    """A block that is told in a dictionary what to do, as some hosts tell theirs where they are."""

    def forward(self, x: Tensor, options: dict[str, Tensor], *, more: dict[str, Tensor]) -> Tensor:
        """Weigh it by what it is told."""
        return super().forward(x) * options["block"] * more["block"]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_block_is_told_on_the_way_back_what_it_was_told(in_place: bool) -> None:
    block, x = Told(3, 3), torch.randn(2, 3)
    options, found = {"block": torch.tensor(1.0)}, []
    for blocks in ([], [block]):
        x = x.detach().requires_grad_()
        options["block"] = torch.tensor(1.0)
        with recomputed(blocks, in_place):
            first = block(x, options, more=options)
            options["block"] = torch.tensor(7.0)  # as a host does before its next block
            (first + block(x, options, more=options)).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1])


def test_inference_tensors_are_worked_with() -> None:
    with torch.inference_mode():
        held = tiny_model().denoiser
        for module in held.module.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.clone(), False)
    assert all(p.is_inference() for p in held.module.parameters())
    torch.testing.assert_close(ups(finished(denoiser=held)), ups(finished()), rtol=0, atol=0)


def test_a_sixteen_bit_loss_is_scaled_and_what_is_too_large_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = ups(finished())
    monkeypatch.setattr(relabel, "compute_dtype", lambda _: torch.float16)
    scaled = finished()
    assert scaled.scale == relabel.SCALE
    torch.testing.assert_close(ups(scaled), plain, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(relabel, "SCALE", 2.0**140)
    halved = finished()
    assert halved.scale == 2.0**140 / 2**PLAN.steps and torch.equal(ups(halved), halved.start)
    longer = replace(PLAN, steps=PLAN.steps + 1)
    assert finished(plan=longer, begun=halved.kept).scale == halved.scale / 2


def test_numbers_without_bounds_are_said() -> None:
    broken = {k: replace(o, up=o.up * 1e30) for k, o in factors(tiny_model().denoiser).items()}
    with pytest.raises(DivergenceError, match="without bounds"):
        finished(offsets=broken)
