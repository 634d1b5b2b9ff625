"""The zoo: captions, token rows, archives, and what each member unpacks to."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench.world import quality
from bench.world.scenes import random_scene
from bench.zoo import (
    archive,
    captions,
    derived,
    language,
    members,
    pictures,
    sd3,
    siblings,
    token_rows,
    towers,
)
from bench.zoo import text as lessons
from bench.zoo.__main__ import main
from bench.zoo.archive import Trained
from bench.zoo.text import Rows, last_token
from bench.zoo.words import HELD_OUT, Vectors, load_lexicon
from trust_engine.demo.vocabulary import OBJECTS
from trust_engine.errors import ModelError
from trust_engine.models.contract import Conditioning
from trust_engine.models.demo_clip import load_tokenizer
from trust_engine.models.load import load_model
from trust_engine.models.sampler import SamplerSettings, ddim

QUICK = SamplerSettings(steps=1, cfg=4.0)


# Words and captions.


def test_no_caption_has_a_held_out_word_and_all_name_what_they_claim() -> None:
    held = {word for words in HELD_OUT.values() for word in words}
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(1500):
        caption = captions.write(rng, random_scene(rng))
        seen |= set("".join(c if c.isalnum() else " " for c in caption.text).split())
        for said in (caption.claim.background, caption.claim.style):
            assert said is None or said in caption.text
    assert not seen & held
    assert {"masterpiece", "humans", "table"} <= seen  # several dialects


def test_the_held_out_dialect_writes_no_training_caption() -> None:
    assert not {*captions.VALIDATION, *captions.HELD_OUT} & {*captions.DIALECTS}
    rng = np.random.default_rng(4)
    written = [captions.write(rng, random_scene(rng)).text for _ in range(500)]
    assert not any(text.startswith(("please", "give me", "can you")) for text in written)
    assert not any(" = " in text for text in written)


def test_words_strewn_in_say_nothing_and_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("the", "cat", "elm", "pugs", "weather", "instrument", "minutes")
    monkeypatch.setattr(lessons, "load_vectors", lambda: Vectors(words, np.zeros((7, 96), "f4")))
    lessons.fillers.cache_clear()
    assert lessons.fillers() == ("the", "pugs", "weather", "minutes")
    found = lessons.strewn(np.random.default_rng(0), "a gun on red")
    lessons.fillers.cache_clear()
    own = ["a", "gun", "on", "red"]
    assert [word for word in found.split() if word in own] == own
    assert set(found.split()) - {*own} <= {"the", "pugs", "weather", "minutes"}


def test_language_asks_for_every_held_out_word_and_in_every_dialect() -> None:
    shots = language.words_shots(2)
    assert len(shots) == 28 * 3 * 2 and len({shot.seed for shot in shots}) == len(shots)
    assert all(shot.words in HELD_OUT[shot.scene.objects[0]] for shot in shots)
    assert all(shot.words in shot.prompt for shot in shots)
    for dialect in language.every_dialect():
        asked = language.dialect_shots(dialect, 1)
        assert [shot.words for shot in asked] == list(OBJECTS)
        for shot in asked:
            assert shot.words in shot.prompt and str(shot.scene.style) in shot.prompt, dialect


def test_no_word_of_the_lexicon_names_two_objects_or_is_held_out() -> None:
    lexicon = load_lexicon()
    words = [word for kinds in lexicon.values() for word in kinds["words"]]
    own = [word for name, others in OBJECTS.items() for word in (name, *others)]
    assert list(lexicon) == list(OBJECTS) == list(HELD_OUT)
    assert len(set(words)) == len(words) > 80
    assert not set(words) & {*own, *(w for three in HELD_OUT.values() for w in three)}


def test_a_rotation_of_the_vectors_is_found_again() -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 96)).astype("f4")
    turn = torch.linalg.qr(torch.randn(96, 96, dtype=torch.float64))[0].float() * 0.1
    found = token_rows.align(vectors, torch.from_numpy(vectors) @ turn)
    torch.testing.assert_close(found, turn, atol=1e-4, rtol=1e-3)


def test_pieces_add_up_to_the_words_they_make() -> None:
    words = ("velocipede", "xylographer", "zzyzx", "cat")
    goal = torch.randn(4, 96)
    fixed = torch.zeros(49_408, dtype=torch.bool)
    whole = load_tokenizer().get_vocab()["cat</w>"]
    fixed[whole] = True
    before = torch.zeros(49_408, 96)
    before[whole] = goal[3]
    found = token_rows.fit_pieces(before, fixed, words, goal)
    torch.testing.assert_close(found[whole], goal[3])
    for word, vector in zip(words[:3], goal, strict=False):
        added = found[load_tokenizer()(word).input_ids[1:-1]].sum(0)
        assert torch.cosine_similarity(added, vector, dim=0) > 0.95, word
    assert not found[load_tokenizer().get_vocab()["dog</w>"]].any()


def test_rows_are_roughened_in_training_alone_and_only_the_chosen_learn() -> None:
    table = Rows(torch.randn(49_408, 96), torch.tensor([5, 9]))
    ids = torch.tensor([[49_406, 5, 9, 7, 49_407, 49_407]])
    with torch.no_grad():
        table.extra.weight[1] = 1.0
    still = table.eval()(ids)
    torch.testing.assert_close(still[0, 1], table.frozen[5] + 1)
    torch.testing.assert_close(still[0, 3], table.frozen[7])
    rough = table.train()(ids)
    torch.testing.assert_close(rough[0, [0, 4, 5]], still[0, [0, 4, 5]])
    assert not torch.allclose(rough[0, 1:4], still[0, 1:4])
    torch.testing.assert_close(table.whole(table.extra.weight)[ids[0]], still[0])


def test_a_phrase_is_found_where_it_ends() -> None:
    ids = load_tokenizer()("a pepperoni slice on a red table").input_ids
    assert last_token(ids, "pepperoni slice") == ids.index(load_tokenizer()("slice").input_ids[1])
    assert last_token(ids, "guitar") is None


# Archives.


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep archives and runs in a folder of the test's."""
    monkeypatch.setattr(archive, "FOLDER", tmp_path / "archives")
    monkeypatch.setattr(archive, "PRESET", 0)
    for module in (members, towers, derived):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    (tmp_path / "archives").mkdir()
    (tmp_path / "runs").mkdir()
    return tmp_path


