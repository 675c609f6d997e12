"""Makes torchvision importable beside a torch that it was not built for.

A CPU build of torch next to PyPI's torchvision is a common pair, and there
`import torchvision` fails with "operator torchvision::nms does not exist": its compiled
operators are absent, and it registers shape functions for them all the same. open_clip
and timm import torchvision, so they fail too. All we need of it (transforms) is Python.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SYMPTOM = "torchvision::"


def import_torchvision() -> bool:
    """Imports torchvision; call this before open_clip, timm or transformers.

    Returns:
        True where torchvision imported as it is, False where it had to be repaired
        (then `torchvision.ops` kernels such as nms do not work).
    """
    try:
        importlib.import_module("torchvision")
        return not _repaired
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    with _skipping_absent_operators():
        importlib.import_module("torchvision")
    _repaired.append(True)
    return False


_repaired: list[bool] = []


@contextmanager
def _skipping_absent_operators() -> Iterator[None]:
    """Registrations for torchvision operators that are not there do nothing."""
    import torch

    originals = {
        name: getattr(torch.library, name)
        for name in ("register_fake", "register_autograd")
        if hasattr(torch.library, name)
    }
    for name, original in originals.items():
        setattr(torch.library, name, _tolerant(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.library, name, original)


def _tolerant(register: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(operator: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(operator, str) and operator.startswith(_SYMPTOM) and not _exists(operator):
            # Used as a decorator or called with the function: both must come back whole.
            return args[0] if args and callable(args[0]) else lambda function: function
        return register(operator, *args, **kwargs)

    return wrapper


def _exists(operator: str) -> bool:
    import torch

    namespace, _, name = operator.partition("::")
    return hasattr(getattr(torch.ops, namespace), name.split(".")[0])
