"""Structured logs of the daemons: a JSON object a line, of names and counts, never of values."""

import io
import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


class _Stderr(io.TextIOBase):
    """Stderr, except that a full disk behind it ends nothing: a line is lost, and not a daemon."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


def log_to_stderr() -> None:
    """Let our loggers write JSON lines to stderr, from information on; libraries from warnings on."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=True,
    )


def quiet_flower() -> None:
    """Let Flower speak from warnings on; call it after flwr was imported, which sets its own level."""
    for name in ("flwr", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
