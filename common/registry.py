"""Find what there is by name: each registry owns a package, and each of its modules adds to it.

The first look-up imports the package's modules, so a new algorithm, model or data set is one new file.
A name resolves inside our own packages only, never to a dotted path from the wire.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from clinimeta.common.errors import StudyError, nearest
from clinimeta.common.settings import hyperparameters, parse

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The choosable things of one kind ("algorithm", "model", ...), all frozen dataclasses."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[C], C]:
        """Decorate a frozen dataclass to make it known under `name`."""

        def add(cls: C) -> C:
            if name in self._classes:
                raise ValueError(f"two things are registered as {self.kind} '{name}'")
            self._classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._classes)

    def get(self, name: str, where: str = "") -> type[T]:
        """The class of that name.

        Raises:
            StudyError: there is none; names the nearest and lists all.
        """
        self._load()
        if name not in self._classes:
            raise StudyError(
                f"there is no {self.kind} '{name}'", where=where, expected=nearest(name, self._classes)
            )
        return self._classes[name]

    def summary(self, name: str) -> str:
        """The first sentence of what is registered under `name`."""
        text = inspect.getdoc(self.get(name)) or ""
        return " ".join(text.split("\n\n")[0].split())

    def options(self, name: str) -> dict[str, Any]:
        """The hyperparameters and their defaults."""
        return hyperparameters(self.get(name))().model_dump()

    def build(self, name: str, options: Mapping[str, Any], where: str = "", **parts: Any) -> T:
        """Make the thing of that name from its hyperparameters and the parts that it needs.

        Raises:
            StudyError: unknown name, unknown hyperparameter, or a value out of range.
        """
        cls = self.get(name, where)
        settings = parse(hyperparameters(cls), options, f"{where} {self.kind} '{name}'".strip())
        return cls(**parts, **{field: getattr(settings, field) for field in type(settings).model_fields})

    def _load(self) -> None:
        if not self._loaded:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._loaded = True
