import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("clinimeta.common", "clinimeta.client", "clinimeta.server", "clinimeta.simulations")


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        names += [package, *(m.name for m in pkgutil.walk_packages(root.__path__, f"{package}."))]
    entries = ("__main__", "migrations.env")  # which do something when they are imported
    return [name for name in names if not name.endswith(entries)]


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
