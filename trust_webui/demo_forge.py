"""What Forge and Forge Neo need to know of the demo model: a family for these shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trust_engine.models.demo_architecture import UNET_CONFIG

CONTEXT = int(UNET_CONFIG["cross_attention_dim"])
FAMILY = "TrustDemo"


class Place(str):
    """A folder that is a family's name too: hosts look for words in names, not in this one.

    Forge Neo takes a name with "Wan" or "xl" in it, as anyone's folder may have, for a model so
    called.
    """

    __slots__ = ()

    def __contains__(self, _: object) -> bool:
        return False

    def lower(self) -> Place:
        """Return the same, in which no word is found either."""
        return self


def teach(folder: Path) -> None:
    """Put the family before those that the host knows; none of theirs has these shapes."""
    from backend.diffusion_engine.sd15 import StableDiffusion
    from huggingface_guess import model_list

    forget()
    widths, heads = UNET_CONFIG["block_out_channels"], UNET_CONFIG["attention_head_dim"]
    shapes = {"context_dim": CONTEXT, "model_channels": widths[0]}
    family = type(
        FAMILY,
        (model_list.SD15,),
        {
            "huggingface_repo": Place(folder.resolve()),
            "unet_config": {**model_list.SD15.unet_config, **shapes},
            "unet_extra_config": {"num_heads": heads, "num_head_channels": -1},
        },
    )
    model_list.models.insert(0, family)
    StableDiffusion.matched_guesses.append(family)


def forget() -> None:
    """Undo `teach`."""
    from backend.diffusion_engine.sd15 import StableDiffusion
    from huggingface_guess import model_list

    for listed in (model_list.models, StableDiffusion.matched_guesses):
        listed[:] = [one for one in listed if one.__name__ != FAMILY]


def see(model: Any, small: Any) -> None:
    """Decode and encode by the small autoencoder, and let embeddings of this width in."""
    model.decode_first_stage, model.encode_first_stage = small.decode, small.encode
    known = model.text_processing_engine.embeddings
    known.expected_shape = CONTEXT
    known.load_textual_inversion_embeddings()
