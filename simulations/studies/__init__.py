"""The built-in studies: TOML files, printable with `clinimeta studies show NAME`."""

from importlib.resources import files
from pathlib import Path

from clinimeta.common.errors import StudyError, nearest
from clinimeta.common.study import Study, read_study


def names() -> list[str]:
    """The built-in studies, sorted."""
    return sorted(f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml"))


def text_of(name: str) -> str:
    """A built-in study's file.

    Raises:
        StudyError: there is none of that name.
    """
    if name not in names():
        raise StudyError(
            f"there is no study '{name}'",
            expected=nearest(name, names()),
            remedy="give one of these names, or the path of a .toml file",
        )
    return (files(__name__) / f"{name}.toml").read_text(encoding="utf-8")


def find(name_or_path: str) -> Study:
    """A built-in study by name, or the one in a file.

    Raises:
        StudyError: there is no such name or file, or the file is not a study.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.is_file():
        return read_study(text_of(name_or_path), f"study '{name_or_path}'")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "not a text file"
        raise StudyError(
            "the study file cannot be read",
            where=str(path),
            found=found or "",
            expected=f"a TOML file, or a built-in study: {', '.join(names())}",
            remedy="check the path; `clinimeta studies show NAME` prints a study to start from",
        ) from None
    return read_study(text, str(path))
