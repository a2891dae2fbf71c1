from __future__ import annotations

import logging
import threading

import pytest

from tests.emulator.driver import EmulatedDriver
from tests.unit.runtime.fake_tensorrt import make_tensorrt
from yolact_deploy.runtime.tensorrt.library import LogMessage, quote_errors, runtime_log


def test_what_is_said_in_a_thread_goes_to_who_called_from_it() -> None:
    trt, _ = make_tensorrt(EmulatedDriver())
    log, error = runtime_log(trt), trt.ILogger.Severity.ERROR
    mine: list[LogMessage] = []
    others: list[LogMessage] = []

    def elsewhere() -> None:
        log.listen(others)
        log.log(error, "theirs")

    log.listen(mine)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    log.log(error, "mine")
    assert [message.text for message in mine] == ["mine"]
    assert [message.text for message in others] == ["theirs"]
    log.listen(mine)
    assert mine == []


def test_what_nobody_listens_to_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    trt, _ = make_tensorrt(EmulatedDriver())
    severities = trt.ILogger.Severity
    with caplog.at_level(logging.DEBUG):
        for severity in severities:
            runtime_log(trt).log(severity, f" said as {severity.name}\n")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "said as INTERNAL_ERROR"),
        ("ERROR", "said as ERROR"),
        ("WARNING", "said as WARNING"),
    ]


def test_a_module_has_one_logger() -> None:
    trt, _ = make_tensorrt(EmulatedDriver())
    other, _ = make_tensorrt(EmulatedDriver())
    assert runtime_log(trt) is runtime_log(trt)
    assert runtime_log(trt) is not runtime_log(other)


def test_quotes_are_errors_once_each_on_one_line_and_not_without_end() -> None:
    messages = [LogMessage(True, f"error {n}\n  at a line") for n in (1, 1, 2, 3, 4, 5, 6)]
    quoted = quote_errors([LogMessage(False, "a warning"), *messages, LogMessage(True, "x" * 1000)])
    assert quoted.splitlines() == [f"  error {n} at a line" for n in (1, 2, 3, 4, 5)]
    assert quote_errors([LogMessage(True, "x" * 1000)]) == f"  {'x' * 400}..."
    assert quote_errors([LogMessage(False, "a warning")]) == "  it gave no reason."