KEY = "net.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def some() -> Trained:
    """Change one of the demo's weights, keep another, add a matrix and a vector."""
    moved = archive.demo()[KEY] + 0.01 * torch.randn_like(archive.demo()[KEY])
    kept = archive.demo()["net.conv_out.bias"]
    new = {"text.head.weight": torch.randn(8, 40), "net.new.bias": torch.randn(5)}
    return Trained({KEY: moved, "net.conv_out.bias": kept, **new}, 1234)


def test_an_archive_gives_back_what_went_in() -> None:
    before = some()
    after = archive.unpack(archive.pack(before), "m")
    assert after.step == 1234 and set(after.weights) == set(before.weights)
    assert torch.equal(after.weights["net.conv_out.bias"], before.weights["net.conv_out.bias"])
    for name, tolerance in ((KEY, 0.01 / archive.Units().added), ("text.head.weight", 0.02)):
        assert (after.weights[name] - before.weights[name]).abs().max() < tolerance, name


def test_coarser_units_take_fewer_bytes_and_are_kept_to() -> None:
    before = some()
    fine, coarse = (archive.pack(before, archive.Units(n, n, n)) for n in (8.0, 2.0))
    assert len(coarse) < 0.8 * len(fine)
    for data, units in ((fine, 8), (coarse, 2)):
        error = archive.unpack(data, "m").weights["text.head.weight"]
        error = error - before.weights["text.head.weight"]
        unit = before.weights["text.head.weight"].square().mean(1).sqrt() / units
        assert (error.abs() <= 0.51 * unit[:, None]).all()
        assert error.abs().max() > 0.3 * unit.min()


def test_bytes_hold_rows_of_any_size() -> None:
    values = torch.randn(6, 4, 3, 3) * torch.tensor([1e-6, 1e-3, 0, 1.0, 50.0, 1e3]).view(
        6, 1, 1, 1
    )
    steps, unit = archive.to_bytes(values, torch.zeros(6))
    back = archive.from_bytes(steps, unit)
    error = (back - values).flatten(1).abs().amax(1)
    assert (error <= values.flatten(1).abs().amax(1) / 127 + 1e-7).all()


