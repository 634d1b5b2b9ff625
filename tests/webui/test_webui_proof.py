"""A diff counts as applied when it is in the weights that draw: what is not there draws nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes.webui_a1111 import FakeA1111, NetworkModule
from fakes.webui_applied import KEY, draw, expected, lora, ready, scrub
from fakes.webui_forge import FakeForge, Merging
from fakes.webui_neo import FakeNeo, Patcher
from trust_engine.diff import save_diff
from trust_engine.errors import DiffError

GUN = ("gun.safetensors", 1.0)


class Never:
    """Stands in a fake's UNet, which must not be asked."""

    def __init__(self, fake: Any) -> None:
        self.asked = 0
        fake.unet.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.asked += 1


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    """Enter pretended hosts that have two diffs; the test's end leaves them, whatever holds on."""
    with contextlib.ExitStack() as stack:
        enter = contextlib.contextmanager(ready)
        yield lambda made: stack.enter_context(enter(made, tmp_path))


DEAF: dict[str, Callable[[], Any]] = {
    # The worst of all: the table of kinds is there, and nothing that is in it is ever called.
    "forge, kinds ignored": lambda: FakeForge(Merging(consulted=False)),
    "forge, adapters only": lambda: FakeForge(Merging(consulted=False, adapters=True)),
    "neo, table ignored": lambda: FakeNeo(Merging(consulted=False, adapters=True)),
    "neo, dense patches only": lambda: FakeNeo(Merging(consulted=False, strict=True)),
    "neo, at each use": lambda: FakeNeo(lowvram=True),
}


@pytest.mark.parametrize("how", DEAF)
def test_a_form_that_has_an_effect_is_found(inside: Any, how: str) -> None:
    fake = inside(DEAF[how]())
    clean = fake.bits()
    (picture,), _, runner = draw(fake, "gun.safetensors", 0.5)
    assert runner.swallowed == []
    torch.testing.assert_close(picture, expected(fake, ("gun", 0.5)), atol=1e-4, rtol=1e-4)
    draw(fake)
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())


def deaf_a1111(fake: Any) -> None:
    """The Lora extension writes down that a layer has its networks, and does not add them."""
    fake.networks.network_apply_weights = lambda layer: setattr(
        layer, "network_current_names", [(net.name,) for net in fake.networks.loaded_networks]
    )


def deaf_functional(fake: Any) -> None:
    """The old way, in which layers compute without what they should add."""
    fake.shared.opts.lora_functional = True
    for layer in fake.unet.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.forward = lambda x, layer=layer: torch.nn.functional.linear(
                x, layer.weight, layer.bias
            )


def deaf_forge(fake: Any) -> None:
    """The loader of LoRAs writes down what it has merged, and has not."""
    loader = fake.model.forge_objects_original.unet.lora_loader
    loader.refresh = lambda patches: setattr(loader, "loaded_hash", str(list(patches)))


def deaf_neo(fake: Any) -> None:
    """The patcher says that the weights have its patches, which they have not."""
    Patcher.patch_weight_to_device = lambda *_: None  # type: ignore[method-assign]


