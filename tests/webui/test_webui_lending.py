"""A web UI's model lent to the engine: predictions, refusals, and its return as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fakes.webui import installed
from fakes.webui_a1111 import FakeA1111, Lora, Network
from fakes.webui_forge import FakeForge
from hosts.webui_lent import HOSTS, entered, make, run_job, small, spec
from trust_engine.diff import fingerprint, load_diff
from trust_engine.errors import ModelError, SpecError
from trust_engine.models.contract import Conditioning, LentModel
from trust_engine.models.parameters import exchanged
from trust_engine.models.unet_keys import projection_of
from trust_engine.spec import Ablation
from trust_engine.unlearn.run import Unlearning

MIDDLE = "middle_block.1.transformer_blocks.0.attn2.to_k"


@pytest.fixture(params=HOSTS)
def every(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in each pretended host, with ldm's own UNet too."""
    yield from entered(request.param, tmp_path)


@pytest.fixture(params=[HOSTS[0], HOSTS[-1]])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended host."""
    yield from entered(request.param, tmp_path)


def test_lends_the_model_itself(every: Any) -> None:
    from trust_webui.host import current

    host, demo = current(), every.demo
    x, t = torch.randn(3, 4, 16, 16), torch.tensor([10, 500, 900])
    with host.borrowed():
        lent = host.lend()
        cond = lent.encoder.encode(["a gun", "a cat", ""])
        with torch.no_grad():
            got = lent.denoiser(x, t, cond)
            wanted = demo.denoiser(
                x, t, Conditioning(demo.encoder.encode(["a gun", "a cat", ""]).context)
            )
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)
        assert not cond.context.is_inference()
        assert lent.latent_size == (16, 16) and "cat" in lent.vocabulary
        assert host.fingerprint() == fingerprint(lent.denoiser)


def test_unlearns_and_leaves_every_bit(every: Any) -> None:
    before = every.bits()
    job = run_job(small(pictures=2))
    assert (job.state, job.message) == ("done", "")
    result = job.result
    assert load_diff(result.path).changed == result.diff.changed > 0
    assert [label.split(":")[0] for _, label in result.gallery] == ["before", "after"] * 2
    before_picture, after_picture = (image.tobytes() for image, _ in result.gallery[:2])
    assert before_picture != after_picture, "two training steps show in a picture's bytes"
    assert set(job.curves) == {key.rsplit(".to_", 1)[0] for key in result.diff.offsets}
    for name, weight in every.bits().items():
        assert torch.equal(weight, before[name]), name
    assert every.shared.state.job == "" and every.shared.parallel_processing_allowed


def test_same_diff_as_without_a_host(fake: Any) -> None:
    got = run_job(small()).result.diff
    demo = make("a1111").demo
    lent = LentModel(demo.denoiser, demo.encoder, (8, 8), demo.vocabulary, demo.styles)
    run = Unlearning(lent, spec())
    for _ in run:
        pass
    assert set(got.offsets) == set(run.diff.offsets)
    assert got.provenance["base"] == run.diff.provenance["base"]
    shared = total = 0
    for key, offset in got.offsets.items():
        mine, theirs = set(offset.indices.tolist()), set(run.diff.offsets[key].indices.tolist())
        shared, total = shared + len(mine & theirs), total + len(mine | theirs)
    assert shared / total > 0.98, "kernels differ in the last digits, neurons hardly"


def test_gradients_through_the_unet(every: Any) -> None:
    """On Forge through inference tensors and in-place blocks; elsewhere plainly."""
    from trust_webui.host import current

    host = current()
    with host.borrowed(), host.stepping():
        got = gradients(host.lend().denoiser, every.demo.encoder)
    plain = make("a1111").demo
    wanted = gradients(plain.denoiser, plain.encoder)
    assert set(got) == set(wanted) and len(got) == 21
    for key, gradient in wanted.items():
        torch.testing.assert_close(got[key], gradient, atol=1e-6, rtol=1e-3)
    assert all(float(gradient.abs().sum()) > 0 for gradient in wanted.values())


def gradients(denoiser: Any, encoder: Any) -> dict[str, torch.Tensor]:
    """Take the gradient of some figure of a prediction in all q/k/v weights, by ldm name."""
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    context = encoder.encode(["a gun", "a cat"]).context
    cond, t = Conditioning(context.detach().clone()), torch.tensor([300, 700])
    stand_ins = {n: p.detach().clone() for n, p in denoiser.module.named_parameters()}
    named = {n: denoiser.checkpoint_key(n) for n in stand_ins}
    theta = {n: stand_ins[n].requires_grad_() for n, key in named.items() if projection_of(key)}
    with exchanged(denoiser.module, stand_ins):
        loss = denoiser(x, t, cond).square().mean()
        found = torch.autograd.grad(loss, list(theta.values()))
    return {named[n]: gradient for n, gradient in zip(theta, found, strict=True)}


ROBUST = pytest.param({"robust": True, "passes": 16}, id="robust")


@pytest.mark.parametrize("changes", [{"engine": "global"}, ROBUST])
def test_work_on_the_whole_unet_leaves_every_bit(fake: Any, changes: dict[str, Any]) -> None:
    before = fake.bits()
    job = run_job(small(**changes))
    assert (job.state, job.message) == ("done", "") and job.result.diff.changed
    assert all(torch.equal(w, before[name]) for name, w in fake.bits().items())


@pytest.mark.parametrize("at", [1, 10])
def test_interrupt_stops_within_a_step(fake: Any, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from trust_webui.jobs import Job

    before, steps = fake.bits(), []
    tick = Job.tick

    def counting(job: Any, done: int, total: int, stage: str) -> None:
        steps.append(stage)
        fake.shared.state.interrupted = len(steps) >= at  # as the host's Interrupt button does
        tick(job, done, total, stage)

    monkeypatch.setattr(Job, "tick", counting)
    job = run_job(small())
    assert job.state == "stopped" and len(steps) == at
    assert not fake.shared.state.interrupted, "the next generation is not interrupted"
    assert all(torch.equal(w, before[name]) for name, w in fake.bits().items())
    assert not list(fake.folder.rglob("*.safetensors"))


def test_failure_leaves_every_bit(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trust_webui import unlearn_job

    before = fake.bits()
    monkeypatch.setattr(unlearn_job, "save_or_rescue", lambda *_: 1 / 0)
    job = run_job(small())
    assert job.state == "failed" and "ZeroDivisionError" in job.message
    assert all(torch.equal(w, before[name]) for name, w in fake.bits().items())
    assert fake.shared.loaded_hypernetworks == ["worn"]


@pytest.mark.parametrize("how", ["float8", "gguf_cls", "bnb_quantized"])
def test_low_precision_is_refused(fake: Any, how: str) -> None:
    name, weight = next(iter(fake.unet.named_parameters()))
    owner = fake.unet.get_submodule(name.rpartition(".")[0])
    kind = torch.float8_e4m3fn if how == "float8" else weight.dtype
    with torch.inference_mode():
        owner.weight = torch.nn.Parameter(weight.to(kind), requires_grad=False)
    if how != "float8":  # as Forge marks weights that are packed
        setattr(owner.weight, how, True)
    job = run_job(small())
    assert job.state == "failed" and "low precision" in job.message


@pytest.mark.slow  # a quarter of a minute: a CPU multiplies 16-bit matrices slowly
def test_half_precision_has_masters_in_full(fake: Any) -> None:
    """What is learned is finer than float16 weights could hold, and what is lent stays as it is."""
    fake.half()
    before = fake.bits()
    assert {weight.dtype for weight in before.values()} == {torch.float16}
    job = run_job(small(rate=0.05))
    assert (job.state, job.message) == ("done", "")
    finer = total = 0
    for key, offset in load_diff(job.result.path).offsets.items():
        change = offset.dense()
        learned = (before[key].float() + change)[change != 0]
        finer += int((learned.half().float() != learned).sum())
        total += len(learned)
    assert finer > total / 2, (finer, total)
    assert all(torch.equal(w, before[name]) for name, w in fake.bits().items())


def test_forge_refuses_what_would_be_wrong_without_a_word(tmp_path: Path) -> None:
    made = FakeForge()
    with installed(tmp_path, made.modules):
        for wrong in ({"checkpointing": True}, {"ablation": Ablation(hessian="exact")}):
            job = run_job(small(engine="global", **wrong))
            assert job.state == "failed" and "in place" in job.message


def test_worn_loras_are_taken_off(tmp_path: Path) -> None:
    made = FakeA1111()
    clean = made.bits()
    with installed(tmp_path, made.modules):
        net, layer = (
            Network("sunny", SimpleNamespace()),
            made.unet.get_submodule(MIDDLE),
        )
        key = layer.network_layer_name
        net.modules[key] = Lora(net, key, torch.ones_like(layer.weight))
        made.networks.loaded_networks.append(net)
        with torch.no_grad():
            made.networks.network_apply_weights(layer)
        assert not torch.equal(
            layer.weight, clean["middle_block.1.transformer_blocks.0.attn2.to_k.weight"]
        )
        job = run_job(small())
    assert job.state == "done" and "sunny" in job.result.report
    assert job.result.diff.provenance["base"] == fingerprint(made.demo.denoiser)
    assert all(torch.equal(w, clean[name]) for name, w in made.bits().items())


@pytest.mark.parametrize(("other", "said"), [("inpainting", "inpainting"), ("dit", "Flux, SD 3")])
def test_other_families_are_refused(fake: Any, other: str, said: str) -> None:
    if other == "dit":
        wrapper = fake.kmodel if isinstance(fake, FakeForge) else fake.model.model
        wrapper.diffusion_model = torch.nn.ModuleDict({"joint_blocks": torch.nn.Linear(4, 4)})
    else:
        entry = fake.unet.get_submodule("input_blocks.0.0")
        entry.weight = torch.nn.Parameter(torch.zeros(64, 9, 3, 3), requires_grad=False)
    job = run_job(small())
    assert job.state == "failed" and said in job.message, job.message


def test_lowvram_is_refused(tmp_path: Path) -> None:
    made = FakeA1111()
    with installed(tmp_path, made.modules) as shared:
        from trust_webui.host import current

        shared.cmd_opts.lowvram = True
        with pytest.raises(ModelError, match="--medvram"), current().borrowed():
            pass
        shared.cmd_opts.lowvram, shared.sd_model = False, None
        with pytest.raises(ModelError, match="no checkpoint"), current().borrowed():
            pass


def test_medvram_fetches_the_unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called by what fetches it, and is there before the engine asks where it is."""
    made = FakeA1111()
    made.medvram()
    with installed(tmp_path, made.modules):
        seen = []
        begin = Unlearning.__iter__
        monkeypatch.setattr(
            Unlearning, "__iter__", lambda run: (seen.append(made.on_gpu), begin(run))[1]
        )
        job = run_job(small(pictures=2))
    assert (job.state, job.message, seen) == ("done", "", ["unet"])


def test_encoded_and_decoded_between_steps_through_the_unet(fake: Any) -> None:
    """An audit draws while it may be attacking: what surrounds gradients must let that happen."""
    from trust_webui.host import current

    host = current()
    with host.borrowed(), host.stepping():
        lent = host.lend(64)
        cond = lent.encoder.encode(["a cat"])
        with torch.no_grad():
            x = lent.denoiser(torch.randn(1, 4, 8, 8), torch.tensor([500]), cond)
        assert host.decode(x).shape == (1, 3, 64, 64)


def test_order_out_of_range(tmp_path: Path) -> None:
    made = FakeA1111()
    with installed(tmp_path, made.modules):
        from trust_webui.unlearn_job import Order

        with pytest.raises(SpecError, match="resolution"):
            Order(spec(), resolution=10_000)
        with pytest.raises(SpecError, match="pictures"):
            Order(spec(), pictures=17)
