"""Renders that attacks learn unseen things from show them, after the autoencoder, too."""

from __future__ import annotations

from bench.never_seen import rendered
from trust_engine.audit.context import sees_all
from trust_engine.audit.judges.base import DemoJudge
from trust_engine.demo.judge import load_judge
from trust_engine.demo.vocabulary import BACKGROUNDS, STYLES, UNSEEN, Scene
from trust_engine.models.load import load_model


def test_the_judge_sees_what_was_rendered() -> None:
    scenes = [
        Scene((name,), BACKGROUNDS[i], STYLES[i % len(STYLES)])
        for name in UNSEEN
        for i in range(len(BACKGROUNDS))
    ]
    pixels = load_model("demo", "cpu").decode(rendered(scenes, 0))
    hits = sees_all(DemoJudge(load_judge()), pixels, [scene.objects for scene in scenes])
    assert sum(hits) >= len(hits) - 1
