"""What is installed, what works, and what to do about what does not."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Literal

from indexing.messages import reason

State = Literal["ok", "missing", "broken", "optional"]

LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "numpy",
    "pyarrow",
    "pillow",
    "pydantic",
    "safetensors",
    "tokenizers",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do, empty where nothing is to be done."""

    what: str
    state: State
    detail: str
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at everything shoplens depends on. Never raises: what fails is a finding."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("python", _python),
        ("libraries", _libraries),
        ("torchvision", _torchvision),
        ("devices", _devices),
        ("faiss", _faiss),
        ("picture formats", _formats),
        ("builtin encoder", _builtin),
        ("optimised models", _runtimes),
        ("training log", _tensorboard),
    ]
    findings: list[Finding] = []
    for what, check in checks:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - a report on broken installs must not break
            detail = f"{type(error).__name__}: {reason(error)}"
            findings.append(
                Finding(what, "broken", detail, "reinstall: pip install 'shoplens[cpu]'")
            )
    return findings


def _python() -> list[Finding]:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", "ok", detail)]


def _libraries() -> list[Finding]:
    findings = []
    for name in LIBRARIES:
        try:
            findings.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            findings.append(Finding(name, "missing", "not installed", f"pip install {name}"))
    return findings


def _torchvision() -> list[Finding]:
    from indexing.models.torchvision_repair import import_torchvision

    if import_torchvision():
        return []
    return [
        Finding(
            "torchvision import",
            "ok",
            "built for another torch; repaired for this process (transforms work, ops do not)",
            "to be rid of it, install torch and torchvision from the same source",
        )
    ]


def _devices() -> list[Finding]:
    import torch

    findings = [Finding("CPU", "ok", f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            findings.append(Finding(f"GPU {number}", "ok", f"{properties.name}, {memory}"))
    elif shutil.which("nvidia-smi"):
        advice = "install a CUDA build of torch"
        detail = f"there is one, but torch {torch.__version__} cannot use it"
        findings.append(Finding("GPU", "broken", detail, advice))
    else:
        findings.append(Finding("GPU", "optional", "none: everything runs on the CPU"))
    return findings


def _faiss() -> list[Finding]:
    installed = []
    for name in ("faiss-cpu", "faiss-gpu"):
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    if not installed:
        advice = "pip install 'shoplens[cpu]' (or 'shoplens[gpu]')"
        return [Finding("faiss", "missing", "not installed", advice)]
    if len(installed) > 1:
        advice = "they overwrite each other: pip uninstall faiss-cpu faiss-gpu, then install one"
        return [Finding("faiss", "broken", " and ".join(installed), advice)]
    from indexing.faiss_import import import_faiss

    faiss = import_faiss()
    findings = [Finding("faiss", "ok", f"{installed[0]}, {faiss.get_compile_options().strip()}")]
    types = "exact, and approximate by FAISS's index factory"
    findings.append(Finding("index types", "ok", types))
    return [*findings, _blas(faiss), *_faiss_gpu(faiss)]


def _blas(faiss: ModuleType) -> Finding:
    """Which kernel FAISS multiplies with, and how fast."""
    import numpy as np

    from indexing.faiss_import import KERNEL_VARIABLE, blas_kernel, fitting_kernel
    from indexing.processor import processor_flags, processor_info

    queries, gallery, dim = 512, 8192, 512
    vectors = np.random.default_rng(0).standard_normal((gallery, dim), np.float32)
    index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    seconds = []
    for _ in range(4):  # the first wakes the threads
        started = time.perf_counter()
        index.search(vectors[:queries], 10)
        seconds.append(time.perf_counter() - started)
    rate = 2 * queries * gallery * dim / min(seconds) / 1e9
    kernel, threads = blas_kernel(faiss) or "unknown", faiss.omp_get_max_threads()
    detail = f"{kernel}: exact search at {rate:.0f} GFLOP/s on {threads} threads"
    fitting = fitting_kernel(processor_flags(), processor_info("vendor_id"))
    chosen = os.environ.get(KERNEL_VARIABLE)
    if fitting is not None and chosen not in (fitting, None):
        advice = f"{KERNEL_VARIABLE}={chosen} is set: unset it, and {fitting} is chosen"
        return Finding("faiss kernel", "optional", detail, advice)
    return Finding("faiss kernel", "ok", detail)


def _faiss_gpu(faiss: ModuleType) -> list[Finding]:
    """Which cards FAISS can use, and whether it has code for them."""
    from indexing.gpu import gpu_count, kernels, suits

    count = gpu_count(faiss)
    if not count:
        return []
    code: set[int] = set()
    ptx: set[int] = set()
    for library in Path(str(faiss.__file__)).parent.glob("*.so*"):
        more_code, more_ptx = kernels(library)
        code, ptx = code | more_code, ptx | more_ptx
    if not code | ptx:
        return [Finding("faiss on GPU", "ok", f"{count} devices, kernels not known")]
    have = ", ".join(f"sm_{number}" for number in sorted(code))
    import torch

    findings = []
    for number in range(min(count, torch.cuda.device_count())):
        capability = torch.cuda.get_device_capability(number)
        card = f"sm_{capability[0]}{capability[1]}"
        what = f"faiss on GPU {number}"
        if suits(capability, code, ptx):
            findings.append(Finding(what, "ok", f"the card is {card}, FAISS has {have}"))
        else:
            advice = "install a faiss-gpu wheel for this card; until then the CPU searches"
            findings.append(
                Finding(what, "broken", f"the card is {card}, FAISS has only {have}", advice)
            )
    return findings or [Finding("faiss on GPU", "ok", f"{count} devices, FAISS has {have}")]


def _formats() -> list[Finding]:
    from PIL import features

    names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WEBP", "avif": "AVIF"}
    there = [name for feature, name in names.items() if features.check(feature)]
    absent = [name for name in names.values() if name not in there]
    findings = [Finding("picture formats", "ok", ", ".join([*there, "GIF", "BMP", "TIFF"]))]
    if absent:
        advice = "install Pillow from PyPI: pip install --force-reinstall pillow"
        findings.append(Finding("picture formats", "optional", "no " + ", ".join(absent), advice))
    return findings


def _builtin() -> list[Finding]:
    from indexing.models import load_encoder

    encoder = load_encoder("builtin")
    detail = f"{encoder.dim}-d, pictures {encoder.image_size} px, {encoder.fingerprint[:12]}"
    return [Finding("builtin encoder", "ok", detail)]


def _runtimes() -> list[Finding]:
    findings = []
    for name, library in (("openvino", "openvino"), ("onnx", "onnxruntime")):
        what = f"models for {name}"
        try:
            findings.append(Finding(what, "ok", f"{library} {version(library)}"))
        except PackageNotFoundError:
            advice = f"pip install 'shoplens[{name}]' for models that `shoplens optimize` makes"
            findings.append(Finding(what, "optional", f"no {library}", advice))
    return findings


def _tensorboard() -> list[Finding]:
    try:
        return [Finding("training log", "ok", f"tensorboard {version('tensorboard')}")]
    except PackageNotFoundError:
        advice = "pip install 'shoplens[train]' for TensorBoard; JSON lines are written anyway"
        return [Finding("training log", "optional", "no tensorboard", advice)]
