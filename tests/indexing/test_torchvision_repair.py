"""The repair acts on its symptom alone."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

from indexing.models import torchvision_repair
from indexing.models.torchvision_repair import import_torchvision


def test_transforms_work_afterwards() -> None:
    import_torchvision()
    from torchvision.transforms.v2.functional import center_crop

    cropped = center_crop(torch.arange(16).reshape(1, 4, 4), [2, 2])
    assert cropped.flatten().tolist() == [5, 6, 9, 10]


def test_registrations_are_put_back() -> None:
    before = torch.library.register_fake
    import_torchvision()
    assert torch.library.register_fake is before


def test_absent_operators_are_skipped_and_others_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.library, "register_fake", lambda op, *a, **k: seen.append(op))
    with torchvision_repair._skipping_absent_operators():
        function = torch.library.register_fake("torchvision::no_such_operator")(len)
        torch.library.register_fake("elsewhere::operator")
    assert function is len
    assert seen == ["elsewhere::operator"]


def test_another_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise RuntimeError("something else")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        import_torchvision()
    assert "torchvision" in sys.modules
