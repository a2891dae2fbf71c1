"""What image decoders print: OpenCV to its log, libpng and libjpeg to the process's stderr, whoever asked them."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator

_STDERR = 2
_TALK = re.compile(
    rb"libpng (warning|error): |Corrupt JPEG data: |Premature end of JPEG file|Invalid SOS parameters|Warning: unknown JFIF"
)
_HARMLESS = re.compile(rb"libpng warning: |.* extraneous bytes before marker|Warning: unknown JFIF")

_lock = threading.Lock()
_decoding = 0  # threads that do
_log_level = 0  # to go back to
_is_hearing = False
_turn = threading.Lock()  # to turn stderr away


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what is said in words here; its level of logging is one for all threads."""
    global _decoding, _log_level
    from cv2.utils import logging

    with _lock:
        _decoding += 1
        if _decoding == 1:
            _log_level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if not _decoding:
                logging.setLogLevel(_log_level)


@contextlib.contextmanager
def hear_decoders() -> Iterator[None]:
    """Keep what libpng and libjpeg print off stderr, and tell `heard` what of it is about damage.

    Stderr is turned away for that while an image is decoded, one image at a time: something for a program to ask for, such as
    the command line, and not for a library to do unasked.
    """
    global _is_hearing
    before, _is_hearing = _is_hearing, True
    try:
        yield
    finally:
        _is_hearing = before


@contextlib.contextmanager
def heard(on_remark: Callable[[str], None] | None) -> Iterator[None]:
    """Tell `on_remark` what decoders say of damage, while `hear_decoders` is in force."""
    if not _is_hearing:
        yield
        return
    with _turn, tempfile.TemporaryFile() as said:
        try:
            kept = os.dup(_STDERR)
        except OSError:  # there is no stderr
            yield
            return
        os.dup2(said.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            said.seek(0)
            for line in said.read().splitlines(keepends=True):
                if not _TALK.match(line):  # of others, who print meanwhile
                    os.write(_STDERR, line)
                elif on_remark is not None and not _HARMLESS.match(line):
                    on_remark(line.decode("ascii", "backslashreplace").strip())
