"""The demo model at one click: laid out, taught to the host for its shapes alone, drawn with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fakes.webui import installed
from fakes.webui_applied import HOSTS
from fakes.webui_forge import FakeForge
from trust_engine.models.demo_clip import ASSETS, CHECKPOINT
from trust_engine.models.load import load_model


@pytest.fixture(params=HOSTS)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in a pretended host without checkpoints of its own."""
    made: Any = HOSTS[request.param]()
    with installed(tmp_path, made.modules) as shared:
        made.shared, made.models = shared, tmp_path / "models"
        made.folder = made.models / "Stable-diffusion"
        yield made


def families(fake: Any) -> list[str]:
    """Name the families that a Forge knows beside its own."""
    known = {one.__name__ for one in fake.families.models}
    assert known == {one.__name__ for one in fake.engine.matched_guesses}
    return sorted(known - {"SD15"})


def test_one_click_lays_it_out(fake: Any) -> None:
    from trust_webui import tab_demo

    loaded, bits = fake.shared.sd_model, fake.bits()
    told = tab_demo._lay()
    assert f'data-checkpoint="{CHECKPOINT}"' in told and "txt2img" in told
    assert (fake.folder / CHECKPOINT).read_bytes() == (ASSETS / CHECKPOINT).read_bytes()
    assert fake.shared.sd_model is loaded, "the model in use is the user's to change"
    assert all(torch.equal(w, bits[name]) for name, w in fake.bits().items())
    assert tab_demo._lay().startswith('<p id="trust_demo_laid"')
    assert [file.name for file in fake.folder.glob("*.safetensors")] == [CHECKPOINT]


def test_the_host_is_taught(fake: Any) -> None:
    from trust_webui import demo_model

    path = demo_model.lay()
    demo_model.lay()
    pipeline = fake.models / "trust_demo"
    assert json.loads((pipeline / "text_encoder" / "config.json").read_text())["hidden_size"] == 96
    assert (pipeline / "text_encoder" / "vocab.json").is_file()
    if not isinstance(fake, FakeForge):
        text = path.with_suffix(".yaml").read_text("utf-8")
        assert (pipeline / "text_encoder").as_posix() in text and "context_dim: 96" in text
        return
    assert families(fake) == ["TrustDemo"]
    first = fake.families.models[0]
    assert first.unet_config["context_dim"] == 96 and first.unet_extra_config["num_heads"] == 4
    assert fake.families.SD15.unet_config["context_dim"] == 768, "the host's own is as it was"
    assert Path(first.huggingface_repo) == pipeline


def test_after_a_restart(fake: Any) -> None:
    """The host begins knowing nothing; the file is there, also one that was copied by hand."""
    from trust_webui import demo_model

    demo_model.begin()
    assert not (fake.models / "trust_demo").exists(), "who has no demo model gets no files"
    fake.folder.mkdir(parents=True)
    (fake.folder / "emoji-world-mine.safetensors").write_bytes(b"another model of such a name")
    demo_model.begin()
    assert not (fake.models / "trust_demo").exists()
    file = fake.folder / "emoji-world-gun.safetensors"
    file.write_bytes((ASSETS / CHECKPOINT).read_bytes())
    demo_model.begin()
    if isinstance(fake, FakeForge):
        assert families(fake) == ["TrustDemo"]
        from trust_webui.host import current

        current().end()
        assert families(fake) == []
    else:
        assert [one.name for one in fake.folder.glob("*.yaml")] == ["emoji-world-gun.yaml"]


def test_a_file_of_its_name_stays(fake: Any) -> None:
    from trust_webui import demo_model

    fake.folder.mkdir(parents=True)
    (fake.folder / CHECKPOINT).write_bytes(b"mine")
    assert demo_model.lay().name == "emoji-world-2.safetensors"
    assert (fake.folder / CHECKPOINT).read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_to(fake: Any) -> None:
    from trust_webui import tab_demo

    fake.folder.parent.mkdir(exist_ok=True)
    fake.folder.write_bytes(b"a file where the folder should be")
    assert "trust_problem" in tab_demo._lay()


def test_it_draws_by_its_own_autoencoder(fake: Any) -> None:
    from trust_webui import demo_model

    model = fake.model
    model.sd_checkpoint_info = SimpleNamespace(filename=str(ASSETS / CHECKPOINT))
    demo_model.loaded(model)
    latents = torch.randn(2, 4, 8, 8)
    if isinstance(fake, FakeForge):
        decode, encode = model.decode_first_stage, model.encode_first_stage
        assert model.text_processing_engine.loaded_for == 96
    else:
        decode, encode = model.first_stage_model.decode, model.first_stage_model.encode
    wanted = load_model("demo", "cpu").decoder(latents)
    torch.testing.assert_close(decode(latents), wanted, atol=1e-4, rtol=1e-4)
    assert decode(latents.half()).dtype == torch.float16
    assert encode(wanted).shape == latents.shape


def test_other_models_are_left_alone(fake: Any) -> None:
    from trust_webui import demo_model

    before = dict(vars(fake.model))
    unet = torch.nn.ModuleDict({"joint_blocks": torch.nn.Linear(4, 4)})
    owner = fake.kmodel if isinstance(fake, FakeForge) else fake.model.model
    owner.diffusion_model = unet
    demo_model.loaded(fake.model)
    assert dict(vars(fake.model)) == before


def test_a_folder_of_any_name() -> None:
    """Forge Neo looks for words in a family's name, which here is a folder of the user's."""
    from importlib import import_module

    place = import_module("trust_webui.demo_forge").Place("/home/Wanda/xl-klein/trust_demo")
    assert not any(word in place for word in ("Wan", "xl", "klein", "PiD"))
    assert "krea" not in place.lower() and Path(place).name == "trust_demo"
