"""A pretended web UI: `modules.*` as far as we touch it, and a generation with scripts' hooks.

It copies what is awkward: hooks' errors are swallowed, the extra networks are rebuilt for every
batch, hires fix samples twice. `webui_a1111.py`, `webui_forge.py` and `webui_neo.py` add each
host's model.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from toys.demo import narrow_family
from trust_engine.models import families

OURS = ("trust_webui",)


class State:
    """shared.state."""

    interrupted = skipped = stopping_generation = False
    job, job_count, sampling_step, sampling_steps, textinfo = "", 0, 0, 0, None

    def begin(self, job: str = "") -> None:
        """Begin a job."""
        self.job, self.job_count, self.interrupted = job, -1, False

    def end(self) -> None:
        """End it."""
        self.job, self.job_count = "", 0


class Component:
    """A gradio component that remembers how it was made, and what listens to it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.args, self.settings = args, settings
        self.listeners: list[tuple[Callable[..., Any], list[Any], list[Any]]] = []
        self.followers: list[tuple[Callable[..., Any], list[Any], list[Any]]] = []
        MADE.append(self)

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def click(
        self, call: Callable[..., Any], inputs: list[Any], outputs: list[Any], **_: Any
    ) -> Component:
        """Listen."""
        self.listeners.append((call, inputs, outputs))
        return self

    change = blur = submit = release = click

    def then(
        self, call: Callable[..., Any], inputs: list[Any], outputs: list[Any], **_: Any
    ) -> Any:
        """Listen to the end of what a click has begun."""
        self.followers.append((call, inputs, outputs))
        return self

    @property
    def value(self) -> Any:
        """Return what the component sends before anybody has touched it: a function's answer."""
        value = self.settings.get("value", "" if "placeholder" in self.settings else None)
        return value() if callable(value) else value


MADE: list[Component] = []
"""All components that were made, the oldest first."""


class FakeGradio(ModuleType):
    """Pretend to be gradio: every component there is."""

    def __init__(self) -> None:
        super().__init__("gradio")

    def __getattr__(self, name: str) -> Any:
        if not name[:1].isupper():
            raise AttributeError(name)
        return Component

    @staticmethod
    def update(**changes: Any) -> dict[str, Any]:
        """Return an update."""
        return {"__type__": "update", **changes}


class HTTPException(Exception):
    """fastapi's."""

    def __init__(self, status_code: int, detail: str = "", headers: Any = None) -> None:
        super().__init__(detail)
        self.status_code, self.detail, self.headers = status_code, detail, headers


