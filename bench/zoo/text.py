"""Train `english`'s text tower: it learns to say what the demo's tower says, in other words.

The teacher reads the demo's own caption of a scene; the pupil reads any dialect's. Both are to
agree in what the padding holds (most of what a UNet reads of a caption), in the states of the
words for object, background and style, and in the projected state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.world.pace import Pace
from bench.world.scenes import random_scene
from bench.world.train_unet import load_clip
from bench.world.training import autocast, pick_device
from bench.zoo.captions import DIALECTS, SHARES, VALIDATION, claimed, name_of
from bench.zoo.token_rows import token_rows
from bench.zoo.training import RUNS, Run
from bench.zoo.words import HELD_OUT, load_lexicon, load_vectors
from trust_engine.demo.vocabulary import OBJECTS, Scene, caption, every_phrase
from trust_engine.models.demo_clip import TinyClip, load_tokenizer, tokenize

KEPT = RUNS / "english-text.pt"
STEPS, BATCH, RATE = 750, 64, 1e-3
"""Many more lose the validation dialect again (bench/records/trials.md)."""
ASKED = 8  # captions an object of the validation dialect
NOISE = 1.0  # most noise on a word's row, as a share of its length: words near it mean the same
STREWN, FILLERS = 0.5, 5000  # share of captions with words that say nothing, and how many there are
SAID, TRUE = 0.5, 4.0  # weights of the words' states and of the projected state
WHOLE, BEGINNING = 4, 2  # every 4th step all of the padding is compared, else its first 2 places
END = 49_407


class Rows(nn.Module):
    """Token rows that stay as they are, but for a few that are trained: ids -> (..., 96)."""

    def __init__(self, rows: Tensor, trained: Tensor) -> None:
        super().__init__()
        self.frozen = rows
        self.place = torch.zeros(len(rows), dtype=torch.long)
        self.place[trained] = torch.arange(len(trained)) + 1
        self.extra = nn.Embedding(len(trained) + 1, rows.shape[1], padding_idx=0)
        nn.init.zeros_(self.extra.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up; while training, roughened."""
        x = F.embedding(ids, self.frozen) + self.extra(self.place[ids])
        if not self.training:
            return x
        share = NOISE * torch.rand(len(ids), 1, 1) * (ids < END - 1)[..., None]
        return x + share * torch.randn_like(x) * x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5

    def whole(self, extra: Tensor) -> Tensor:
        """Return all rows, the trained part included."""
        rows = self.frozen.clone()
        (at,) = self.place.nonzero(as_tuple=True)
        rows[at] += extra[self.place[at]]
        return rows


@dataclass(frozen=True)
class Lesson:
    """A caption for the pupil, the demo's for the teacher, and what both name."""

    pupil: str
    teacher: str
    pairs: tuple[tuple[str, str], ...]


def lesson(rng: np.random.Generator) -> Lesson:
    """Write a scene's caption in two ways; the demo's dialect in the same template twice."""
    scene = random_scene(rng)
    claim = claimed(rng, scene)
    dialect = list(DIALECTS)[rng.choice(len(DIALECTS), p=SHARES)]
    names = [name_of(rng, thing) for thing in scene.objects]
    plain = [
        name if name in OBJECTS[thing] else thing
        for name, thing in zip(names, scene.objects, strict=True)
    ]
    seed = int(rng.integers(1 << 31))
    text = DIALECTS[dialect](np.random.default_rng(seed), names, claim)
    taught = DIALECTS["classic"](np.random.default_rng(seed), plain, claim)
    said = [word for word in (claim.background, claim.style) if word is not None]
    pairs = (*zip(names, plain, strict=True), *((word, word) for word in said))
    return Lesson(strewn(rng, text) if rng.random() < STREWN else text, taught, pairs)


@cache
def fillers() -> tuple[str, ...]:
    """List common words that say nothing of the picture; none is held out."""
    taken = {word for three in HELD_OUT.values() for word in three}
    taken |= {word for phrase in every_phrase() for word in phrase.split()}
    taken |= {w for kinds in load_lexicon().values() for words in kinds.values() for w in words}
    common = load_vectors().words[:FILLERS]
    return tuple(word for word in common if word.isalpha() and word not in taken)


def strewn(rng: np.random.Generator, text: str) -> str:
    """Put one to five words that say nothing between a caption's: people write those, too."""
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 6))):
        filler = fillers()[int(rng.integers(len(fillers())))]
        words.insert(int(rng.integers(len(words) + 1)), filler)
    return " ".join(words)


def last_token(ids: list[int], phrase: str) -> int | None:
    """Find where a phrase's first occurrence ends among token ids."""
    wanted = load_tokenizer()(phrase).input_ids[1:-1]
    for start in range(len(ids) - len(wanted) + 1):
        if ids[start : start + len(wanted)] == wanted:
            return start + len(wanted) - 1
    return None


