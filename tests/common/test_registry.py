"""A new thing is one new file: the registry finds it by name, builds it, and explains a wrong name."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from clinimeta.common.algorithms import ALGORITHMS
from clinimeta.common.applications import APPLICATIONS
from clinimeta.common.errors import StudyError
from clinimeta.common.models import MODELS
from clinimeta.common.registry import Registry
from clinimeta.common.settings import hyperparameters

PACKAGE = """
from clinimeta.common.registry import Registry
THINGS = Registry("thing", __name__)
"""
MODULE = '''
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from {package} import THINGS


@THINGS.register("{name}")
@dataclass(frozen=True, slots=True)
class Thing:
    """A thing for
    tests.

    More about it.
    """

    part: str
    rate: Annotated[float, Gt(0)] = 0.5
    sizes: tuple[int, ...] = (1, 2)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An importable package that owns a registry and has no modules yet."""
    name = "things_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def add_module(package: Path, module: str, name: str) -> None:
    (package / f"{module}.py").write_text(MODULE.format(package=package.name, name=name))


def registry_of(package: Path) -> Registry[Any]:
    __import__(package.name)
    registry: Registry[Any] = sys.modules[package.name].THINGS
    return registry


def test_a_new_file_is_found_by_name(package: Path) -> None:
    add_module(package, "first", "one")
    add_module(package, "second", "two")
    things = registry_of(package)
    assert things.names() == ["one", "two"]
    assert things.get("two").__module__ == f"{package.name}.second"


def test_modules_are_imported_at_the_first_look_up_only(package: Path) -> None:
    add_module(package, "first", "one")
    things = registry_of(package)
    assert f"{package.name}.first" not in sys.modules
    assert things.get("one") is things.get("one")
    assert f"{package.name}.first" in sys.modules


def test_two_things_of_one_name_are_an_error(package: Path) -> None:
    add_module(package, "first", "one")
    add_module(package, "second", "one")
    with pytest.raises(ValueError, match="two things are registered as thing 'one'"):
        registry_of(package).names()


def test_a_broken_module_is_an_error_each_time_and_never_a_shorter_list(package: Path) -> None:
    add_module(package, "first", "one")
    (package / "second.py").write_text("import no_such_module")
    things = registry_of(package)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            things.names()


def test_an_unknown_name_is_an_error_that_names_the_nearest_and_lists_all(package: Path) -> None:
    add_module(package, "first", "maml")
    add_module(package, "second", "protonet")
    with pytest.raises(StudyError) as caught:
        registry_of(package).get("mamel", where="arm 'a'")
    assert caught.value.what == "there is no thing 'mamel'"
    assert caught.value.where == "arm 'a'"
    assert caught.value.expected == "did you mean 'maml'? there is: maml, protonet"


@pytest.mark.parametrize(
    "name", ["first", "os", "os.path", "things.first", ".first", "first.Thing", "", "__init__"]
)
def test_a_module_or_a_dotted_path_is_not_a_name(package: Path, name: str) -> None:
    add_module(package, "first", "one")
    with pytest.raises(StudyError, match="there is no thing"):
        registry_of(package).build(name, {}, part="p")


def test_a_summary_is_the_first_sentence_on_one_line(package: Path) -> None:
    add_module(package, "first", "one")
    assert registry_of(package).summary("one") == "A thing for tests."


def test_options_are_the_fields_that_have_a_default(package: Path) -> None:
    add_module(package, "first", "one")
    assert registry_of(package).options("one") == {"rate": 0.5, "sizes": (1, 2)}


def test_a_thing_is_built_from_its_parts_and_its_options(package: Path) -> None:
    add_module(package, "first", "one")
    thing = registry_of(package).build("one", {"sizes": [3]}, part="p")
    assert (thing.part, thing.rate, thing.sizes) == ("p", 0.5, (3,))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rte": 0.1}, "unknown key 'rte'"),
        ({"part": "from the study"}, "unknown key 'part'"),
        ({"rate": 0.0}, "the key 'rate' has a value that does not fit"),
        ({"rate": "fast"}, "the key 'rate' has a value that does not fit"),
        ({"rate": float("nan")}, "the key 'rate' has a value that does not fit"),
        ({"sizes": [1.5]}, "the key 'sizes[0]' has a value that does not fit"),
        ({"sizes": 1}, "the key 'sizes' has a value that does not fit"),
    ],
    ids=str,
)
def test_a_wrong_option_is_an_error_that_says_whose(
    package: Path, options: dict[str, Any], what: str
) -> None:
    add_module(package, "first", "one")
    with pytest.raises(StudyError) as caught:
        registry_of(package).build("one", options, "arm 'a'", part="p")
    assert caught.value.what == what
    assert caught.value.where == "arm 'a' thing 'one'"


def test_an_unknown_option_is_met_with_the_nearest(package: Path) -> None:
    add_module(package, "first", "one")
    with pytest.raises(StudyError) as caught:
        registry_of(package).build("one", {"rte": 1.0}, part="p")
    assert caught.value.where == "thing 'one'"
    assert caught.value.expected == "did you mean 'rate'? there is: rate, sizes"


# What every registered thing promises

REGISTRIES: dict[str, Registry[Any]] = {r.kind: r for r in (ALGORITHMS, MODELS, APPLICATIONS)}
EVERY = pytest.mark.parametrize(
    ("registry", "name"),
    [
        pytest.param(registry, name, id=f"{kind}-{name}")
        for kind, registry in REGISTRIES.items()
        for name in registry.names()
    ],
)


@EVERY
def test_a_registered_thing_is_a_frozen_dataclass(registry: Registry[Any], name: str) -> None:
    cls = registry.get(name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


@EVERY
def test_a_registered_thing_says_what_it_is_in_one_sentence(registry: Registry[Any], name: str) -> None:
    summary = registry.summary(name)
    assert summary.endswith(".")
    assert "\n" not in summary
    assert not summary.startswith(f"{registry.get(name).__name__}(")  # dataclass's own stopgap


@EVERY
def test_defaults_are_within_their_own_limits(registry: Registry[Any], name: str) -> None:
    settings = hyperparameters(registry.get(name))
    assert settings.model_validate_json(settings().model_dump_json()) == settings()


@EVERY
def test_every_field_is_a_part_or_an_option(registry: Registry[Any], name: str) -> None:
    """A default made by a factory would be neither: no study could set it, and no one would notice."""
    for field in dataclasses.fields(registry.get(name)):
        assert field.default_factory is dataclasses.MISSING
        assert field.init
    assert list(inspect.signature(registry.get(name)).parameters) == [
        field.name for field in dataclasses.fields(registry.get(name))
    ]
