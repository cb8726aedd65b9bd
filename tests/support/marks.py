"""What the default run leaves out, so that it takes minutes; `.ci/run` runs it with `-m slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], usual: Collection[Any]) -> list[Any]:
    """The values of a parameter, those that are not usual marked slow."""
    return [value if value in usual else pytest.param(value, marks=pytest.mark.slow) for value in values]
