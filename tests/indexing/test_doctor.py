"""The report names what is wrong and the way out, and never breaks."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError

import pytest
import typer

from indexing import cli, doctor
from indexing.processor import processor_flags


def state_of(what: str) -> doctor.Finding:
    [finding] = [finding for finding in doctor.examine() if finding.what == what]
    return finding


def versions(monkeypatch: pytest.MonkeyPatch, known: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(doctor, "version", version)


def test_this_installation_is_healthy() -> None:
    findings = doctor.examine()
    assert {finding.state for finding in findings} <= {"ok", "optional"}
    assert state_of("builtin encoder").detail.startswith("256-d")


def test_no_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {})
    finding = state_of("faiss")
    assert finding.state == "missing"
    assert "shoplens[cpu]" in finding.advice


def test_the_command_shows_the_extra_in_its_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    versions(monkeypatch, {})
    with pytest.raises(typer.Exit):
        cli.doctor()
    assert "pip install 'shoplens[cpu]'" in capsys.readouterr().out


def test_two_builds_of_faiss_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"})
    finding = state_of("faiss")
    assert finding.state == "broken"
    assert "pip uninstall faiss-cpu faiss-gpu" in finding.advice


def test_a_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {"faiss-cpu": "1.15.1"})
    assert state_of("timm").advice == "pip install timm"


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> list[doctor.Finding]:
        raise OSError("libcuda is\nbroken")

    monkeypatch.setattr(doctor, "_devices", fail)
    finding = state_of("devices")
    assert (finding.state, finding.detail) == ("broken", "OSError: libcuda is broken")
    assert state_of("python").state == "ok"


def test_the_kernel_of_faiss_is_named_with_its_rate() -> None:
    finding = state_of("faiss kernel")
    kernel, rate = re.fullmatch(
        r"(\w+): exact search at (\d+) GFLOP/s on \d+ threads", finding.detail
    ).groups()  # type: ignore[union-attr]
    assert int(rate) > 0
    if "avx2" in processor_flags():
        assert kernel not in {"Prescott", "Core2", "Nehalem", "unknown"}


def test_a_kernel_that_the_user_chose_is_theirs_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.faiss_import.fitting_kernel", lambda flags, vendor: "SKYLAKEX")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "PRESCOTT")
    finding = state_of("faiss kernel")
    assert finding.state == "optional"
    assert "OPENBLAS_CORETYPE=PRESCOTT is set" in finding.advice
    monkeypatch.setenv("OPENBLAS_CORETYPE", "SKYLAKEX")
    assert (state_of("faiss kernel").state, state_of("faiss kernel").advice) == ("ok", "")


def test_runtimes_of_optimised_models_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, {"openvino": "2030.1.0"})
    assert state_of("models for openvino").detail == "openvino 2030.1.0"
    finding = state_of("models for onnx")
    assert finding.state == "optional"
    assert "shoplens[onnx]" in finding.advice
