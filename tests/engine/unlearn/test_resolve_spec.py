"""What several concepts take more than one: passes, steps, entries, and less weight on the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from toys.tiny import tiny_model, tiny_spec
from trust_engine.spec import ConceptSpec, UnlearnSpec
from trust_engine.unlearn.resolve_spec import resolve
from trust_engine.unlearn.run import Unlearning
from trust_engine.unlearn.scrubbing.picture_stage import lists_of


def several(count: int, **changes: object) -> UnlearnSpec:
    """Ask for concepts that no rule of the spec holds against each other."""
    return UnlearnSpec(tuple(ConceptSpec((f"thing{i}",)) for i in range(count)), **changes)  # type: ignore[arg-type]


def test_one_concept_is_followed_to_the_letter() -> None:
    spec = several(1, steps=77, budget=0.5, beta=3.3, passes=123)
    assert resolve(spec) == spec


def test_a_combination_is_trained_longer_layer_by_layer() -> None:
    pair = (ConceptSpec(("baby",), "combination", companion="beer"),)
    spec = UnlearnSpec(pair)
    assert resolve(spec).steps == 1.5 * spec.steps and resolve(spec).passes == spec.passes
    assert resolve(UnlearnSpec((*pair, ConceptSpec(("gun",))))).steps > 1.5 * spec.steps
    alone = UnlearnSpec((ConceptSpec(("gun",)),), engine="global")
    assert resolve(UnlearnSpec(pair, engine="global")).steps == resolve(alone).steps


def test_five_concepts_take_more_but_not_five_times_as_much() -> None:
    spec = several(5)
    more = resolve(spec)
    assert more.concepts == spec.concepts
    assert spec.steps < more.steps < 5 * spec.steps
    assert spec.passes < more.passes < 5 * spec.passes
    assert more.budget == pytest.approx(5 * spec.budget)
    assert more.beta == pytest.approx(spec.beta / 5**0.5)


def test_fifty_concepts_cost_less_than_twelve_one_by_one() -> None:
    spec, more = several(50), resolve(several(50))
    assert max(more.steps / spec.steps, more.passes / spec.passes) < 12


@pytest.mark.parametrize(("budget", "most"), [(0.03, 0.3), (0.2, 0.3), (0.5, 0.5)])
def test_the_diff_stays_a_part_of_the_weights_unless_the_user_asked_for_more(
    budget: float, most: float
) -> None:
    assert resolve(several(40, budget=budget)).budget == most


def test_robust_mode_trains_as_much_and_scales_its_pictures_by_itself() -> None:
    for count in (1, 5):
        spec = several(count, robust=True)
        assert resolve(spec) == replace(resolve(replace(spec, robust=False)), robust=True)
        run = Unlearning(tiny_model(), spec)
        assert run.lists is not None and run.plan == resolve(spec)
        assert run.lists.counts == lists_of(spec, run.prompts).counts


def test_a_run_does_what_is_followed_and_its_label_says_what_was_asked() -> None:
    concepts = (ConceptSpec(("gun",)), ConceptSpec(("cat",)))
    spec = tiny_spec(concepts=concepts, steps=4, passes=16, schedule="shrinking")
    run, model = Unlearning(tiny_model(), spec), tiny_model()
    *_, last = run
    assert (last.done, last.total) == (run.total, run.total)
    more = resolve(spec)
    assert more.steps == 6 and run.passes <= more.passes
    standings = run.final.values()
    assert all(spec.budget < s.share <= more.budget for s in standings)
    assert run.diff.provenance["spec"] == spec.to_json()
    assert run.recorded > Unlearning(model, tiny_spec(passes=16)).recorded
