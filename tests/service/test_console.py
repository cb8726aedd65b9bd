"""The operator's console in a real browser, on a real coordinator with three hospitals and a run."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from daemons import CLI, Federation, approve, enrol, free_ports, make_hub, until
from playwright.sync_api import Browser, Page, expect, sync_playwright

from clinimeta.client.approvals import Approvals
from clinimeta.common.study import Plan, read_study
from clinimeta.common.tasks.table import Records

pytestmark = [
    pytest.mark.service,
    pytest.mark.timeout(540),
    pytest.mark.xdist_group("service"),
]
SITES, LATE = ("cleveland", "hungary"), "long_beach"
PASSWORD, REASON = "correct horse battery", "agreed with the steering board"
ROUNDS = 16
SHOTS = os.environ.get("CLINIMETA_SCREENSHOTS", "")
"""Where pictures of the screens are kept, if anywhere."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(p).exists()), "")
    if not path:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, tables: Mapping[str, Records]
) -> Iterator[Federation]:
    """A coordinator and two hospitals; a third is invited in the browser."""
    made = make_hub(tmp_path_factory.mktemp("console"))
    try:
        made.hub.start()
        for name in SITES:
            enrol(made, name, tables[name]).start(wait=False)
        for site in made.sites.values():
            until(site.ready, 60)
        yield made
    finally:
        made.stop()


