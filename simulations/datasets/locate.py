"""Find a file of a public data set: where the user says, in the cache, or at its original source.

The order is `--data`, the environment variable `CLINIMETA_DATA`, the cache, a download into the cache. Who
names a folder by `--data` means that folder: nothing else is looked at, and nothing is downloaded. A
folder from the environment is only the first place to look; a caller that passes it as `data` makes it
the only one.
"""

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from clinimeta.common.errors import DataError, MissingDataError, StudyError

VARIABLE = "CLINIMETA_DATA"
TIMEOUT_S = 30.0
MAX_BYTES = 64 * 2**20  # far above any file that is downloaded; a longer answer fails its checksum


@dataclass(frozen=True, slots=True)
class PublicFile:
    """A file of a public data set: the set's `folder`, its `name` in there, and where it comes from.

    `page` is where a person finds it. With `url` the program may fetch it, and then `sha256` says what it
    must be; without a `sha256` any content is taken.
    """

    folder: str
    name: str
    page: str
    sha256: str = ""
    url: str = ""

    def __post_init__(self) -> None:
        assert self.sha256 or not self.url, "what is downloaded must be known"


def locate(file: PublicFile, data: Path | None, *, timeout_s: float = TIMEOUT_S) -> Path:
    """The path of a public file, downloaded into the cache if need be and allowed.

    `data` is the folder of `--data`: the one that holds `file.folder`, or that folder itself. File names
    are compared without regard to case where the exact one is absent.

    Raises:
        MissingDataError: the file is in none of the places and was not downloaded; names them all.
        DataError: a file is there, or was downloaded, but is not the original; or it cannot be read.
        StudyError: the file's address is not http or https.
    """
    cached = cache_folder() / file.folder / file.name
    places = _places(data_folder(data), file) + ([] if data else [cached])
    for place in places:
        found = _find(place)
        if found:
            _check(file, digest(found), str(found), f"replace it by the original, from {file.page}")
            return found
    if data or not file.url:
        raise _missing(file, places)
    _write(file, cached, _download(file, places, timeout_s), places)
    return cached


def data_folder(data: Path | None) -> Path | None:
    """The folder of `--data`, or else the one that `CLINIMETA_DATA` names, or else None."""
    named = os.environ.get(VARIABLE, "")
    return data or (Path(named).expanduser() if named else None)


def cache_folder() -> Path:
    """Where downloaded files are kept: `$XDG_CACHE_HOME/clinimeta`, or `~/.cache/clinimeta`."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "clinimeta"


def digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _places(folder: Path | None, file: PublicFile) -> list[Path]:
    """Where a file may be in the user's folder, the likelier place first."""
    if folder is None:
        return []
    places = [folder / file.folder / file.name, folder / file.name]
    return places[::-1] if folder.name == file.folder else places


def _find(place: Path) -> Path | None:
    """The file itself, or one beside it that differs in upper and lower case only."""
    try:
        if place.is_file():
            return place
        beside = sorted(place.parent.iterdir()) if place.parent.is_dir() else []
        return next((p for p in beside if p.name.lower() == place.name.lower() and p.is_file()), None)
    except OSError as error:
        raise _unreadable(place, error) from None


def _download(file: PublicFile, places: list[Path], timeout_s: float) -> bytes:
    if urlsplit(file.url).scheme not in ("http", "https"):
        raise StudyError(
            "the address of a data file cannot be used",
            where=f"data set '{file.folder}', file '{file.name}'",
            found=file.url,
            expected="an address that begins with https:// or http://",
            remedy="correct the url in the study",
        )
    try:
        with _opener().open(file.url, timeout=timeout_s) as response:
            content: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise _missing(file, places, f"{file.url} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _missing(file, places, f"{file.url} cannot be reached: {reason}") from None
    found = hashlib.sha256(content).hexdigest()
    _check(file, found, file.url, "try again later; if it stays, a proxy or the source changed the file")
    return content


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https, through the environment's proxies, and nothing else, also after a redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _write(file: PublicFile, target: Path, content: bytes, places: list[Path]) -> None:
    """Give the file its name only when all of it is on the disk, so that no reader sees half of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(content)
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise
    except OSError as error:
        reason = f"{target.parent} cannot be written: {error.strerror}"
        raise _missing(file, places, reason) from None


def _check(file: PublicFile, found: str, where: str, remedy: str) -> None:
    if file.sha256 and found != file.sha256:
        raise DataError(
            f"the file '{file.name}' is not the original",
            where=where,
            found=f"SHA-256 {found[:12]}...",
            expected=f"SHA-256 {file.sha256[:12]}...",
            remedy=remedy,
        )


def _missing(file: PublicFile, places: list[Path], download: str = "") -> MissingDataError:
    fetch = "go online and run again, or " if download else ""
    return MissingDataError(
        f"the file '{file.name}' of the data set '{file.folder}' is missing",
        where=f"looked for {', '.join(map(str, places))}",
        found=download,
        remedy=f"{fetch}get it from {file.page} and put it at {places[0]}, "
        f"or give the folder that holds '{file.folder}/' by --data or {VARIABLE}",
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        "the file cannot be read", where=str(path), found=error.strerror or "", remedy="check path and rights"
    )
