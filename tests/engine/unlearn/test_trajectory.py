"""What is recorded: the states of the right prompts, at the layers' doors."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from toys.tiny import WordEncoder, tiny_denoiser
from trust_engine.errors import SpecError
from trust_engine.models.attention import cross_attention_modules, watch_inputs
from trust_engine.models.sampler import SamplerSettings
from trust_engine.unlearn.trajectory import POSITIONS, plan_recording, record

PROMPTS = ("a gun", "a cat", "a dog on a car")
LAST = "output_blocks.3.1.transformer_blocks.0.attn2"


def watched(cfg: float, batch: int = 8) -> tuple:
    """Record, and look over the recorder's shoulder: all states of each layer, call by call."""
    denoiser, encoder = tiny_denoiser(), WordEncoder()
    cond, uncond = encoder.encode(PROMPTS), encoder.encode([""])
    seen: dict[str, list[Tensor]] = defaultdict(list)
    with watch_inputs(cross_attention_modules(denoiser), lambda k, x: seen[k].append(x.clone())):
        settings = SamplerSettings(2, cfg)
        states = list(record(denoiser, cond, uncond, settings, (8, 8), seed=3, batch=batch))
    return states, seen


def all_are_in(part: Tensor, whole: Tensor) -> bool:
    """Tell whether each row's vectors of part (b, n, d) are among those of whole (b, m, d)."""
    same = (part[:, :, None] == whole[:, None].half().float()).all(-1)
    return bool(same.any(-1).all())


def test_told_and_free_are_not_confused() -> None:
    states, seen = watched(4.0)
    assert len(states) == 2
    told, free = states[-1].states(LAST)
    calls = [full.chunk(2) for full in seen[LAST]]
    for step, (without, with_prompt) in enumerate(calls):
        here = slice(step * POSITIONS, (step + 1) * POSITIONS)
        assert all_are_in(told[:, here], with_prompt)
        assert all_are_in(free[:, here], without)
        assert not all_are_in(told[:, here], without)


def test_without_guidance_there_is_one_kind() -> None:
    states, seen = watched(1.0)
    told, free = states[-1].states(LAST)
    assert torch.equal(told, free)
    assert seen[LAST][0].shape[0] == len(PROMPTS)
    assert states[-1].passes == 2 * len(PROMPTS)


@pytest.mark.parametrize("batch", [1, 2])
def test_batches_keep_the_prompts_in_order(batch: int) -> None:
    """A prompt's trajectory does not depend on how the prompts are batched."""
    whole, parts = watched(4.0)[1][LAST], watched(4.0, batch)
    told, _ = parts[0][-1].states(LAST)
    assert told.shape[0] == len(PROMPTS)
    for row in range(len(PROMPTS)):
        here, there = told[row, :POSITIONS], whole[0].chunk(2)[1][row]
        assert float(torch.cdist(here, there).amin(1).max()) < 0.01  # float16


def test_positions_differ_between_steps_and_do_not_repeat_within_one() -> None:
    told, _ = watched(1.0)[0][-1].states(LAST)
    assert told.shape[1] == 2 * POSITIONS
    assert len(told[0, :POSITIONS].unique(dim=0)) == POSITIONS


def test_latents_are_what_the_unet_was_given() -> None:
    recording = watched(4.0)[0][-1]
    assert recording.latents.shape == (len(PROMPTS), 2, 4, 8, 8)
    assert recording.timesteps.tolist() == [501, 1]
    assert float(recording.latents[:, 0].std()) == pytest.approx(1, abs=0.1)  # pure noise
    assert not torch.equal(recording.latents[:, 0], recording.latents[:, 1])


def test_with_room_every_prompt_is_recorded() -> None:
    plan = plan_recording(3, 5, 11)
    assert plan.recorded == list(range(11)) == plan.rows.tolist()


@pytest.mark.parametrize("room", [3, 4, 9, 20])
def test_without_room_prompts_borrow_from_their_own_kind(room: int) -> None:
    targets, preserve = 8, 40
    plan = plan_recording(targets, preserve, room)
    assert len(plan.recorded) == len(set(plan.recorded)) <= room
    assert len(plan.rows) == 2 * targets + preserve
    for prompt, row in enumerate(plan.rows.tolist()):
        lender = plan.recorded[row]
        assert min(prompt // targets, 2) == min(lender // targets, 2)
    for row, prompt in enumerate(plan.recorded):
        assert int(plan.rows[prompt]) == row  # who is recorded borrows from nobody


def test_no_room_is_said() -> None:
    with pytest.raises(SpecError, match="raise it, or lower trajectory_steps"):
        plan_recording(8, 8, 2)
