"""What TensorRT says, kept for whoever made the call: warnings go to Python's logging, nothing is printed."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # else Python itself prints warnings of a program that set up no logging

_KEPT_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING")
_MAX_QUOTED, _MESSAGE_CHARS = 5, 400


@dataclass(frozen=True)
class LogMessage:
    is_error: bool
    text: str


@functools.cache
def runtime_log(trt: Any) -> Any:
    """The process's one logger of a TensorRT module.

    TensorRT keeps the first logger it is given for as long as any of its objects lives, so networks can't have one each.
    `listen(messages)` says which list takes what is said in this thread from now on; what TensorRT says in threads of its
    own is only logged.
    """

    class _RuntimeLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._listening = threading.local()

        def listen(self, messages: list[LogMessage]) -> None:
            messages.clear()
            self._listening.messages = messages

        def log(self, severity: Any, msg: str) -> None:
            if severity.name not in _KEPT_SEVERITIES:
                return
            is_error = severity.name != "WARNING"
            messages: list[LogMessage] | None = getattr(self._listening, "messages", None)
            if messages is not None:
                messages.append(LogMessage(is_error, msg.strip()))
            if not is_error:
                _LOG.warning("%s", msg.strip())
            elif messages is None:
                _LOG.error("%s", msg.strip())

    return _RuntimeLog()


def quote_errors(messages: Iterable[LogMessage]) -> str:
    """What was said of an error, one message a line, for the end of our own message."""
    texts = list(dict.fromkeys(" ".join(message.text.split()) for message in messages if message.is_error))
    if not texts:
        return "  it gave no reason."
    return "\n".join(
        f"  {text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + '...'}" for text in texts[:_MAX_QUOTED]
    )
