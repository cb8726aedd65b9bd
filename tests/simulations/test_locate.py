"""A public file is found where people put it, fetched only when allowed, and never taken for another."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clinimeta.common.errors import DataError, MissingDataError, StudyError
from clinimeta.simulations.datasets import locate as locate_module
from clinimeta.simulations.datasets.locate import PublicFile, cache_folder, data_folder, digest, locate

CONTENT = b"63,1,1\n67,1,4\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = "https://example.org/heart"

Pages = dict[str, tuple[int, bytes]]


class Handler(BaseHTTPRequestHandler):
    """Serves `pages`; a status of 0 means bytes that are no HTTP at all."""

    pages: Pages
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, body = self.pages.get(self.path, (404, b"not here"))
        if status == 0:
            self.wfile.write(body)
            return
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body.decode())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Tests are quiet."""


@contextlib.contextmanager
def serving(pages: Pages) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Pages", (Handler,), {"pages": pages, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing of the developer's own environment."""
    for name in ("CLINIMETA_DATA", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "clinimeta" / "heart"


def public(url: str = "", sha256: str = SHA256) -> PublicFile:
    return PublicFile("heart", "a.data", PAGE, sha256, url)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("inside", ["heart/a.data", "a.data", "heart/A.Data", "A.DATA"])
def test_the_given_folder_may_hold_the_set_or_be_it(tmp_path: Path, inside: str) -> None:
    path = put(tmp_path / "data" / inside)
    assert locate(public(), tmp_path / "data") == path


def test_the_exact_name_wins_over_another_case(tmp_path: Path) -> None:
    put(tmp_path / "heart" / "A.data", b"other")
    path = put(tmp_path / "heart" / "a.data")
    assert locate(public(), tmp_path) == path


def test_a_folder_of_the_files_name_is_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "heart" / "a.data").mkdir(parents=True)
    with pytest.raises(MissingDataError):
        locate(public(), tmp_path)


def test_the_given_folder_comes_first_then_the_variable_then_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, named = put(tmp_path / "given" / "a.data"), put(tmp_path / "named" / "a.data")
    cached = put(cache / "a.data")
    assert locate(public(), None) == cached
    monkeypatch.setenv("CLINIMETA_DATA", str(tmp_path / "named"))
    assert locate(public(), None) == named
    assert locate(public(), tmp_path / "given") == given
    named.unlink()
    assert locate(public(), None) == cached


def test_the_variable_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLINIMETA_DATA", "~/data")
    assert data_folder(None) == tmp_path / "data"


@pytest.mark.parametrize("base", ["", "relative/path"])
def test_the_cache_is_in_the_home_folder_unless_xdg_says_otherwise(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    assert cache_folder() == tmp_path / ".cache" / "clinimeta"


def test_a_download_is_kept_and_asked_for_once(cache: Path) -> None:
    with serving({"/a.data": (200, CONTENT)}) as (url, asked):
        first = locate(public(f"{url}/a.data"), None)
        again = locate(public(f"{url}/a.data"), None)
    assert first == again == cache / "a.data"
    assert first.read_bytes() == CONTENT
    assert asked == ["/a.data"]
    assert [path.name for path in cache.iterdir()] == ["a.data"]


def test_a_redirect_within_http_is_followed() -> None:
    with serving({"/old": (302, b"/new"), "/new": (200, CONTENT)}) as (url, _):
        assert locate(public(f"{url}/old"), None).read_bytes() == CONTENT


@pytest.mark.parametrize("target", [b"file:///etc/hostname", b"ftp://127.0.0.1/a.data"])
def test_a_redirect_elsewhere_is_not_followed(target: bytes) -> None:
    with serving({"/old": (302, target)}) as (url, _), pytest.raises(MissingDataError):
        locate(public(f"{url}/old"), None)


def test_the_environments_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://hospital.example/a.data"
    with serving({address: (200, CONTENT)}) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        assert locate(public(address), None).read_bytes() == CONTENT
    assert asked == [address]


@pytest.mark.parametrize("body", [b"corrupted", CONTENT + b"more", b""])
def test_a_corrupted_download_never_gets_the_name(cache: Path, body: bytes) -> None:
    with serving({"/a.data": (200, body)}) as (url, _), pytest.raises(DataError) as caught:
        locate(public(f"{url}/a.data"), None)
    assert caught.value.where == f"{url}/a.data"
    assert SHA256[:12] in caught.value.expected
    assert hashlib.sha256(body).hexdigest()[:12] in caught.value.found
    assert "try again" in caught.value.remedy
    assert not cache.exists()


def test_a_download_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate_module, "MAX_BYTES", 100)
    with serving({"/a.data": (200, b"x" * 10_000)}) as (url, _), pytest.raises(DataError) as caught:
        locate(public(f"{url}/a.data"), None)
    assert hashlib.sha256(b"x" * 101).hexdigest()[:12] in caught.value.found


