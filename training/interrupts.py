"""Ctrl-C and SIGTERM while training: finish the step, save, and only then stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes a Ctrl-C on to processes that the terminal has told already.
_ECHO_SECONDS = 2.0
logger = logging.getLogger(__name__)


class Interrupts:
    """Within its block the first signal sets `wanted`; a later one interrupts at once.

    Outside the main thread, where Python takes no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before or signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.wanted:
            self.wanted, self._since = True, time.monotonic()
            logger.warning("stopping after this step; once more to stop at once")
        elif time.monotonic() - self._since > _ECHO_SECONDS:
            raise KeyboardInterrupt
