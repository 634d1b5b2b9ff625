"""install.py: what it finds missing, when it keeps silent, and that it leaves torch alone."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

import install


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for subprocess.run: note the commands, answer with `code`."""
    fake = SimpleNamespace(commands=[], code=0)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        fake.commands.append(command)
        return subprocess.CompletedProcess(command, fake.code)

    monkeypatch.setattr(install.subprocess, "run", run)
    return fake


def test_requirements_never_name_torch_or_a_pin() -> None:
    names = install.requirements()
    assert "safetensors" in names
    assert all(name.isalnum() for name in names), "a pin or extra would fight the hosts'"
    assert not set(names) & set(install.OWNED_BY_HOST)


def test_extras_follow_the_dependencies() -> None:
    assert install.requirements("art") == [*install.requirements(), "resvg-py"]


def test_missing_names_what_cannot_be_imported() -> None:
    assert install.missing(["numpy", "no-such-thing-1", "Pillow>=9"]) == ["no-such-thing-1"]


def test_torch_is_never_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda _: None)
    assert install.missing(["torch", "torch>=2.1", "einops"]) == ["einops"]


def test_silent_when_satisfied(pip: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    assert install.main() == 0
    assert pip.commands == []
    assert capfd.readouterr() == ("", "")


def test_installs_only_what_is_missing(
    pip: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "requirements", lambda: ["torch", "numpy", "no-such-thing-1"])
    assert install.main() == 0
    (command,) = pip.commands
    assert command[1:] == ["-m", "pip", "install", "no-such-thing-1"]


def test_offline_failure_says_what_to_do(
    pip: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "requirements", lambda: ["no-such-thing-1"])
    pip.code = 1
    assert install.main() == 1
    assert "-m pip install no-such-thing-1" in capsys.readouterr().err
