"""The accordion in txt2img and img2img: which diffs, how strong; and the hooks that apply them."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from modules import scripts
from modules.ui_common import create_refresh_button

from trust_engine.errors import SpecError, TrustError

from . import always_on, applying, asked_diffs, folders
from .applying import INFOTEXT
from .asked_diffs import NONE, Wanted
from .host import current
from .one_line import one_line

log = logging.getLogger(__name__)
SLOTS = 4
TOP = 2.0
HELP = (
    "Diffs make the checkpoint forget a concept while a picture is drawn; its file stays as it is. "
    "1: as made, 0: off, below 0: more of it. They are made in the tab TRUST."
)


class TrustScript(scripts.Script):
    """Apply diffs at generation; one that cannot be applied ends the generation."""

    used = False  # who never uses diffs is never kept from drawing by them

    def title(self) -> str:
        """Name it, also for the API's alwayson_scripts."""
        return "TRUST"

    def show(self, is_img2img: bool) -> Any:
        """Be there always."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Lay out the rows."""
        inputs: list[Any] = []
        names: list[Any] = []
        self.infotext_fields = []
        with gr.Accordion("TRUST: forget concepts", open=False, elem_id=self.elem_id("trust")):
            gr.Markdown(HELP)
            for i in range(SLOTS):
                with gr.Row():
                    # Any text is let through: what is no diff ends the generation, and says why.
                    # A tab's list is not refreshed when a picture is sent to it from another.
                    name = gr.Dropdown(label=f"Diff {i + 1}", choices=_choices(), value=NONE,
                                       allow_custom_value=True,
                                       elem_id=self.elem_id(f"trust_diff_{i + 1}"))  # fmt: skip
                    strength = gr.Slider(
                        -TOP, TOP, value=1.0, step=0.05, label=f"Strength {i + 1}",
                        elem_id=self.elem_id(f"trust_strength_{i + 1}"),
                    )  # fmt: skip
                names.append(name)
                inputs += [name, strength]
                self.infotext_fields += [(name, _pasted_name(i)), (strength, _pasted_strength(i))]
            create_refresh_button(
                names, lambda: None, lambda: {"choices": _choices()}, self.elem_id("trust_refresh")
            )
        # "Send to img2img" copies what both tabs have under one name, and these are the names.
        self.paste_field_names = [name for _, name in self.infotext_fields]
        return inputs

    def before_process(self, p: Any, *_values: Any) -> None:
        """Let no picture bring its own setting for every picture along: it would go on without."""
        brought = getattr(p, "override_settings", None) or {}
        if brought.pop(always_on.NAME, None) is not None:
            told = ("diffs on every picture cannot be set along with one; change them in the tab "
                    "TRUST or by /trust/v1/apply")  # fmt: skip
            _stop(p, SpecError(f"override_settings has {always_on.NAME}: {told}"))

    def process(self, p: Any, *values: Any) -> None:
        """Load and check before anything is drawn, and write down what is applied."""
        p.trust_applied = None
        try:
            on = [*always_on.always(), *asked_diffs.asked(values)]
            if not on and not TrustScript.used:
                return
            host = current()
            host.clear()
            if not on:
                return
            applying.refuse_refiner(p)
            done = applying.prepare(host, on)
        except Exception as error:
            _stop(p, error)
            return
        p.extra_generation_params[INFOTEXT] = asked_diffs.written(done.parts)
        for warning in done.warnings:
            p.comment(f"TRUST: {warning}")
        p.trust_applied = done

    def process_before_every_sampling(self, p: Any, *_values: Any, **_told: Any) -> None:
        """Put the diffs on; with hires fix this is asked for once a pass."""
        done = getattr(p, "trust_applied", None)
        if done is None:
            return
        try:
            host = current()
            applying.check(host, done)  # the hires pass may be another checkpoint's
            TrustScript.used = True
            host.put(p, done.parts)
        except Exception as error:
            _stop(p, error)

    def post_sample(self, p: Any, ps: Any, *_values: Any) -> None:
        """Hand on nothing that was drawn without them."""
        done = getattr(p, "trust_applied", None)
        if done is None:
            return
        try:
            reached = current().reached(done.parts)
        except Exception as error:
            log.exception("TRUST could not check that its diffs were applied")
            ps.samples = applying.Refusal(_stop(p, error))
            return
        if not reached:
            error = TrustError("the host took them off while it was drawing; see its console")
            ps.samples = applying.Refusal(_stop(p, error))

    def postprocess(self, p: Any, processed: Any, *_values: Any) -> None:
        """Take the diffs off."""
        if getattr(p, "trust_applied", None) is not None:
            current().clear()


def _stop(p: Any, error: Exception) -> str:
    reason = applying.stop(p, error)
    if isinstance(error, TrustError):
        log.error(reason)
    else:
        log.exception(reason)
    return reason


def _choices() -> list[str]:
    return [NONE, *folders.listed()]


def _pasted(params: dict[str, Any], slot: int) -> list[Wanted]:
    """Return the diffs of a slot; the last slot takes all that are left. Raises SpecError."""
    found = asked_diffs.read(str(params.get(INFOTEXT) or ""))
    # Those that are on every picture anyway would be there twice.
    on = _standing()
    mine = [one for one in found if one.name not in on]
    return mine[slot:] if slot == SLOTS - 1 else mine[slot : slot + 1]


def _standing() -> set[str]:
    try:
        return {one.name for one in always_on.always()}
    except TrustError:
        return set()  # a generation will say what is wrong with it


@functools.cache
def _pasted_name(slot: int) -> Callable[[dict[str, Any]], Any]:
    def value(params: dict[str, Any]) -> Any:
        try:
            mine = _pasted(params, slot)
        except TrustError:
            # Asked for all the same, once: the generation then says what is wrong with it.
            return _asked_for(one_line(params[INFOTEXT]) if slot == 0 else NONE)
        if not mine:
            return gr.update(value=NONE)
        if len(mine) == 1 and _is_here(mine[0]):
            return gr.update(choices=_choices(), value=mine[0].name)
        one = mine[0]
        return _asked_for(asked_diffs.written(mine) if len(mine) > 1
                          else asked_diffs.spelled(one.name, one.sha))  # fmt: skip

    return value


def _asked_for(name: str) -> Any:
    return gr.update(choices=list(dict.fromkeys([*_choices(), name])), value=name)


@functools.cache
def _pasted_strength(slot: int) -> Callable[[dict[str, Any]], Any]:
    def value(params: dict[str, Any]) -> Any:
        with contextlib.suppress(TrustError):  # of which the field for the name says all
            mine = _pasted(params, slot)
            return gr.update(value=mine[0].strength if len(mine) == 1 else 1.0)
        return gr.update(value=1.0)

    return value


def _is_here(one: Wanted) -> bool:
    try:
        _, sha = applying.load(one.name)
    except TrustError:
        return False
    return not one.sha or sha.startswith(one.sha)