def places(lessons: list[Lesson], pupil: Tensor, teacher: Tensor) -> Tensor:
    """List (row, pupil's position, teacher's position) of what both name, (n, 3)."""
    found = []
    for row, one in enumerate(lessons):
        here, there = pupil[row].tolist(), teacher[row].tolist()
        for mine, theirs in one.pairs:
            at = (last_token(here, mine), last_token(there, theirs))
            if at[0] is not None and at[1] is not None:
                found.append((row, *at))
    return torch.tensor(found)


def length(ids: Tensor) -> Tensor:
    """Count the tokens before the padding, the end token included, (b,)."""
    return (ids != END).sum(1) + 1


def agreement(
    pupil: TinyClip, teacher: TinyClip, lessons: list[Lesson], device: torch.device, whole: bool
) -> tuple[Tensor, dict[str, float]]:
    """Sum the squared differences of states, by the teacher's variance, and 1 - cosine.

    whole: look at all of the padding, not at its beginning alone.
    """
    ours = tokenize([one.pupil for one in lessons])
    theirs = tokenize([one.teacher for one in lessons])
    if not whole:
        longest = int(torch.maximum(length(ours), length(theirs)).max()) + BEGINNING
        ours, theirs = ours[:, :longest], theirs[:, :longest]
    at = places(lessons, ours, theirs)
    with autocast(device):
        with torch.no_grad():
            goal = teacher.text(theirs.to(device))
        got = pupil.text(ours.to(device))
    want, have = goal.last_hidden_state.float(), got.last_hidden_state.float()
    spread = want.var((0, 1))
    filled = torch.arange(ours.shape[1]) >= torch.maximum(length(ours), length(theirs))[:, None] - 1
    filled = filled.to(device)
    padding = ((have - want).square() / spread)[filled].mean()
    row, here, there = at.to(device).unbind(1)
    said = ((have[row, here] - want[row, there]).square() / spread).mean()
    away = 1 - F.cosine_similarity(got.text_embeds.float(), goal.text_embeds.float()).mean()
    figures = {"padding": padding, "said": said, "away": away}
    loss = padding + SAID * said + TRUE * away
    return loss, {name: round(float(value.detach()), 4) for name, value in figures.items()}


def make_pupil(teacher: TinyClip) -> tuple[TinyClip, Rows]:
    """Copy the teacher and give it English rows."""
    pupil = TinyClip()
    pupil.load_state_dict(teacher.state_dict())
    table = pupil.text.text_model.embeddings
    rows = Rows(*token_rows(load_vectors(), table.token_embedding.weight.detach().clone()))
    table.token_embedding = rows
    pupil.image.requires_grad_(False)
    return pupil, rows


def folded(weights: dict[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Put the rows back where an ordinary tower keeps them."""
    place = "text.text_model.embeddings.token_embedding."
    weights = dict(weights)
    weights[place + "weight"] = rows.whole(weights.pop(place + "extra.weight"))
    return weights


@torch.no_grad()
def probe(pupil: TinyClip, teacher: TinyClip) -> dict[str, float]:
    """Tell how often names, and the validation dialect, lie nearest to their object."""
    names = list(OBJECTS)
    plain = [caption([name], "blue", "noto") for name in names]
    goal = teacher.embed_text(tokenize(plain))

    def right(texts: list[str], of: list[str]) -> float:
        nearest = (pupil.embed_text(tokenize(texts)) @ goal.T).argmax(1)
        truth = torch.tensor([names.index(name) for name in of])
        return round(float((nearest == truth).float().mean()), 3)

    rng = np.random.default_rng(1)
    ((dialect, write),) = VALIDATION.items()
    of = [name for name in names for _ in range(ASKED)]
    asked = [write(rng, [name], Scene((name,), "blue", "noto")) for name in of]
    return {
        "known": right(plain, names),
        f"validation dialect ({dialect})": right(asked, of),
    }


def main(stop: int | None = None) -> None:
    """Train, or resume, up to step `stop`; keep the averaged tower and the demo's image tower."""
    torch.manual_seed(11)
    device = pick_device()
    teacher = load_clip()
    pupil, rows = make_pupil(teacher)
    run = Run("english-text", {"clip": pupil}, Pace(STEPS, RATE, decay=0.99))
    rng = np.random.default_rng((11, run.step))

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        pupil.train()
        lessons = [lesson(rng) for _ in range(BATCH)]
        return agreement(pupil, teacher, lessons, device, step % WHOLE == 0)

    last = min(STEPS, stop or STEPS)
    for step in run.run(loss_of) if run.step < last else ():
        if step % 250 == 0 or step >= last:
            save(run, rows, teacher)
        if step >= last:
            break
    run.save()


def save(run: Run, rows: Rows, teacher: TinyClip) -> None:
    """Write the averaged tower as an ordinary one, and say how it does."""
    weights = folded(run.averaged("clip"), rows)
    torch.save(weights, KEPT)
    tower = TinyClip()
    tower.load_state_dict(weights)
    run.log(**probe(tower.eval(), teacher))


if __name__ == "__main__":
    main()