def deaf_at_each_use(fake: Any) -> None:
    """Merging beforehand works; layers whose patches are merged at each use leave them out."""
    Patcher._at_each_use = lambda *_: lambda weight: weight  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("make", "spoil"),
    [(FakeA1111, deaf_a1111), (FakeA1111, deaf_functional), (FakeForge, deaf_forge),
     (FakeNeo, deaf_neo), (lambda: FakeNeo(lowvram=True), deaf_at_each_use)],
)  # fmt: skip
def test_a_host_that_ignores_it_draws_nothing(
    inside: Any, make: Any, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("patch_weight_to_device", "_at_each_use"):
        monkeypatch.setattr(Patcher, name, getattr(Patcher, name))  # put back afterwards
    fake = inside(make())
    clean, (before,) = fake.bits(), draw(fake)[0]
    spoil(fake)
    never = Never(fake)
    with pytest.raises(DiffError, match=r"nothing was drawn.* 0% of its change") as caught:
        draw(fake, *GUN)
    assert never.asked == 0 and "\n" not in str(caught.value)
    assert "gun.safetensors" in str(caught.value)
    assert all(torch.equal(w, clean[name]) for name, w in fake.bits().items())
    fake.shared.opts.lora_functional = False
    assert torch.equal(draw(fake)[0][0], before), "without the diff it draws as ever"


@pytest.mark.parametrize(
    ("make", "spoil"),
    [(FakeA1111, deaf_a1111), (FakeA1111, deaf_functional), (FakeForge, deaf_forge),
     (FakeNeo, deaf_neo), (lambda: FakeNeo(lowvram=True), deaf_at_each_use)],
)  # fmt: skip
def test_low_rank_that_is_ignored_is_found(
    inside: Any, make: Any, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("patch_weight_to_device", "_at_each_use"):
        monkeypatch.setattr(Patcher, name, getattr(Patcher, name))
    fake = inside(make())
    scrub(fake)
    spoil(fake)
    never = Never(fake)
    with pytest.raises(DiffError, match=r"nothing was drawn.* -?0% of its change"):
        draw(fake, "scrubbed.safetensors", 1.0)
    assert never.asked == 0


def test_biases_that_are_ignored_are_found(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Lora extension that changes weights alone, as old ones did."""
    fake = inside(FakeA1111())
    scrub(fake)
    whole = NetworkModule.finalize_updown
    monkeypatch.setattr(NetworkModule, "finalize_updown", lambda *given: (whole(*given)[0], None))
    with pytest.raises(DiffError, match=r"nothing was drawn.*\.bias, -?0% of its change"):
        draw(fake, "scrubbed.safetensors", 1.0)


def test_one_way_of_two_that_is_ignored_is_found(inside: Any) -> None:
    """Where memory is short, some weights are merged beforehand and some at each use."""
    fake = inside(FakeNeo())
    keys = list(fake.diffs["gun"].offsets)
    layer = fake.unet.get_submodule(keys[len(keys) // 2].rpartition(".")[0])
    original, load = layer.weight, fake.load

    def load_all_but_one(models: Any, **told: Any) -> None:
        load(models, **told)
        layer.weight_function = [lambda weight: original]

    fake.load = load_all_but_one
    with pytest.raises(DiffError, match="0% of its change"):
        draw(fake, *GUN)


@pytest.mark.parametrize("make", [FakeForge, FakeNeo])
def test_put_on_twice_is_found(inside: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = inside(make())
    from trust_webui import merging

    once = merging._merge
    monkeypatch.setattr(merging, "_merge", lambda w, s, held: once(once(w, s, held), s, held))
    fake.calculators.update(trust_sparse=merging._merge)
    theirs = merging._adapted if isinstance(fake, FakeNeo) else merging._calculated
    monkeypatch.setattr(merging, "_works", lambda form: form is theirs)
    merging._form.cache_clear()
    with pytest.raises(DiffError, match="200% of its change"):
        draw(fake, *GUN)


@pytest.mark.parametrize("make", [FakeForge, FakeNeo])
def test_another_patcher_in_its_place_draws_nothing(inside: Any, make: Any) -> None:
    """An extension that acts after us, and begins again from the checkpoint's own patcher."""
    fake = inside(make())
    sampler = fake.sampler()

    class Replacing:
        def sample(self, p: Any) -> Any:
            fake.model.forge_objects.unet = fake.model.forge_objects_original.unet
            return sampler.sample(p)

    fake.sampler = Replacing
    with pytest.raises(DiffError, match="took them off"):
        draw(fake, *GUN)


def test_a_unet_that_draws_in_its_place_is_refused(inside: Any) -> None:
    """An SD Unet (TensorRT) has weights of its own."""
    fake = inside(FakeA1111())
    unets: Any = sys.modules["modules.sd_unet"]
    unets.current_unet = object()
    with pytest.raises(DiffError, match=r"SD Unet: None"):
        draw(fake, *GUN)


@pytest.mark.parametrize("how", ["gguf_cls", "bnb_quantized"])
def test_packed_weights_are_refused(inside: Any, how: str) -> None:
    """Their shapes and values are not the weight's; a diff for another model is not the reason."""
    fake = inside(FakeForge())
    layer = fake.unet.get_submodule(KEY)
    with torch.inference_mode():
        packed = torch.zeros(7, dtype=torch.uint8)
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    setattr(layer.weight, how, True)
    with pytest.raises(DiffError, match=r"NF4 or GGUF.*Automatic"):
        draw(fake, *GUN)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("make", [FakeForge, FakeNeo])
def test_a_lora_at_each_use_beside_it(inside: Any, make: Any, online: bool) -> None:
    """The same weight under a LoRA, larger than the diff: what is ours is told from it."""
    fake = inside(make())
    name, patches = lora(fake)
    worn = (name, {k: (kind, (5 * value,)) for k, (kind, (value,)) in patches.items()})
    worn = (*worn, "online") if online else worn
    (alone,), _, _ = draw(fake, loras=[worn])
    (both,), _, runner = draw(fake, *GUN, loras=[worn])
    (again,), _, _ = draw(fake, loras=[worn])
    assert runner.swallowed == [] and not torch.equal(alone, both) and torch.equal(alone, again)


def test_functional_networks(inside: Any) -> None:
    """A1111's old way, which leaves the weights alone and adds while a layer computes."""
    fake = inside(FakeA1111())
    fake.shared.opts.lora_functional = True
    (picture,), _, runner = draw(fake, *GUN, loras=[lora(fake)])
    assert runner.swallowed == []
    assert not torch.equal(picture, draw(fake, loras=[lora(fake)])[0][0])


@pytest.mark.parametrize("strength", [0.01, -2.0])
@pytest.mark.parametrize("make", [FakeA1111, FakeForge, FakeNeo])
def test_half_precision_is_no_reason_to_refuse(inside: Any, make: Any, strength: float) -> None:
    made = make()
    made.half()
    fake = inside(made)
    _, _, runner = draw(fake, "gun.safetensors", strength, "style.safetensors", 1.0)
    assert runner.swallowed == []


def test_diffs_that_undo_each_other(inside: Any) -> None:
    """Each is there, though their sum is nothing."""
    fake = inside(FakeForge())
    again = fake.diffs["gun"]
    offsets = {k: o.with_values(-o.values) for k, o in again.offsets.items()}
    save_diff(type(again)(offsets, dict(again.provenance)), fake.folder / "back.safetensors")
    (picture,), _, runner = draw(fake, *GUN, "back.safetensors", 1.0)
    assert runner.swallowed == []
    torch.testing.assert_close(picture, draw(fake)[0][0], atol=1e-4, rtol=1e-4)