class Callbacks(ModuleType):
    """modules.script_callbacks: remembers what was registered."""

    def __init__(self) -> None:
        super().__init__("modules.script_callbacks")
        self.registered: dict[str, list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda call: self.registered.setdefault(name, []).append(call)


class App:
    """A server that only remembers its routes, and calls them with what they need."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Any] = {}
        self.guards: dict[tuple[str, str], list[Any]] = {}

    def add_api_route(
        self, path: str, endpoint: Any, methods: Any = (), dependencies: Any = ()
    ) -> None:
        """Remember a route."""
        self.routes[(*methods, path)] = endpoint  # type: ignore[index]
        self.guards[(*methods, path)] = list(dependencies)  # type: ignore[index]

    def call(self, method: str, path: str, **given: Any) -> Any:
        """Call a route by its template."""
        return self.routes[(method, "/trust/v1" + path)](**given)


def fake_fastapi() -> dict[str, ModuleType]:
    """Pretend to be fastapi, as far as routes are plain functions."""
    security = module("fastapi.security", HTTPBasic=lambda: None, HTTPBasicCredentials=object)
    fastapi = module("fastapi", Request=object, Depends=lambda call: call, FastAPI=App,
                     HTTPException=HTTPException, security=security)  # fmt: skip
    return {"fastapi": fastapi, "fastapi.security": security}


def module(name: str, **content: Any) -> ModuleType:
    """Make a module."""
    made = ModuleType(name)
    made.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]  # find_spec asks for it
    made.__dict__.update(content)
    return made


class Script:
    """modules.scripts.Script."""

    def elem_id(self, name: str) -> str:
        """Name an element."""
        return name


class OptionInfo:
    """modules.options.OptionInfo: an entry of Settings; a section named None is on no page."""

    def __init__(self, default: Any = None, label: str = "", component: Any = None,
                 component_args: Any = None, onchange: Any = None, section: Any = None,
                 refresh: Any = None, restrict_api: bool = False) -> None:  # fmt: skip
        self.default, self.label, self.component = default, label, component
        self.component_args, self.section, self.restrict_api = component_args, section, restrict_api
        self.do_not_save = False


class OptionHTML(OptionInfo):
    """modules.options.OptionHTML: words among the entries, never saved."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.do_not_save = True


class Options:
    """modules.options.Options, as far as it is awkward.

    What is set is in memory only until somebody saves; what no extension has added cannot be set,
    but is loaded and saved; one closed to the API is left as it is without a word; frozen settings
    raise AssertionError.
    """

    def __init__(self, flags: Any, data: dict[str, Any]) -> None:
        self.__dict__.update(flags=flags, data=data, data_labels={})

    def __getattr__(self, name: str) -> Any:
        if name in self.data:
            return self.data[name]
        if name in self.data_labels:
            return self.data_labels[name].default
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        assert not self.flags.freeze_settings, "changing settings is disabled"
        self.data[name] = value

    def add_option(self, name: str, info: OptionInfo) -> None:
        """Make an entry known; what was saved before stays."""
        self.data_labels[name] = info
        if not info.do_not_save:
            self.data.setdefault(name, info.default)

    def set(self, name: str, value: Any, is_api: bool = False, run_callbacks: bool = True) -> bool:
        """Set an entry."""
        if self.data.get(name) == value:
            return False
        info = self.data_labels[name]
        if info.do_not_save or (is_api and info.restrict_api):
            return False
        setattr(self, name, value)
        return True

    def save(self, filename: str) -> None:
        """Write all that is set."""
        assert not self.flags.freeze_settings, "saving settings is disabled"
        with open(filename, "w", encoding="utf8") as file:
            json.dump(self.data, file, indent=4, ensure_ascii=False)

    def apply_page(self, page: dict[str, Any], filename: str) -> None:
        """Do what the button "Apply settings" does with the fields that a page shows."""
        for name, value in page.items():
            self.set(name, value)
        self.save(filename)

    def page(self) -> dict[str, Any]:
        """Return the fields of a page of Settings that is opened now."""
        return {
            name: getattr(self, name)
            for name, info in self.data_labels.items()
            if info.section[0] is not None and not info.do_not_save
        }


@contextlib.contextmanager
def installed(folder: Path, extra: Callable[[Any], dict[str, ModuleType]]) -> Iterator[Any]:
    """Enter the pretended modules; `extra` adds a host's own. Yields `modules.shared`.

    Meanwhile the engine knows the narrow demo, which these hosts hold, beside the real families.
    """
    flags = SimpleNamespace(lowvram=False, medvram=False, api_auth=None, freeze_settings=False)
    kept = folder / "config.json"  # read at the start, as the host does
    saved = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    options = Options(flags, {"CLIP_stop_at_last_layers": 1, "lora_functional": False, **saved})
    shared = module("modules.shared", state=State(), opts=options, sd_model=None, cmd_opts=flags,
                    parallel_processing_allowed=True, loaded_hypernetworks=["worn"],
                    OptionInfo=OptionInfo, OptionHTML=OptionHTML, config_filename=str(kept),
                    )  # fmt: skip
    models = folder / "models"
    (models / "trust_diffs").mkdir(parents=True, exist_ok=True)
    named = {
        "modules": module("modules", shared=shared),
        "modules.shared": shared,
        "modules.devices": module(
            "modules.devices", device=torch.device("cpu"), dtype_vae=torch.float32,
            unet_needs_upcast=False, autocast=contextlib.nullcontext,
            without_autocast=contextlib.nullcontext, torch_gc=lambda: None,
        ),
        "modules.paths_internal": module(
            "modules.paths_internal", models_path=str(models),
            default_output_dir=str(folder / "outputs"),
        ),
        "modules.call_queue": module("modules.call_queue", queue_lock=threading.Lock()),
        "modules.prompt_parser": module("modules.prompt_parser", SdConditioning=_conditioning),
        "modules.sd_samplers_common": module(
            "modules.sd_samplers_common", decode_first_stage=lambda m, x: m.decode_first_stage(x)
        ),
        "modules.processing": module("modules.processing", process_images_inner=_drawn),
        "modules.scripts": module("modules.scripts", Script=Script, AlwaysVisible=object()),
        "modules.script_callbacks": Callbacks(),
        "modules.ui_common": module("modules.ui_common", create_refresh_button=lambda *_: None),
        "gradio": FakeGradio(),
        **fake_fastapi(),
    }  # fmt: skip
    named.update(extra(shared))
    for name in list(named):
        if name.startswith("modules."):
            setattr(named["modules"], name.removeprefix("modules."), named[name])
    # Another host's modules, left by whatever ran before, would make this one look like that one.
    before = {name: sys.modules.pop(name, None) for name in [*named, *_ours(), *_hosts()]}
    sys.modules.update(named)
    known = families.MODELS
    families.MODELS = (*known, narrow_family())
    try:
        yield shared
    finally:
        families.MODELS = known
        for name in [*named, *_ours(), *_hosts()]:
            sys.modules.pop(name, None)
        sys.modules.update({name: old for name, old in before.items() if old is not None})


def _hosts() -> list[str]:
    tops = ("modules", "modules_forge", "backend", "ldm_patched", "networks")
    return [name for name in sys.modules if name.split(".")[0] in tops]


def _ours() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in OURS]


