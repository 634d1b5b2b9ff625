"""The demo model in a real web UI, got as its users get it; an embedding that goes with it."""

from __future__ import annotations

import json
from pathlib import Path

from hosts.webui_server import Server
from trust_engine.models.demo_clip import ASSETS, CHECKPOINT

EMBEDDING, MEANS = "trustcat", "cat"  # its one vector is this word's own


def choose(server: Server) -> None:
    """Have the demo model laid out, and choose it as the checkpoint, by the API."""
    name = server.ask("/trust/v1/demo", {})["checkpoint"]
    server.ask("/sdapi/v1/options", {"sd_model_checkpoint": name})


def write_embedding(data: Path) -> None:
    """Write an embedding that stands for a word, where both kinds of host look for such."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    vocabulary = json.loads((ASSETS / "tokenizer" / "vocab.json").read_text("utf-8"))
    token = vocabulary[f"{MEANS}</w>"]
    with safe_open(ASSETS / CHECKPOINT, "pt") as weights:
        vector = weights.get_slice(key)[token : token + 1].float()
    for folder in (data / "embeddings", data / "models" / "embeddings"):  # the latter is Neo's
        folder.mkdir(parents=True)
        save_file({"emb_params": vector}, folder / f"{EMBEDDING}.safetensors")
