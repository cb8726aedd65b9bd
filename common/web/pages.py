"""The templates of a console: its own, over those that all consoles share."""

from datetime import datetime
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Templates of `package`, and of this package where it has none of that name; all values are escaped."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("clinimeta.common.web")]),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"size": in_bytes, "when": when, "number": number}
    return found


def in_bytes(count: float) -> str:
    """Bytes for people.

    >>> in_bytes(900), in_bytes(2048), in_bytes(5 << 20)
    ('900 B', '2.0 KiB', '5.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def when(text: str | None) -> str:
    """A time (ISO 8601) to the second, without its zone; a dash for none.

    >>> when("2026-11-23T10:00:00.123+00:00"), when(None)
    ('2026-11-23 10:00:00', '-')
    """
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}" if text else "-"


def number(value: Any) -> str:
    """A number with as many digits as matter; a dash for none.

    >>> number(0.123456), number(12345.6), number(7), number(None)
    ('0.1235', '1.235e+04', '7', '-')
    """
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