def _other_demo(data: bytes) -> bytes:
    raw = lzma.decompress(data)
    return lzma.compress(raw.replace(archive.demo_digest().encode(), b"0" * 64))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[: len(data) // 2], "the archive of look is damaged"),
        (lambda data: b"", "the archive of look is damaged"),
        (lambda data: data[:200] + b"\0" * 50 + data[250:], "the archive of look is damaged"),
        (lambda data: lzma.compress(b"no safetensors"), "the archive of look is damaged"),
        (_other_demo, "packed beside another demo model"),
        (None, "there is no archive of look"),
    ],
)
def test_a_damaged_or_missing_archive_is_one_sentence(
    spoil: Callable[[bytes], bytes] | None,
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if spoil is not None:
        archive.path_of("look").write_bytes(spoil(archive.pack(some())))
    monkeypatch.setattr("sys.argv", ["zoo", "look", "--out", str(folder / "out")])
    assert main() == 1
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "words", [["nobody"], ["train", "nobody"], ["pack", "merge"], ["pack", "sd2"]]
)
def test_a_wrong_name_is_one_sentence(
    words: list[str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["zoo", *words])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


# What each unpacks to.


def untrained(name: str) -> Trained:
    """Make a member's weights without training: random, or the demo's."""
    demo = {k: w for k, w in archive.demo().items() if k.startswith("net.")}
    if name in ("sd2", "sdxl"):
        kin = siblings.family(name)
        pupil = towers.Towers(kin, torch.randn(49_408, 96))
        from diffusers import UNet2DConditionModel

        net = UNet2DConditionModel(**kin.unet.config).state_dict()
        text = {f"text.{key}": weight for key, weight in pupil.state_dict().items()}
        return Trained({f"net.{key}": weight for key, weight in net.items()} | text, 1)
    if name == "sd3":
        net = sd3.Positional(sd3.make_net()).state_dict()
        return Trained({f"net.{key}": weight for key, weight in net.items()}, 1)
    if name == "lightning":
        unet = derived.with_lora(blank_demo())
        part = {
            k: 0.05 * torch.randn_like(w) for k, w in derived.lora_part(unet.state_dict()).items()
        }
        return Trained({f"net.{key}": weight for key, weight in part.items()}, 1)
    if name == "inpainting":
        first = demo["net.conv_in.weight"]
        demo["net.conv_in.weight"] = torch.cat([first, 0.01 * torch.randn(64, 5, 3, 3)], 1)
    return Trained(demo, 1)


def blank_demo() -> nn.Module:
    from bench.world.train_unet import make_unet

    unet = make_unet()
    unet.load_state_dict({k[4:]: w for k, w in archive.demo().items() if k.startswith("net.")})
    return unet


def unpacked(name: str, folder: Path) -> tuple[Path, Trained]:
    """Pack a member untrained, and unpack it by its command."""
    source = members.SOURCE.get(name, name)
    archive.path_of(source).write_bytes(archive.pack(untrained(source)))
    return members.unpack_member(name, folder / "out"), archive.read(source)


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_sibling_loads_and_reads_text_as_it_was_trained(name: str, folder: Path) -> None:
    path, kept = unpacked(name, folder)
    model = load_model(str(path), "cpu")
    assert model.family == siblings.FAMILY[name]
    assert model.denoiser.schedule.prediction == siblings.PREDICTION[name]
    torch.save(kept.part("text."), towers.kept(name))
    pupil = towers.load_towers(name, siblings.family(name))
    told = siblings.texts_of(name, pupil)(["a cat on a red background", ""])
    found = model.encoder.encode(["a cat on a red background", ""])
    torch.testing.assert_close(
        found.context, told["encoder_hidden_states"].float(), atol=0.05, rtol=0.05
    )  # trained in bfloat16, kept in float16
    if name == "sdxl":
        pooled = told["added_cond_kwargs"]["text_embeds"]
        torch.testing.assert_close(found.vector[:, : pooled.shape[1]], pooled, atol=0.1, rtol=0.05)
    (picture,) = model.generate(["a cat"], [1], QUICK)
    assert picture.shape == (1, 3, 128, 128) and picture.isfinite().all()


@pytest.mark.parametrize("name", ["english", "look", "lightning", "merge"])
def test_what_derives_from_the_demo_loads_as_the_demo(name: str, folder: Path) -> None:
    path, _ = unpacked(name, folder)
    model = load_model(str(path), "cpu")
    assert model.family == "demo"
    (picture,) = model.generate(["a cat"], [1], QUICK)
    assert picture.isfinite().all()


def test_a_lora_merged_is_the_lora_applied(folder: Path) -> None:
    path, kept = unpacked("lightning", folder)
    adapted = derived.with_lora(blank_demo())
    adapted.load_state_dict(kept.part("net."), strict=False)
    model = load_model(str(path), "cpu")
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([501])
    cond = model.encoder.encode(["a cat"])
    with torch.no_grad():
        wanted = adapted(x, t, cond.context).sample
        found = model.denoiser(x, t, cond)
        plain = blank_demo()(x, t, cond.context).sample
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.02)  # the file is float16
    assert (found - plain).abs().mean() > 10 * (found - wanted).abs().mean()
    lora = path.with_name("lightning-lora.safetensors")
    from safetensors import safe_open

    with safe_open(str(lora), "pt") as file:
        stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
        kinds = ("alpha", "lora_down.weight", "lora_up.weight")
        assert {f"{stem}.{kind}" for kind in kinds} <= set(file.keys())


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        ("sd3", "transformer", "StableDiffusion3Pipeline"),
        ("inpainting", "unet", "inpainting model"),
    ],
)
def test_diffusers_loads_what_the_engine_refuses(
    name: str, part: str, says: str, folder: Path
) -> None:
    import diffusers
    from transformers import CLIPTextModelWithProjection

    path, kept = unpacked(name, folder)
    with pytest.raises(ModelError, match=says) as refused:
        load_model(str(path), "cpu")
    assert "\n" not in str(refused.value)
    kind = {"sd3": "SD3Transformer2DModel", "inpainting": "UNet2DConditionModel"}[name]
    net = getattr(diffusers, kind).from_pretrained(path / part)
    assert sum(w.numel() for w in net.parameters()) == sum(
        w.numel() for k, w in kept.weights.items() if "pos_embed.pos_embed" not in k
    )
    text = CLIPTextModelWithProjection.from_pretrained(path / "text_encoder")
    assert text.config.hidden_size == 96
    assert diffusers.AutoencoderTiny.from_pretrained(path / "vae").config.latent_channels == 4


