"""Scrubbing: what the concept alone has is gone, and the rest is changed as the formula says."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from toys.tiny import WordEncoder, frozen_bits, tiny_denoiser
from trust_engine.errors import SpecError
from trust_engine.unlearn.scrub import (
    Edit,
    Moments,
    Scrubbing,
    ScrubPlan,
    Shown,
    directions,
    edited,
    picture_layers,
)

QUICK = ScrubPlan(tau=1.05, batches=2, batch=4)


def inputs(count: int, d: int, own: Tensor | None = None, size: float = 6.0) -> Tensor:
    """Draw inputs whose channels are mixed; with `own` they vary along it, too."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(count, d, generator=generator, dtype=torch.float64) @ mixing
    if own is not None:
        x = x + size * torch.randn(count, 1, generator=generator, dtype=torch.float64) * own
    return x


def moments(x: Tensor) -> Tensor:
    """Return the mean of x x^T."""
    return x.T @ x / len(x)


@pytest.fixture
def own() -> Tensor:
    """Return the one direction that only the concept has."""
    direction = torch.randn(8, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return 5 * direction / direction.norm()


def test_the_concepts_own_direction_is_found_and_no_other(own: Tensor) -> None:
    concept, rest = moments(inputs(4000, 8, own)), moments(inputs(4000, 8))
    left, right, lambdas = directions(concept, rest, 3.0, 1e-6, soft=False)
    assert len(lambdas) == 1 and lambdas[0] > 3
    # T takes the direction to nothing, and twice is as good as once.
    t = torch.eye(8, dtype=torch.float64) - left @ right
    assert float((t @ own).norm()) < 0.05 * float(own.norm())
    torch.testing.assert_close(t @ t, t)


def test_soft_shrinks_the_concept_to_the_rests_energy(own: Tensor) -> None:
    concept, rest = moments(inputs(4000, 8, own)), moments(inputs(4000, 8))
    left, right, _ = directions(concept, rest, 3.0, 1e-9, soft=True)
    t = torch.eye(8, dtype=torch.float64) - left @ right
    after = directions(t @ concept @ t.T, rest, 0.0, 1e-9, soft=True)[2]
    assert float(after.max()) == pytest.approx(
        max(1.0, float(directions(concept, rest, 0.0, 1e-9, soft=True)[2][1])), rel=1e-6
    )


@pytest.mark.parametrize("soft", [True, False])
def test_the_rests_error_is_the_closed_form(own: Tensor, soft: bool) -> None:
    """E || W (T - I) x ||^2 over the rest is || W left ||^2: it is white where it is divided by."""
    seen, weight = inputs(4000, 8), torch.randn(5, 8)
    found = directions(moments(inputs(4000, 8, own)), moments(seen), 1.5, 1e-9, soft)
    edit = edited(weight, *found)
    error = (seen @ edit.offset.double().T).square().sum(1).mean()
    assert float(error) == pytest.approx(
        float((weight.double() @ found[0]).square().sum()), rel=1e-4
    )


def test_a_convolution_is_scrubbed_in_its_input_channels(own: Tensor) -> None:
    found = directions(moments(inputs(4000, 8, own)), moments(inputs(4000, 8)), 2.0, 0.01, False)
    weight = torch.randn(5, 8, 3, 3)
    edit = edited(weight, *found)
    assert edit.up.shape == (5, edit.rank, 3, 3) and edit.down.shape == (edit.rank, 8)
    for i, j in ((0, 0), (1, 2)):
        one = edited(weight[:, :, i, j], *found)
        torch.testing.assert_close(edit.offset[:, :, i, j], one.offset)


def test_moments_are_taken_over_positions_of_either_shape() -> None:
    x = torch.randn(2, 6, 3, 4)
    picture, rows = Moments(), Moments()
    picture.add(x)
    rows.add(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(picture.mean, rows.mean)
    assert picture.mean.dtype == torch.float64 and picture.count == 24


def test_layers_of_the_text_and_the_time_step_are_left_alone() -> None:
    keys = picture_layers(tiny_denoiser())
    assert any(".attn2.to_q" in key for key in keys) and any(".attn1.to_k" in key for key in keys)
    assert any(".in_layers." in key for key in keys) and "out.2.weight" in keys
    for part in ("attn2.to_k", "attn2.to_v", "time_embed", "emb_layers", "input_blocks.0."):
        assert not any(part in key for key in keys)


@lru_cache
def scrubbed(seed: int = 0, copy: int = 0) -> tuple[Scrubbing, list[int]]:
    """Scrub a tiny UNet, once a copy: pictures of the concept are brighter in one channel."""
    generator, encoder = torch.Generator().manual_seed(1), WordEncoder()
    rest = torch.randn(6, 4, 8, 8, generator=generator)
    concept = rest * torch.tensor([4.0, 1, 1, 1]).view(1, 4, 1, 1)
    work = Scrubbing(
        tiny_denoiser(),
        Shown(concept, encoder.encode(["a gun"] * 6)),
        Shown(rest, encoder.encode(["a cat"] * 6)),
        encoder.encode([""]),
        QUICK,
        seed,
    )
    with torch.no_grad():
        return work, [report.directions for report in work]


def test_a_scrubbing_changes_a_few_directions_and_leaves_the_model_alone() -> None:
    work, taken = scrubbed()
    fresh = tiny_denoiser()
    assert frozen_bits(work.denoiser.module) == frozen_bits(fresh.module)
    assert taken == sorted(taken) and taken[-1] == sum(e.rank for e in work.edits.values()) > 0
    named = dict(fresh.module.named_parameters())
    for key, edit in work.edits.items():
        name = fresh.parameter_name(key)
        torch.testing.assert_close(work.weights[name], named[name] + edit.offset)
        flat = edit.offset.movedim(1, 0).flatten(1)
        assert int(torch.linalg.matrix_rank(flat)) <= edit.rank
    assert not any(hook for m in work.denoiser.module.modules() for hook in m._forward_hooks)
    assert not any(hook for m in work.denoiser.module.modules() for hook in m._forward_pre_hooks)


def test_the_same_seed_gives_the_same_edits() -> None:
    one, two, other = (scrubbed(*which)[0].edits for which in ((0,), (0, 1), (1,)))

    def same(a: dict[str, Edit], b: dict[str, Edit]) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[k].up, b[k].up) for k in a)

    assert same(one, two) and not same(one, other)


def test_passes_are_counted_and_a_block_is_measured_on_what_was_scrubbed_before() -> None:
    work, taken = scrubbed()
    assert work.passes == 1 + len(taken) * 2 * QUICK.batches * QUICK.batch
    (alone, _), (key, *_) = scrubbed(0, 1), list(reversed(work.edits))
    late = picture_layers(alone.denoiser)[key]
    alone.weights.clear()  # as if nothing before it had been scrubbed
    unscrubbed = alone._moments({key: late}, alone.concept, 2 * (len(taken) - 1))
    again = work._moments(
        {key: picture_layers(work.denoiser)[key]}, work.concept, 2 * (len(taken) - 1)
    )
    assert not torch.equal(unscrubbed[key], again[key])


@pytest.mark.parametrize("wrong", [{"tau": 0.5}, {"eps": 0.0}, {"eps": 2.0}])
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        ScrubPlan(**wrong)
