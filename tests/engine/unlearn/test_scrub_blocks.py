"""Scrubbing block by block: every block computes twice, and the edits are those of the long way."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toys.tiny import WordEncoder, fake_denoiser, frozen_bits, hooks_of, tiny_denoiser
from trust_engine.errors import ModelError, SpecError
from trust_engine.models.contract import Denoiser, scaled_linear
from trust_engine.models.parameters import exchanged
from trust_engine.unlearn.scrubbing.blocks import Block, blocks_of, picture_layers
from trust_engine.unlearn.scrubbing.directions import Edit
from trust_engine.unlearn.scrubbing.moments import Moments
from trust_engine.unlearn.scrubbing.noised import Drawn, Noised, chance, renoised, shown_to
from trust_engine.unlearn.scrubbing.replay import Outputs, Replay
from trust_engine.unlearn.scrubbing.run import ORDER, Scrubbing, ScrubPlan

QUICK = ScrubPlan(tau=1.05, batch=4)
SAMPLES = 8  # of either kind


def shown(denoiser: Denoiser, seed: int = 0) -> tuple[Noised, Noised]:
    """Noise pictures of the concept, brighter in one channel, and of the rest."""
    encoder, generator = WordEncoder(), torch.Generator().manual_seed(1)
    rest = torch.randn(6, 4, 8, 8, generator=generator)
    concept = rest * torch.tensor([4.0, 1, 1, 1]).view(1, 4, 1, 1)
    made = [
        renoised(
            denoiser,
            Drawn(latents, encoder.encode([text] * 6)),
            encoder.encode([""]),
            SAMPLES,
            0.4,
            chance(seed, which),
        )
        for which, (latents, text) in enumerate(((concept, "a gun"), (rest, "a cat")))
    ]
    return made[0], made[1]


def split(denoiser: Denoiser, seed: int = 0) -> tuple[list[Noised], Noised]:
    """Return them as a scrubbing takes them."""
    concept, rest = shown(denoiser, seed)
    return [concept], rest


@lru_cache
def scrubbed(seed: int = 0, style: str = "diffusers", memory: int = 2**30) -> Scrubbing:
    """Scrub a tiny UNet."""
    denoiser = tiny_denoiser(style)
    work = Scrubbing(denoiser, *split(denoiser, seed), replace(QUICK, memory=memory))
    for _ in work:
        assert not any(hooks_of(denoiser.module))
        assert not any("forward" in m.__dict__ for m in denoiser.module.modules())
    return work


def same(a: dict[str, Edit], b: dict[str, Edit]) -> bool:
    """Tell whether two scrubbings did the same, to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k].offset, b[k].offset) for k in a)


def blocks(denoiser: Denoiser) -> list[Block]:
    """Put a denoiser's layers in order."""
    return blocks_of(denoiser, lambda: shown_to(denoiser, shown(denoiser)[1].batches(1)[0]))


def test_layers_of_the_text_and_the_time_step_are_left_alone() -> None:
    keys = picture_layers(tiny_denoiser())
    assert any(".attn2.to_q" in key for key in keys) and any(".attn1.to_k" in key for key in keys)
    assert any(".in_layers." in key for key in keys) and "out.2.weight" in keys
    for part in ("attn2.to_k", "attn2.to_v", "time_embed", "emb_layers", "input_blocks.0."):
        assert not any(part in key for key in keys)


def test_blocks_are_in_order_and_know_who_reads_them() -> None:
    found = blocks(tiny_denoiser())
    names = [block.name for block in found]
    assert names[0] == "input_blocks.1.0" and names[-1] == "out.2"
    assert names.index("middle_block.1") < names.index("output_blocks.0.0")
    # The last of input_blocks.N is read once more, by the first of output_blocks.3-N.
    read = {b.name: names[b.used_last] for b in found if b.used_last >= 0}
    assert read == {
        "input_blocks.1.1": "output_blocks.2.0",
        "input_blocks.2.0": "output_blocks.1.0",
        "input_blocks.3.0": "output_blocks.0.0",
    }
    for block in found:
        queries = [key for key in block.layers if key.endswith("attn1.to_q.weight")]
        for query in queries:
            for other in ("to_k", "to_v"):
                assert block.alike[query.replace("to_q", other)] == query


def test_the_edits_are_those_of_computing_everything_every_time() -> None:
    """A module under ldm names whose blocks are never called is computed whole each time."""
    cached, whole = scrubbed(), scrubbed(style="ldm")
    assert cached.edits and same(cached.edits, whole.edits)
    assert whole.outputs.most == 0 < cached.outputs.most
    assert cached.passes < whole.passes / 3


