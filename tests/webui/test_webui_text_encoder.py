"""Prompts as the hosts take them: BREAK, long ones, one by one; what the engine makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts.webui_lent import HOSTS, entered, run_job, small
from trust_engine.errors import ModelError
from trust_engine.models.contract import Conditioning, stack
from trust_engine.spec import ConceptSpec

TWO, THREE = "a cat BREAK a dog", "a cat BREAK a dog BREAK a tree"


@pytest.fixture(params=HOSTS)
def every(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Be in each pretended host, with ldm's own UNet too."""
    yield from entered(request.param, tmp_path)


def test_prompts_are_encoded_one_by_one(every: Any) -> None:
    """The hosts' emphasis levels a batch by one mean: together, prompts would touch each other."""
    from trust_webui.text_encoder import HostEncoder

    asked: list[list[str]] = []

    def learned(prompts: Any, size: tuple[int, int]) -> torch.Tensor:
        asked.append(list(prompts))
        return torch.full((1, 77, 4), float("nan") if prompts == ["broken"] else 1.0)

    encoder = HostEncoder(learned, len, (64, 64))
    encoder.encode(["a cat", "a dog"])
    encoder.encode(["a dog", "a cat", ""])
    assert asked == [["a cat"], ["a dog"], [""]]
    with pytest.raises(ModelError, match="broken"):
        encoder.encode(["broken"])


def test_lengths_that_have_too_much_in_common_are_refused(every: Any) -> None:
    from trust_webui.text_encoder import HostEncoder

    encoder = HostEncoder(lambda told, _: torch.ones(1, 77 * len(told[0]), 4), len, (64, 64))
    assert encoder.encode(["a", "bb", "ccc", "dddd"]).context.shape == (4, 924, 4)
    with pytest.raises(ModelError, match="77, 154, 231, 308, 385 tokens need 4620"):
        encoder.encode(["eeeee"])


def test_rows_of_several_lengths_predict_what_each_does_alone(every: Any) -> None:
    from trust_webui.host import current

    host, prompts = current(), ["a cat", TWO, THREE]
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([400])
    with host.borrowed(), torch.no_grad():
        lent = host.lend()
        assert lent.encoder.encode(["a cat"]).context.shape[1] == 77
        # Alone, as the host draws them, and in a batch, where all have one length.
        alone = [host.learned([prompt], (128, 128)).clone() for prompt in prompts]
        assert [row.shape[1] for row in alone] == [77, 154, 231]
        wanted = torch.cat([lent.denoiser(x, t, Conditioning(row)) for row in alone])
        together = lent.encoder.with_syntax().encode(prompts)
        got = lent.denoiser(x.expand(3, -1, -1, -1), t.expand(3), together)
    assert together.context.shape[1] == 462
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)
    for one, other in ((0, 1), (1, 2)):
        assert not torch.allclose(wanted[one], wanted[other], atol=1e-3), "BREAK says something"


def test_long_prompts_are_unlearned(every: Any) -> None:
    before, long = every.bits(), "a small red cat on a table " * 20
    told = ConceptSpec(
        ("gun", "pistol BREAK gun"),
        preserve=(TWO, THREE, long.strip()),
        templates=("{}", "a picture of {} BREAK a table"),
    )
    job = run_job(small(told, 1, syntax="host"))
    assert (job.state, job.message) == ("done", "")
    assert len(job.result.gallery) == 2 and job.result.diff.changed
    assert all(torch.equal(w, before[name]) for name, w in every.bits().items())


def test_joined_at_the_length_that_all_go_into() -> None:
    rows = [Conditioning(torch.randn(1, n, 3)) for n in (4, 6)]
    joined = stack(rows)
    assert joined.context.shape == (2, 12, 3)
    assert torch.equal(joined.context[1], torch.cat([rows[1].context[0]] * 2))
    with pytest.raises(ModelError, match="4 tokens cannot be repeated to 6"):
        rows[0].repeated(6)


@pytest.mark.parametrize(
    ("prompt", "escaped", "plain"),
    [
        ("a tracer (overwatch)", r"a tracer \(overwatch\)", "a tracer (overwatch)"),
        ("[a|b]", r"\[a|b\]", "[a|b]"),
        ("((x:1.3))", r"\(\(x:1.3\)\)", "((x:1.3))"),
        (r"a\b", r"a\\b", r"a\b"),
        ("a BREAK b AND c", "a break b and c", "a break b and c"),
        ("BREAKFAST AND BRAND", "BREAKFAST and BRAND", "BREAKFAST and BRAND"),
        ("gun", "gun", "gun"),
    ],
)
def test_a_prompt_is_written_to_be_read_as_spelled(prompt: str, escaped: str, plain: str) -> None:
    from trust_webui.text_encoder import literal

    assert literal(prompt, emphasis=True) == escaped and literal(prompt, emphasis=False) == plain


def test_words_are_encoded_as_they_are_spelled(every: Any) -> None:
    from trust_webui.host import current

    host = current()
    with host.borrowed(), torch.no_grad():
        encoder = host.lend().encoder
        assert encoder.encode([TWO]).context.shape[1] == 77
        assert encoder.with_syntax().encode([TWO]).context.shape[1] == 154
        assert encoder.count_tokens(TWO) == 5


def test_no_embedding_is_found_among_the_words_for_a_while() -> None:
    from types import SimpleNamespace

    from trust_webui.text_encoder import without_embeddings

    table = SimpleNamespace(ids_lookup={3: "gun"})
    with pytest.raises(ValueError, match="x"), without_embeddings([table]):
        assert table.ids_lookup == {}
        raise ValueError("x")
    assert table.ids_lookup == {3: "gun"}