def _conditioning(prompts: Any, width: int = 0, height: int = 0) -> list[str]:
    return list(prompts)


class Processing:
    """One generation: `p` of both hosts."""

    refiner_checkpoint_info = None
    refiner_switch_at = None

    def __init__(self, host: Any, prompt: str, n_iter: int = 1, hires: bool = False) -> None:
        self.host, self.prompt, self.n_iter, self.hires = host, prompt, n_iter, hires
        self.extra_generation_params: dict[str, str] = {}
        self.override_settings: dict[str, Any] = {}
        self.comments: list[str] = []
        self.sd_model = host.model
        self.sampler: Any = None
        self.loras: list[Any] = []
        self.runner: Any = None
        self.scripts: Any = None

    def comment(self, text: str) -> None:
        """Note something for the page."""
        self.comments.append(text)

    def sample(self) -> Tensor:
        """Sample, twice with hires fix; each time scripts are told before."""
        self.sampler = self.host.sampler()
        self.host.before_sampling(self)
        self.runner.call("process_before_every_sampling", self)
        made = self.sampler.sample(self)
        if self.hires:
            self.sampler = self.host.sampler()
            self.host.activate(self)
            self.host.before_sampling(self)
            self.runner.call("process_before_every_sampling", self)
            made = made + self.sampler.sample(self)
        return made


class Runner:
    """A script runner: one script, its arguments, and no error ever leaves a hook."""

    def __init__(self, script: Any, *values: Any) -> None:
        self.script, self.values = script, values
        self.swallowed: list[Exception] = []

    def call(self, hook: str, p: Any, *more: Any) -> None:
        """Call a hook as both hosts do."""
        try:
            getattr(self.script, hook)(p, *more, *self.values)
        except Exception as error:
            self.swallowed.append(error)


def process_images(p: Processing, runner: Runner) -> list[Tensor]:
    """Draw: settings that come along are set meanwhile, as in both hosts' process_images."""
    p.runner, p.scripts = runner, SimpleNamespace(alwayson_scripts=[runner.script])
    runner.call("before_process", p)
    options = sys.modules["modules.shared"].opts
    stored = {name: options.data[name] for name in p.override_settings if name in options.data}
    try:
        for name, value in p.override_settings.items():
            options.set(name, value, is_api=True)
        return sys.modules["modules.processing"].process_images_inner(p)
    finally:
        for name, value in stored.items():
            setattr(options, name, value)


def _drawn(p: Processing) -> list[Tensor]:
    """Draw: the order of both hosts' process_images_inner."""
    runner = p.runner
    runner.call("process", p)
    pictures = []
    for _ in range(p.n_iter):
        p.host.activate(p)
        samples = p.sample()
        held = SimpleNamespace(samples=samples)
        runner.call("post_sample", p, held)
        if getattr(held.samples, "already_decoded", False):
            raise AssertionError("not of this host")
        pictures.append(held.samples * 1)
    runner.call("postprocess", p, SimpleNamespace(images=pictures))
    return pictures