@pytest.mark.parametrize("name", ["middle_block.1", "output_blocks.2.0"])
def test_moments_are_those_of_the_scrubbed_network(name: str) -> None:
    """Measured again, plainly, with all that comes before scrubbed and nothing stored."""
    work, found = scrubbed(), dict[str, Tensor]()
    denoiser = work.denoiser
    number = [b.name for b in blocks(denoiser)].index(name)
    before, block = blocks(denoiser)[:number], blocks(denoiser)[number]
    theta = {}
    for key in (key for b in before for key in b.layers if key in work.edits):
        weight = denoiser.parameter_name(key)
        theta[weight] = denoiser.module.get_parameter(weight) + work.edits[key].offset
    key = next(iter(block.layers))
    plain = Moments()
    hook = block.layers[key].register_forward_pre_hook(lambda _m, a: plain.add(a[0]))
    with torch.no_grad(), exchanged(denoiser.module, theta):
        for batch in work.kinds[0]:
            shown_to(denoiser, batch)
    hook.remove()
    again = Scrubbing(denoiser, *split(denoiser), QUICK, (number - 1, work.edits))

    def take(keys: list[str], seen: list[list[Moments]], _centred: bool) -> None:
        found.update({key: Moments.of(seen[0]).mean for key in keys})

    again._take = take  # type: ignore[method-assign,assignment]
    steps = iter(again)
    while key not in found:
        next(steps)
    torch.testing.assert_close(found[key], plain.mean, rtol=1e-6, atol=1e-7)


def test_every_block_computes_twice_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """By multiplications: of the network alone, so that moments are not taken here."""

    def nothing(moments: Moments, x: Tensor) -> None:
        d = x.shape[1] if x.ndim == 4 else x.shape[-1]
        moments.total, moments.sum, moments.count = torch.eye(d), torch.zeros(d), 1

    monkeypatch.setattr(Moments, "add", nothing)
    denoiser = tiny_denoiser()
    concept, rest = shown(denoiser)
    work = Scrubbing(denoiser, [concept], rest, QUICK)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        shown_to(denoiser, rest)
    with FlopCounterMode(display=False) as all_:
        list(work)
    passes = all_.get_total_flops() / one.get_total_flops() * len(rest)
    n = len(blocks(denoiser))
    assert work.passes == ORDER + round(2 * SAMPLES * (2 * n - 1) / n)
    # The last block computes once, the first conv and the time embedding in every pass.
    assert 0.9 * work.passes < passes < 1.1 * work.passes


def test_a_scrubbing_changes_a_few_directions_and_leaves_the_model_alone() -> None:
    work = scrubbed()
    fresh = tiny_denoiser()
    assert frozen_bits(work.denoiser.module) == frozen_bits(fresh.module)
    named = dict(fresh.module.named_parameters())
    assert sum(edit.rank for edit in work.edits.values()) > 0
    for key, edit in work.edits.items():
        name = fresh.parameter_name(key)
        torch.testing.assert_close(work.weights[name], named[name] + edit.offset)
        flat = edit.offset.movedim(1, 0).flatten(1)
        assert int(torch.linalg.matrix_rank(flat)) <= edit.rank


def test_the_same_seed_gives_the_same_edits() -> None:
    again = Scrubbing(tiny_denoiser(), *split(tiny_denoiser()), QUICK)
    for _ in again:
        pass
    assert same(scrubbed().edits, again.edits) and not same(scrubbed().edits, scrubbed(1).edits)


@pytest.mark.parametrize(
    "changes", [{"checked": True}, {"centred": True}, {"spared": (".attn1.",)}, {"soft": False}]
)
def test_every_plan_does_something_else(changes: dict[str, object]) -> None:
    denoiser = tiny_denoiser()
    work = Scrubbing(denoiser, *split(denoiser), replace(QUICK, **changes))
    list(work)
    assert work.edits and not same(work.edits, scrubbed().edits)
    named = dict(denoiser.module.named_parameters())
    biases = [name for name in work.weights if name.endswith(".bias")]
    if "centred" in changes:
        assert biases and all(not torch.equal(work.weights[n], named[n]) for n in biases)
    else:
        assert not biases
    if "spared" in changes:
        assert not any(".attn1." in key for key in work.edits)
    if "checked" in changes:
        assert sum(e.rank for e in work.edits.values()) < sum(
            e.rank for e in scrubbed().edits.values()
        )


def test_it_goes_on_from_weights_that_stand_in() -> None:
    """As if they were the network's own."""
    denoiser, other = tiny_denoiser(), tiny_denoiser()
    key = "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight"
    name = denoiser.parameter_name(key)
    start = {name: 1.5 * denoiser.module.get_parameter(name).detach()}
    work = Scrubbing(denoiser, *split(denoiser), QUICK, start=start)
    list(work)
    other.module.get_parameter(name).data.mul_(1.5)
    owned = Scrubbing(other, *split(other), QUICK)
    list(owned)
    assert same(work.edits, owned.edits) and not same(work.edits, scrubbed().edits)
    assert torch.equal(work.weights[name], owned.weights[name])
    assert frozen_bits(denoiser.module) == frozen_bits(tiny_denoiser().module)


@pytest.mark.parametrize("stop", [5, 60])
def test_a_scrubbing_that_was_stopped_goes_on_to_the_same_edits(stop: int) -> None:
    denoiser = tiny_denoiser()
    first = Scrubbing(denoiser, *split(denoiser), QUICK)
    for report in first:
        if report.done > stop:
            break
    second = Scrubbing(
        denoiser, *split(denoiser), QUICK, begun=(first.blocks_done, dict(first.edits))
    )
    done = [report.done for report in second]
    assert done == sorted(done) and done[-1] == report.total
    assert same(second.edits, scrubbed().edits)