@contextmanager
def serving(words: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """A console's process: its address, and the link that its first start prints."""
    port, log = free_ports(1)[0], folder / "console.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [CLI, *words, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            link = until(lambda: re.search(r"http://\S+/link/\S+", log.read_text()), 60)
            until(lambda: "the console answers" in log.read_text(), 30)
            yield f"http://127.0.0.1:{port}", link[0]
        finally:
            process.terminate()
            assert process.wait(20) == 0
    assert PASSWORD not in log.read_text()


@pytest.fixture(scope="module")
def address(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The operator's console."""
    words = ["console", "--home", str(federation.hub.folder)]
    with serving(words, tmp_path_factory.mktemp("log")) as found:
        yield found


@dataclass(slots=True)
class Screen:
    """A page in the browser, and everything that it complained of."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Hear what the browser says of scripts and of the content security policy."""
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, path: str) -> None:
        answer = self.page.goto(self.base + path)
        assert answer is not None
        assert answer.status == 200, path

    def checked(self, name: str) -> None:
        """Nothing serious is wrong for those who cannot see or use a mouse; a picture, if wanted."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], name
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)

    def say(self, form: str, button: str, **fields: str) -> None:
        """Fill a form that has this label, with a reason, and send it."""
        place = self.page.get_by_role("form", name=form)
        for name, value in {**fields, "reason": REASON}.items():
            place.locator(f"[name={name}]").fill(value)
        place.get_by_role("button", name=button).click()


def study_of(text: str) -> str:
    """Enough rounds to watch, and a quorum that goes on without a third hospital."""
    found = text.replace("quorum = 1.0", "quorum = 0.3").replace("deadline_s = 40.0", "deadline_s = 6.0")
    return re.sub(r"rounds = \d+", f"rounds = {ROUNDS}", found, count=1)


def test_a_day_of_an_operator(
    federation: Federation,
    address: tuple[str, str],
    browser: Browser,
    tables: Mapping[str, Records],
    study_text: str,
    tmp_path: Path,
) -> None:
    base, link = address
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    screen = Screen(context.new_page(), base)
    page = screen.page
    screen.watch()

    # The first account, by the link that the first start printed
    page.goto(link)
    screen.checked("first-account")
    page.get_by_label("Name").fill("ada")
    for label in (re.compile("^Password"), "The same again"):
        page.get_by_label(label).fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("heading", name="Federation")).to_be_visible()

    # Invite a hospital, let it enrol, approve it, see it come
    screen.open("/enrolment")
    screen.say("Invite a hospital", "Make a token", site=LATE)
    token = page.get_by_label("Copy it now").input_value()
    screen.checked("shown-once")
    late = enrol(federation, LATE, tables[LATE], token=token)
    screen.open("/enrolment")
    screen.checked("enrolment")
    screen.say(f"Approve {LATE}", "Approve")
    expect(page.get_by_role("status")).to_contain_text(f"{LATE} is approved")
    screen.open("/")
    row = page.get_by_role("row").filter(has_text=LATE)
    expect(row).to_contain_text("away")
    page.evaluate("window.same = true")
    late.start()
    expect(row).to_contain_text("here", timeout=30_000)
    assert page.evaluate("window.same"), "without being loaded again"
    screen.checked("federation")

    # A study of one's own, started from the wizard
    text = study_of(study_text)
    screen.open("/new")
    page.get_by_text("Or keep one of your own").click()
    screen.say("Keep a study", "Keep it", study=text)
    screen.open("/new?study=heart-disease")
    expect(page.get_by_text(f"{ROUNDS} rounds")).to_be_visible()
    screen.say("Ask the hospitals", "Ask the hospitals")
    screen.open("/new?study=heart-disease")
    expect(page.get_by_text("would refuse")).to_have_count(3, timeout=45_000)
    for site in federation.sites.values():
        approve(site.folder, text)
    expect(page.get_by_text("would answer")).to_have_count(3, timeout=45_000)
    screen.checked("new-run")
    screen.say("Start the run", "Start the run")
    expect(page.get_by_role("status")).to_contain_text("is queued")
    screen.checked("runs")
    page.get_by_role("link", name=re.compile("heart-disease-")).click()

    # Watch it: rounds come, a hospital drops, one refuses, both return
    page.evaluate("window.same = true")
    expect(page.get_by_role("cell", name="3 of 3").first).to_be_visible(timeout=60_000)
    federation.sites["hungary"].kill()
    rounds = page.get_by_role("table", name="The last rounds")
    expect(rounds).to_contain_text("hungary (silent)", timeout=45_000)
    digests = {plan.digest for plan in _plans(text)}
    for digest in digests:
        Approvals(late.folder / "state" / "approvals").withdraw(digest, "Grace", "not now")
    expect(rounds).to_contain_text(f"{LATE} (refused", timeout=45_000)
    expect(page.locator("svg[aria-labelledby^=timeline]")).to_be_visible()
    screen.checked("run")
    for digest in digests:
        Approvals(late.folder / "state" / "approvals").approve(digest, "Grace", "again")
    federation.sites["hungary"].start(wait=False)
    expect(page.get_by_text("finished", exact=True).first).to_be_visible(timeout=150_000)
    assert page.evaluate("window.same"), "without being loaded again"
    name = page.url.rpartition("/")[2]
    screen.open(f"/runs/{name}")
    counted = [int(one["accepted"]) for one in federation.rounds(name)]
    assert counted[0] == 3
    assert min(counted) == 1
    assert counted[-1] == 3, "both returned"

    # What is left: the model, the record of events, and all other screens
    screen.open(f"/models/{name}")
    screen.checked("model")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="model.safetensors").click()
    assert waiting.value.path().read_bytes() == federation.model_path(name).read_bytes()
    for path, shot in (
        ("/runs", "runs-finished"),
        ("/models", "models"),
        ("/privacy", "privacy"),
        ("/secure-aggregation", "secure-aggregation"),
        ("/audit", "audit"),
        ("/audit/verified", "audit-verified"),
        ("/doctor", "doctor"),
        ("/accounts", "accounts"),
        ("/account", "account"),
        ("/sites/hungary", "site"),
    ):
        screen.open(path)
        screen.checked(shot)
    screen.open(f"/audit?search={LATE}")
    expect(page.get_by_role("table")).to_contain_text(REASON)
    assert screen.complaints == []
    context.close()

    # At a hospital: its own console, on its own machine
    with serving(["site", "console", "--home", str(federation.sites["cleveland"].folder)], tmp_path) as at:
        own = Screen(browser.new_page(viewport={"width": 1280, "height": 900}), at[0])
        own.watch()
        own.page.goto(at[1])
        own.page.get_by_label("Name").fill("grace")
        for label in (re.compile("^Password"), "The same again"):
            own.page.get_by_label(label).fill(PASSWORD)
        own.page.get_by_role("button", name="Make the account").click()
        expect(own.page.get_by_text("cleveland takes part")).to_be_visible()
        for one in ("", "check", "data", "studies", "policy", "ledger", "budget"):
            own.open(f"/{one}")
            own.checked(f"site-{one or 'status'}")
        assert own.complaints == []
        own.page.close()

    # Without scripts it reads the same
    plain = browser.new_context(java_script_enabled=False)
    reader = plain.new_page()
    reader.goto(base + "/sign-in")
    reader.get_by_label("Name").fill("ada")
    reader.get_by_label("Password").fill(PASSWORD)
    reader.get_by_role("button", name="Sign in").click()
    reader.goto(f"{base}/runs/{name}")
    expect(reader.get_by_text("finished", exact=True).first).to_be_visible()
    plain.close()


def _plans(text: str) -> list[Plan]:
    read = read_study(text, "study.toml")
    return [read.plan(arm, read.seeds[0]) for arm in (read.trained, read.arm(read.primary))]