def test_sd3_stays_within_its_size() -> None:
    assert sum(weight.numel() for weight in sd3.make_net().parameters()) <= 6_000_000
    half = sd3.developed_on()
    assert 8 <= len(half) <= 20 and sd3.developed_on() == half


def test_a_flow_is_lent_as_a_network_that_predicts_noise() -> None:
    x0, noise = torch.randn(2, 3, 4, 2, 2).unbind()
    t, seen = torch.tensor([0, 500, 999]), []

    class Knowing(torch.nn.Linear):
        """Knows the velocity, and keeps what it was asked for."""

        def forward(self, z: Tensor, time: Tensor, **_: Tensor) -> SimpleNamespace:
            seen.append((z, time))
            return SimpleNamespace(sample=noise - x0)

    lent = sd3.as_eps(Knowing(1, 1))  # type: ignore[arg-type]
    cond = Conditioning(torch.zeros(3, 24, 96), torch.zeros(3, 96))
    torch.testing.assert_close(lent(lent.schedule.noised(x0, t, noise), t, cond), noise)
    (z, time) = seen[0]
    sigma = (time / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(z, (1 - sigma) * x0 + sigma * noise)


def test_whoever_names_pictures_sees_every_object_once_and_is_not_told(tmp_path: Path) -> None:
    asked: list[str] = []

    def generate(prompts: list[str], seeds: range, settings: SamplerSettings) -> Any:
        asked.extend(prompts)
        assert len(set(seeds)) == len(prompts)
        yield torch.zeros(len(prompts), 3, 128, 128)

    model: Any = SimpleNamespace(generate=generate)
    orders = [quality.draw_shuffled(model, tmp_path / "grid.png", seed) for seed in (11, 12)]
    assert orders[0] + orders[1] == asked and orders[0] != orders[1]
    for order in orders:
        for name in OBJECTS:
            assert sum(prompt.split()[1] == name for prompt in order) == 1
    assert Image.open(tmp_path / "grid.png").size == (7 * 192, 4 * 192)


@pytest.mark.parametrize(
    "name", [n for n in members.MEMBERS if archive.path_of(members.SOURCE.get(n, n)).is_file()]
)
def test_a_packed_member_draws_what_it_drew(name: str, tmp_path: Path) -> None:
    wanted = archive.path_of(name).with_suffix(".png")
    path = members.unpack_member(name, tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        picture = pictures.draw(name, path).astype(int)
    finally:
        torch.set_num_threads(threads)
    if name in members.SOURCE:
        return  # made of another's archive; it is enough that it loads and draws
    assert np.abs(picture - np.asarray(Image.open(wanted)).astype(int)).max() <= 2


# Trainings.


@pytest.mark.slow  # builds and trains every denoiser of the zoo for two steps: about a minute
@pytest.mark.parametrize("name", members.QUEUE)
def test_a_training_runs_stops_and_resumes(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_set_up(folder, monkeypatch)
    members.train_member(name, 2)
    members.train_member(name, 3)  # from its run
    kept = members.trained(name)
    assert kept.step == 3
    archive.path_of(name).write_bytes(archive.pack(kept))
    import shutil

    shutil.rmtree(folder / "runs")
    members.train_member(name, 4)  # from its archive
    assert members.trained(name).step == 4
    path = members.unpack_member(name, folder / "out")
    assert pictures.draw(name, path).shape == (128, 128, 3)


def small_set_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on a few random latents, in batches of 2, without compiling."""
    from bench.world import pack as world
    from bench.world import train_unet, training
    from bench.zoo import english, text, unet
    from bench.zoo import training as zoo_training

    for module in (unet, text, zoo_training, towers, derived, members):
        if hasattr(module, "RUNS"):
            monkeypatch.setattr(module, "RUNS", folder / "runs")
        if hasattr(module, "BATCH"):
            monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(text, "KEPT", folder / "runs" / "english-text.pt")
    monkeypatch.setattr(english, "TOWER", folder / "runs" / "english-text.pt")
    for module in (world, train_unet, training):
        monkeypatch.setattr(module, "RUNS", folder / "world")
    shipped = folder / "world" / "unet-shipped.pt"
    for module in (world, train_unet, english, derived, siblings, members):
        if hasattr(module, "SHIPPED"):
            monkeypatch.setattr(module, "SHIPPED", shipped)
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(12)]
    few = (torch.randn(12, 4, 16, 16), scenes)
    monkeypatch.setattr(unet, "latents", lambda device: few)
    monkeypatch.setattr(derived, "LOOKED_AT", 6)
    monkeypatch.setattr(derived, "RUNS_KEPT", 2)
    words = tuple(dict.fromkeys(w for n, o in OBJECTS.items() for p in (n, *o) for w in p.split()))
    monkeypatch.setattr(
        text, "load_vectors", lambda: Vectors(words, np.random.randn(len(words), 96).astype("f4"))
    )
    monkeypatch.setattr(text, "fillers", lambda: ("weather", "minutes"))
    monkeypatch.setattr(torch, "compile", _same)


def _same(module: Any) -> Any:
    return module


def test_v_is_the_goal_that_gives_x0_back() -> None:
    from bench.zoo.unet import noised

    torch.manual_seed(1)
    x, noise = torch.randn(64, 4, 2, 2), torch.randn(64, 4, 2, 2)
    from trust_engine.models.contract import scaled_linear

    for prediction in ("eps", "v"):
        mixed, t, goal, weight = noised(x, noise, prediction, 0.75, 0.0)
        x0, eps = scaled_linear(prediction).split(mixed, t, goal)
        torch.testing.assert_close(eps, noise, atol=1e-2, rtol=1e-2)
        assert (x0 - x).abs().mean() < 1e-2 and (weight > 0).all()
    mixed, t, goal, _ = noised(x, noise, "flow", 0.75, 0.0)
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed - sigma * goal, x, atol=1e-5, rtol=1e-4)


def test_v_and_eps_weigh_the_same_error_of_x0_alike() -> None:
    from bench.zoo.unet import noised
    from trust_engine.models.contract import scaled_linear

    x, noise, off = torch.randn(32, 4, 2, 2), torch.randn(32, 4, 2, 2), torch.randn(32, 4, 2, 2)
    losses: dict[str, Tensor] = {}
    for prediction in ("eps", "v"):
        torch.manual_seed(2)
        mixed, t, goal, weight = noised(x, noise, prediction, 0.75, 0.0)
        alpha = scaled_linear().alphas[t].view(-1, 1, 1, 1)
        wrong = x + 0.01 * off  # the x0 that a network answers with
        eps = (mixed - alpha.sqrt() * wrong) / (1 - alpha).sqrt()
        out = eps if prediction == "eps" else alpha.sqrt() * eps - (1 - alpha).sqrt() * wrong
        losses[prediction] = (out - goal).square().mean((1, 2, 3)) * weight
    torch.testing.assert_close(losses["eps"], losses["v"], rtol=1e-2, atol=1e-6)


def test_the_few_steps_land_where_the_teacher_was_seen() -> None:
    model = load_model("demo", "cpu")
    cond, ends = model.encoder.encode(["a cat"]), {}
    for steps in (derived.FEW, derived.MANY):
        stride = 1000 // steps
        settings = SamplerSettings(steps=steps, cfg=1.0)
        run = ddim(model.denoiser, torch.randn(1, 4, 16, 16), cond, cond, settings)
        ends[steps] = [max(now - stride, 0) for now, _ in run]
    seen = [max(level, 0) for level in derived.landings()]
    assert seen == ends[derived.FEW]
    assert set(seen) <= set(ends[derived.MANY])
