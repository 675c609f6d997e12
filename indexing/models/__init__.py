"""Encoders: one loader for every name that a user may give."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from indexing.errors import ModelError
from indexing.models.protocol import Encoder

__all__ = ["BUILTIN", "Encoder", "load_asker", "load_encoder", "usable_device"]

ALBEF = "albef:"
BUILTIN = Path(__file__).parent / "builtin"


def load_encoder(name: str, *, device: str | None = None) -> Encoder:
    """Opens an encoder.

    Args:
        name: `builtin` (ships with the package), a model folder that training or `shoplens
            optimize` wrote, `ARCH/PRETRAINED` of open_clip (`ViT-B-32/laion2b_s34b_b79k`, or a
            weights file after the slash), `hf-hub:ORG/REPO`, or `albef:PATH` with a checkpoint
            of ALBEF or LAVIS, or a folder with one.
        device: a torch device; the GPU where there is one, else the CPU.

    Raises:
        ModelError: The name is unknown or its weights cannot be loaded.
        MissingDependencyError: The runtime of an optimised model is not installed.
    """
    from indexing.models.optimized.folder import is_optimized_folder

    # First, as it needs no torch, which takes two seconds to import.
    if name != "builtin" and is_optimized_folder(Path(name)):
        from indexing.models.optimized.encoder import load_optimized

        return load_optimized(Path(name), device=device)
    from indexing.models.albef.weights import is_albef_folder, load_albef
    from indexing.models.clip import load_folder, load_open_clip

    device = usable_device(device)
    if name == "builtin":
        return load_folder(BUILTIN, name=name, device=device)
    if name == ALBEF:
        raise ModelError(f"{ALBEF} needs the path of a checkpoint, or of a folder with one")
    if name.startswith(ALBEF):
        return load_albef(Path(name.removeprefix(ALBEF)).expanduser(), device=device)
    if is_albef_folder(Path(name)):
        return load_albef(Path(name), name=str(Path(name).resolve()), device=device)
    if Path(name).is_dir():
        return load_folder(Path(name), device=device)
    if name.startswith("hf-hub:") or (
        "/" in name and not name.startswith((".", "/")) and not name.endswith("/")
    ):
        return load_open_clip(name, device=device)
    if name.startswith((".", "/")) or name.endswith("/"):
        raise ModelError(f"model folder {name!r} does not exist")
    raise ModelError(
        f"unknown model {name!r}: give builtin, a model folder, "
        "an open_clip name such as ViT-B-32/laion2b_s34b_b79k, hf-hub:ORG/REPO, or albef:PATH"
    )


def load_asker(name: str) -> Encoder:
    """The encoder of this name for a few queries: it gives the vectors of `load_encoder`'s, to
    rounding, and `builtin` starts without torch where onnxruntime is installed.

    Raises:
        ModelError, MissingDependencyError: as `load_encoder`.
    """
    if name == "builtin" and find_spec("onnxruntime") is not None:
        from indexing.models.builtin_graphs import load_builtin_graphs

        return load_builtin_graphs()
    return load_encoder(name)


def usable_device(device: str | None) -> str:
    """The device of this name; for None the GPU where there is one, else the CPU.

    Raises:
        ModelError: It cannot be used here.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {device!r} cannot be used here: {reason}") from error
    return device