def test_an_error_in_a_pass_leaves_the_network_as_it_was() -> None:
    denoiser = tiny_denoiser()
    work = Scrubbing(denoiser, *split(denoiser), QUICK)
    calls = 0

    def forward(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise RuntimeError("out of memory")
        return denoiser.forward(*args)  # type: ignore[arg-type]

    work.denoiser = replace(denoiser, forward=forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(work)
    assert frozen_bits(denoiser.module) == frozen_bits(tiny_denoiser().module)
    assert not any(hooks_of(denoiser.module))
    assert not any("forward" in m.__dict__ for m in denoiser.module.modules())


def test_a_forward_that_a_host_has_put_in_place_comes_back() -> None:
    denoiser = tiny_denoiser()
    owner = denoiser.module.get_submodule("down_blocks.0.resnets.0")
    own = owner.forward
    owner.forward = mine = lambda *args, **kwargs: own(*args, **kwargs)
    work = Scrubbing(denoiser, *split(denoiser), QUICK)
    list(work)
    assert owner.__dict__["forward"] is mine and same(work.edits, scrubbed().edits)


def test_outputs_that_do_not_fit_go_to_files_and_come_back_the_same(tmp_path) -> None:
    spilled = scrubbed(memory=20_000)
    assert same(spilled.edits, scrubbed().edits)
    outputs = Outputs(limit=100, folder=tmp_path)
    small, large = torch.randn(5), torch.randn(3, 40).half()
    outputs.put(0, 0, small)
    outputs.put(1, 0, large)
    assert (outputs.held, outputs.spilled) == (20, 240)
    cpu = torch.device("cpu")
    assert torch.equal(outputs.get(0, 0, cpu), small)
    assert torch.equal(outputs.get(1, 0, cpu), large)
    outputs.drop([1], 0)
    gone = outputs.get(1, 0, cpu)
    assert gone.shape == large.shape and gone.dtype == large.dtype and not gone.any()
    outputs.clear()
    assert (outputs.held, outputs.spilled) == (0, 0) and not list(tmp_path.iterdir())


def test_what_is_stored_is_told_before() -> None:
    """The skips and the last block's output, and of one batch the next one's."""
    work = scrubbed()
    denoiser = work.denoiser

    def once() -> None:
        with torch.no_grad():
            shown_to(denoiser, shown(denoiser)[1].batches(1)[0])

    replay = Replay(denoiser.module, blocks(denoiser), Outputs(), once)
    told, largest = replay.bytes_a_sample, max(replay._sizes)
    assert told < sum(replay._sizes) / 2
    assert 2 * SAMPLES * told <= work.outputs.most <= 2 * SAMPLES * told + QUICK.batch * largest
    assert work.outputs.held == work.outputs.spilled == 0


def test_layers_without_a_module_of_their_own_are_refused() -> None:
    flat = nn.ModuleDict(
        {"one": nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}), "two": nn.Linear(4, 4)}
    )
    names = {
        "one.a.weight": "input_blocks.1.0.a.weight",
        "one.b.weight": "input_blocks.2.0.b.weight",
        "two.weight": "input_blocks.1.0.c.weight",
    }
    denoiser = replace(fake_denoiser(None, scaled_linear()), module=flat, to_ldm=names.__getitem__)

    def once() -> None:
        for path in ("one.a", "one.b", "two"):
            flat.get_submodule(path)(torch.ones(1, 4))

    with pytest.raises(ModelError, match="module of their own"):
        blocks_of(denoiser, once)


def test_a_model_whose_layers_are_never_called_is_refused() -> None:
    with pytest.raises(ModelError, match="none of this model's layers can be watched"):
        blocks_of(tiny_denoiser(), lambda: None)


def test_a_layer_is_known_by_its_weight_whatever_its_class() -> None:
    """Forge's Linear is no torch.nn.Linear."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.eye(4)), None

    named = nn.ModuleDict({"own": Linear(), "norm": nn.LayerNorm(4)})
    names = {"own.weight": "input_blocks.1.0.own.weight"}
    denoiser = replace(
        fake_denoiser(None, scaled_linear()), module=named, to_ldm=lambda n: names.get(n, n)
    )
    assert list(picture_layers(denoiser)) == ["input_blocks.1.0.own.weight"]


def test_one_batch_is_measured_and_cannot_be_checked_on_another() -> None:
    denoiser = tiny_denoiser()
    plan = replace(QUICK, batch=2 * SAMPLES)
    work = Scrubbing(denoiser, *split(denoiser), plan)
    list(work)
    assert work.edits
    with pytest.raises(SpecError, match="two batches"):
        Scrubbing(denoiser, *split(denoiser), replace(plan, checked=True))


@pytest.mark.parametrize("wrong", [{"tau": 0.5}, {"eps": 0.0}, {"eps": 2.0}])
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        ScrubPlan(**wrong)