def test_a_page_that_is_not_there_is_named_with_both_remedies(cache: Path) -> None:
    with serving({}) as (url, _), pytest.raises(MissingDataError) as caught:
        locate(public(f"{url}/a.data"), None)
    assert caught.value.found == f"{url}/a.data answers 404 Not Found"
    assert str(cache / "a.data") in caught.value.where
    for words in ("go online", PAGE, f"put it at {cache / 'a.data'}", "--data or CLINIMETA_DATA"):
        assert words in caught.value.remedy


def test_an_answer_that_is_not_http_is_an_error() -> None:
    with serving({"/a.data": (0, b"garbage\r\n")}) as (url, _), pytest.raises(MissingDataError) as caught:
        locate(public(f"{url}/a.data"), None)
    assert "cannot be reached" in caught.value.found


def test_offline_names_every_place_that_was_looked_at(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLINIMETA_DATA", str(tmp_path / "named"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.data"
        with pytest.raises(MissingDataError) as caught:
            locate(public(url), None)
    places = [tmp_path / "named" / "heart" / "a.data", tmp_path / "named" / "a.data", cache / "a.data"]
    assert caught.value.where == f"looked for {', '.join(map(str, places))}"
    assert f"{url} cannot be reached" in caught.value.found
    assert "refused" in caught.value.found


def test_a_server_that_says_nothing_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/a.data"
        with pytest.raises(MissingDataError) as caught:
            locate(public(url), None, timeout_s=0.05)
    assert "timed out" in caught.value.found


def test_nothing_is_downloaded_when_a_folder_was_given(tmp_path: Path, cache: Path) -> None:
    put(cache / "a.data")
    with serving({"/a.data": (200, CONTENT)}) as (url, asked), pytest.raises(MissingDataError) as caught:
        locate(public(f"{url}/a.data"), tmp_path / "given")
    assert asked == []
    assert str(cache) not in str(caught.value)
    assert f"put it at {tmp_path / 'given' / 'heart' / 'a.data'}" in caught.value.remedy
    assert "go online" not in caught.value.remedy


def test_the_sets_own_folder_is_where_its_file_belongs(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        locate(public(), tmp_path / "heart")
    assert f"put it at {tmp_path / 'heart' / 'a.data'}," in caught.value.remedy


def test_a_file_without_an_address_says_where_to_get_it() -> None:
    with pytest.raises(MissingDataError) as caught:
        locate(public(), None)
    assert PAGE in caught.value.remedy
    assert "go online" not in caught.value.remedy
    assert caught.value.found == ""


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.data", "a.data"])
def test_only_http_and_https_are_fetched(url: str) -> None:
    with pytest.raises(StudyError, match="address"):
        locate(public(url), None)


@pytest.mark.parametrize("where", ["given", "cached"])
def test_a_local_file_that_is_not_the_original_is_refused(tmp_path: Path, cache: Path, where: str) -> None:
    path = put((tmp_path if where == "given" else cache) / "a.data", b"edited")
    with pytest.raises(DataError) as caught:
        locate(public(), tmp_path if where == "given" else None)
    assert caught.value.where == str(path)
    assert hashlib.sha256(b"edited").hexdigest()[:12] in caught.value.found
    assert PAGE in caught.value.remedy
    assert path.read_bytes() == b"edited"


def test_without_a_known_checksum_any_content_is_taken(tmp_path: Path) -> None:
    path = put(tmp_path / "a.data", b"a user's own export")
    assert locate(public(sha256=""), tmp_path) == path


def test_what_is_downloaded_has_a_known_checksum() -> None:
    with pytest.raises(AssertionError):
        public("https://example.org/a.data", sha256="")


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(put(tmp_path / "file")))
    with serving({"/a.data": (200, CONTENT)}) as (url, _), pytest.raises(MissingDataError) as caught:
        locate(public(f"{url}/a.data"), None)
    assert "cannot be written" in caught.value.found


def test_a_partial_file_is_removed(cache: Path) -> None:
    (cache / "a.data").mkdir(parents=True)  # the name is taken, so the last step fails
    with serving({"/a.data": (200, CONTENT)}) as (url, _), pytest.raises(MissingDataError) as caught:
        locate(public(f"{url}/a.data"), None)
    assert "cannot be written" in caught.value.found
    assert [path.name for path in cache.iterdir()] == ["a.data"]


def test_a_path_that_the_system_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        locate(public(), tmp_path / ("x" * 5000))


def test_a_digest_of_nothing_is_an_error(tmp_path: Path) -> None:
    assert digest(put(tmp_path / "a.data")) == SHA256
    with pytest.raises(DataError, match="cannot be read"):
        digest(tmp_path / "gone")
