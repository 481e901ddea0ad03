"""The dashboard in a real browser over a real duly: every screen, every action clicked, live, by key, on a phone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Response, expect

from faces.pages.visitor import Visitor

SCREENS = ("/", "/jobs", "/runs", "/timeline", "/lateness", "/failures", "/forecast", "/cluster", "/jobs/new")
LIMIT = 150_000
pytestmark = pytest.mark.timeout(300)  # a browser on a busy machine takes its time


def job_id(visitor: Visitor, name: str) -> str:
    found = visitor.json(f"/jobs?q=name:{name}&format=json")
    identity: str = found["jobs"]["items"][0]["job"]["id"]
    return identity


def paths(visitor: Visitor) -> list[str]:
    """Every screen, those of one job and of one run included."""
    report, broken = job_id(visitor, "order-report"), job_id(visitor, "customer-export")
    run = visitor.json(f"/runs?job_id={report}&state=succeeded&format=json")["runs"]["items"][0]["run"]["id"]
    failed = visitor.json(f"/runs?job_id={broken}&state=failed&format=json")["runs"]["items"][0]["run"]["id"]
    return [
        *SCREENS,
        f"/jobs/{report}",
        f"/jobs/{report}/edit",
        f"/jobs/{report}/versions",
        f"/runs/{run}",
        f"/runs/{failed}",
    ]


def test_every_screen_is_accessible_live_and_light(visitor: Visitor) -> None:
    """Rendered without complaints, clean by axe-core in both schemes, at most 150 KB, its stream connected."""
    weight: list[int] = []

    def weigh(answer: Response) -> None:
        if answer.status == 200 and "event-stream" not in answer.headers.get("content-type", ""):
            weight.append(len(answer.body()))

    for path in paths(visitor):
        visitor.page.emulate_media(color_scheme="light")
        weight.clear()
        visitor.page.on("response", weigh)
        visitor.go(path)
        visitor.page.remove_listener("response", weigh)
        assert visitor.page.title().endswith("· duly")
        assert 0 < sum(weight) < LIMIT, f"{path}: {sum(weight)} bytes"
        if visitor.page.locator("[data-live]").count():
            visitor.live()
        assert visitor.axe() == [], path
        visitor.page.emulate_media(color_scheme="dark")
        assert visitor.axe() == [], f"{path} in the dark"
        visitor.check()


def test_every_screen_fits_a_phone(phone: Visitor) -> None:
    """Nothing is wider than the screen, and axe-core is content there, too."""
    for path in paths(phone):
        phone.go(path)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390, path
        assert phone.axe() == [], path


def test_every_screen_works_without_scripts(plain: Visitor) -> None:
    """The pages are complete as they come; and as JSON they are the same."""
    for path in paths(plain):
        plain.go(path)
        expect(plain.page.locator("h1")).to_have_count(1)
        assert plain.page.locator("main").inner_text().strip()
        data = plain.json(path + ("&" if "?" in path else "?") + "format=json")
        assert isinstance(data, dict)
        assert data
    page = plain.go("/")
    expect(page.locator("#strip svg path").first).to_be_visible()
    page.get_by_role("link", name="invoice-mailer").first.click()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status")).to_contain_text("Resumed")


def test_home_says_whether_it_ran_and_was_on_time(visitor: Visitor) -> None:
    """Figures of the history, the worst rows first, filters in the address, a cell leads to its runs."""
    page = visitor.go("/")
    headline = visitor.json("/?format=json")["headline"]
    assert headline["missed"] in (2, 3)  # of every fourth minute, in nine minutes
    assert headline["failed"] > 0
    expect(page.locator("#figures")).to_contain_text("missed")
    expect(page.locator("#strip li .name").first).to_have_text("fraud-scan")
    page.get_by_role("link", name="180 min").click()
    assert "minutes=180" in page.url
    page.get_by_role("link", name="shards").click()
    assert "minutes=180" in page.url
    expect(page.locator("#strip li .name")).to_have_text(["s0"])
    visitor.go("/")
    page.locator("#strip li", has_text="heartbeat").locator("svg").click(position={"x": 5, "y": 10})
    page.wait_for_url(re.compile("/runs\\?job_id=.*since=.*until="))
    expect(page.locator("#runs tbody tr")).to_have_count(3)


def test_a_page_keeps_itself_up_to_date(visitor: Visitor) -> None:
    """A run that is opened elsewhere shows here, runs here, and ends here, without a reload; one stream a page."""
    slow = job_id(visitor, "thumbnail-batch")
    streams: list[str] = []
    visitor.page.on("request", lambda request: streams.append(request.url) if "/live?" in request.url else None)
    page = visitor.go("/")
    visitor.live()
    page.evaluate("window.stayed = true")
    visitor.context.request.post(f"{visitor.url}/v1/jobs/{slow}/trigger")
    row = page.locator("#running tr", has_text="thumbnail-batch")
    expect(row).to_be_visible()
    expect(row.locator("progress")).to_have_attribute("value", re.compile(r"0\.[1-9]"))
    expect(row).to_have_count(0, timeout=20_000)
    assert page.evaluate("window.stayed") is True
    assert len(streams) == 1


def test_the_log_of_a_run_grows_on_its_page(visitor: Visitor) -> None:
    """Coloured text arrives while the run goes on; search, download and the end are there."""
    slow = job_id(visitor, "thumbnail-batch")
    run = visitor.context.request.post(f"{visitor.url}/v1/jobs/{slow}/trigger").json()
    page = visitor.go(f"/runs/{run['id']}")
    visitor.live()
    expect(page.locator("#log pre")).to_contain_text("step 1 of 8")
    expect(page.locator("#log .c2").first).to_have_text("ok")
    expect(page.locator("#state")).to_contain_text("succeeded", timeout=20_000)
    expect(page.locator("#log pre")).to_contain_text("step 8 of 8")
    page.get_by_label("Search the log").fill("step 3")
    page.keyboard.press("Enter")
    expect(page.locator("#log mark")).to_have_text("step 3")
    expect(page.locator("#log pre")).not_to_contain_text("step 4")
    with page.expect_download() as kept:
        page.get_by_role("link", name="download").click()
    assert "step 8 of 8" in Path(kept.value.path()).read_text()


def test_files_of_a_run_are_shown_and_downloaded(visitor: Visitor) -> None:
    """A table as a table, text as text; the download is the file."""
    report = job_id(visitor, "order-report")
    page = visitor.go(f"/jobs/{report}")
    page.get_by_role("button", name="Trigger now").click()
    page.wait_for_url(re.compile("/runs/.*done=triggered"))
    expect(page.locator("#state")).to_contain_text("succeeded")
    expect(page.locator("#files td", has_text="1204.50")).to_be_visible()
    expect(page.locator("#files pre")).to_contain_text("All is well.")
    expect(page.locator("#log .err")).to_contain_text("2 orders have no address")
    with page.expect_download() as kept:
        page.get_by_role("link", name="Download orders.csv").click()
    assert kept.value.suggested_filename == "orders.csv"
    assert Path(kept.value.path()).read_text().startswith("country,orders,total\n")
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_role("status").filter(has_text="runs again")).to_be_visible()
    expect(page.locator("#attempts")).to_contain_text("again of")


def test_one_job_is_paused_resumed_and_deleted(visitor: Visitor) -> None:
    """Each by its button; deleting asks first."""
    visitor.context.request.post(
        f"{visitor.url}/v1/jobs",
        data={"task": {"kind": "command", "argv": ["true"]}, "schedule": "@daily", "name": "doomed"},
    )
    doomed = job_id(visitor, "doomed")
    page = visitor.go(f"/jobs/{doomed}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#facts")).to_contain_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#facts")).to_contain_text("active")
    page.get_by_role("button", name="Delete").click()
    asked = page.get_by_role("dialog", name="Delete")
    expect(asked).to_be_visible()
    asked.get_by_role("button", name="Keep it").click()
    expect(asked).to_be_hidden()
    page.get_by_role("button", name="Delete").click()
    asked.get_by_role("button", name="Delete").click()
    expect(page.locator("#facts")).to_contain_text("deleted")
    assert visitor.json(f"/jobs/{doomed}?format=json")["job"]["state"] == "deleted"


def test_many_jobs_are_acted_on_with_a_count_first(visitor: Visitor) -> None:
    """By a filter, which completes, and by marks; the count stands before the deed."""
    page = visitor.go("/jobs")
    filter_ = page.get_by_label("Filter")
    filter_.press_sequentially("team=sh")
    expect(page.locator("#words option").first).to_have_attribute("value", "team=shop")
    filter_.fill("team=shop")
    filter_.press("Enter")
    page.wait_for_url(re.compile("q=team%3Dshop"))
    expect(page.locator("#jobs tbody tr")).to_have_count(5)
    page.get_by_role("button", name="Pause …").click()
    expect(page.locator("h1")).to_have_text("Pause 5 jobs?")
    page.get_by_role("button", name="Pause 5 jobs").click()
    expect(page.get_by_role("status").filter(has_text="Done: 5 jobs")).to_be_visible()
    expect(page.locator("#jobs .is-paused")).to_have_count(5)
    page.get_by_label("mark all").check()
    page.get_by_label("mark newsletter").uncheck()
    warmer = job_id(visitor, "cache-warmer")
    visitor.live()
    visitor.context.request.post(f"{visitor.url}/v1/jobs/{warmer}/resume")  # elsewhere: by the stream it shows here
    expect(page.locator(f"#row-{warmer} .is-active")).to_be_visible()
    expect(page.locator("input[name=ids]:checked")).to_have_count(4)
    page.get_by_role("button", name="Resume …").click()
    page.get_by_role("button", name="Resume 4 jobs").click()
    expect(page.locator("#jobs .is-paused")).to_have_count(1)
    filter_.fill("is:paused newsletter")
    filter_.press("Enter")
    page.get_by_role("button", name="Resume …").click()
    page.get_by_role("button", name="Resume 1 job").click()
    expect(page.locator("#jobs")).to_contain_text("No job fits")
    visitor.expected = {422}
    filter_.fill("is:sleeping")
    filter_.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("one of active, paused, completed, deleted")


def test_a_view_is_kept_in_the_browser(visitor: Visitor) -> None:
    """A filter under its name, until it is forgotten."""
    page = visitor.go("/jobs?q=team%3Dops")
    page.get_by_role("button", name="Keep this view").click()
    visitor.go("/jobs")
    page.get_by_role("link", name="team=ops").first.click()
    expect(page.get_by_label("Filter")).to_have_value("team=ops")
    page.get_by_role("button", name="forget the view team=ops").click()
    expect(page.locator("[data-views]")).to_be_empty()


def test_a_job_is_made_with_files_and_changed(visitor: Visitor, tmp_path: Path) -> None:
    """The schedule is told as it is typed, days of clock changes compared, the preview shown, the files kept."""
    code, rows = tmp_path / "count.sh", tmp_path / "rows.csv"
    code.write_text("#!/bin/sh\nwc -l < input/rows.csv > output/lines.txt\necho counted\n")
    rows.write_text("a\nb\nc\n")
    page = visitor.go("/jobs/new")
    page.locator("#f-schedule").fill("30 2 * * *")
    page.locator("#f-timezone").fill("Europe/Berlin")
    told = page.locator("#told")
    expect(told).to_contain_text("At 02:30 every day, Europe/Berlin time")
    expect(told.locator(".times li")).to_have_count(10)
    expect(told).to_contain_text("When the clock changes")
    expect(told).to_contain_text("not run")
    expect(told).to_contain_text("where you are")
    page.get_by_role("button", name="every 15m").click()
    expect(told).to_contain_text("Every 15 minutes")
    page.locator("#f-schedule").fill("61 * * * *")
    expect(told.get_by_role("alert")).to_be_visible()
    page.locator("#f-schedule").fill("0 3 * * *")
    page.locator("#f-name").fill("line-count")
    page.locator("#f-labels").fill("team=ops")
    page.locator("input[name=code]").set_input_files(code)
    page.locator("input[name=inputs]").set_input_files(rows)
    page.locator("#f-priority").fill("eleven")
    visitor.expected = {422}
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#e-priority")).to_contain_text("a whole number")
    visitor.expected = set()
    page.locator("#f-priority").fill("7")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("What would be created")
    expect(page.locator("#preview ins", has_text="line-count")).to_be_visible()
    page.get_by_text("The same as curl and as a command").click()
    expect(page.locator("#preview")).to_contain_text("duly create ./task --schedule '0 3 * * *'")
    expect(page.locator("#curl")).to_contain_text("curl -X POST")
    page.get_by_role("button", name="Create the job").first.click()
    page.wait_for_url(re.compile("done=created"))
    page.get_by_role("button", name="Trigger now").click()
    expect(page.locator("#files")).to_contain_text("lines.txt")
    expect(page.locator("#files pre")).to_contain_text("3")
    expect(page.locator("#log")).to_contain_text("counted")
    page.get_by_role("link", name="line-count").first.click()
    page.get_by_role("link", name="Edit").click()
    page.locator("#f-timeout").fill("90s")
    page.locator("#f-labels").fill("team=data")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview del", has_text="ops")).to_be_visible()
    expect(page.locator("#preview ins", has_text="90s")).to_be_visible()
    expect(page.locator("#curl")).to_contain_text("curl -X PATCH")
    page.get_by_role("button", name="Save").first.click()
    page.wait_for_url(re.compile("done=saved"))
    job = visitor.json(f"/jobs/{job_id(visitor, 'line-count')}?format=json")["job"]
    assert (job["timeout"], job["labels"], job["version"]) == ("1m30s", {"team": "data"}, 2)
    assert job["task"]["inputs"].keys() == {"rows.csv"}


def test_versions_are_compared_and_restored(plain: Visitor, visitor: Visitor, phone: Visitor) -> None:
    """Without scripts as with them: what differs has signs as well as colours, and restoring asks first."""
    made = plain.context.request.post(
        f"{plain.url}/v1/jobs",
        data={"task": {"kind": "command", "argv": ["true"]}, "schedule": "@yearly", "name": "versioned"},
    ).json()
    at = f"{plain.url}/v1/jobs/{made['id']}"
    plain.context.request.patch(at, data={"priority": 9, "labels": {"team": "ops"}})
    plain.context.request.post(f"{at}/pause")
    page = plain.go(f"/jobs/{made['id']}")
    page.get_by_role("link", name="version 2").click()
    expect(page.locator("#difference h2")).to_have_text("From version 1 to 2")
    expect(page.locator("#difference ins", has_text="priority")).to_have_text('+  "priority": 9,')
    expect(page.locator("#difference del", has_text="priority")).to_have_text('-  "priority": 5,')
    expect(page.locator("#difference")).to_contain_text("labels, priority")
    page.get_by_role("combobox", name="From").select_option("2")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#difference")).to_contain_text("They are alike.")
    page.get_by_role("link", name="Difference that version 1 made").click()
    expect(page.locator("#difference")).to_contain_text("There is no version before this one")
    page.get_by_role("button", name="Restore version 1").click()
    asked = page.get_by_role("dialog", name="Restore version 1")
    asked.get_by_role("button", name="Keep it").click()
    expect(asked).to_be_hidden()
    page.get_by_role("button", name="Restore version 1").click()
    stale = page.context.new_page()
    stale.goto(page.url)
    asked.get_by_role("button", name="Restore version 1").click()
    expect(page.get_by_role("status")).to_have_text("Restored, as a new version.")
    expect(page.locator("#version-4")).to_contain_text("in force")
    expect(page.locator("#versions tbody tr")).to_have_count(3)
    job = plain.json(f"/jobs/{made['id']}?format=json")["job"]
    assert (job["version"], job["priority"], job["labels"], job["state"]) == (4, 5, {}, "paused")
    data = plain.json(f"/jobs/{made['id']}/versions?from=2&to=4&format=json")
    assert (data["from"]["version"], data["to"]["version"], data["changed"]) == (2, 4, ["labels", "priority"])
    assert '+  "priority": 5,' in data["diff"]
    for window in (visitor, phone):  # light and dark
        window.go(f"/jobs/{made['id']}/versions?from=2&to=4")
        expect(window.page.locator("#difference ins").first).to_be_visible()
        assert window.axe() == []
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    stale.get_by_role("button", name="Restore version 1").click()
    stale.get_by_role("dialog").get_by_role("button", name="Restore version 1").click()
    expect(stale.locator("main")).to_contain_text("somebody else has changed this job meanwhile")
    stale.close()


def test_failures_are_run_again_and_muted_as_groups(visitor: Visitor) -> None:
    """Errors that differ in numbers are one group; muting hides it in this browser."""
    page = visitor.go("/failures")
    group = page.locator("article", has_text="has no customer").first
    expect(group).to_contain_text("customer-export")
    group.get_by_role("button", name="Mute").click()
    expect(page.locator("article", has_text="has no customer")).to_have_count(0)
    page.get_by_role("link", name="1 muted group").click()
    page.get_by_role("button", name="Show again").click()
    group = page.locator("article", has_text="has no customer").first
    group.get_by_role("button", name="Run again").click()
    group.get_by_role("dialog").get_by_role("button", name="Run again").click()
    expect(page.get_by_role("status").filter(has_text="Run again:")).to_be_visible()


def test_the_timeline_zooms_and_moves(visitor: Visitor) -> None:
    """By links that keep the window in the address; bars lead to their runs; a retry is linked to its first try."""
    page = visitor.go("/timeline?minutes=180")
    assert page.locator("#lanes rect").count() > 50
    expect(page.locator("#lanes .g-now").first).to_be_attached()
    page.get_by_role("link", name="earlier").click()
    assert "end=" in page.url
    page.get_by_role("link", name="zoom in").click()
    assert "minutes=60" in page.url
    assert "end=" in page.url
    first = page.locator("#lanes a").first
    expect(first).to_have_accessible_name(re.compile("succeeded|failed"))
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/runs/"))


def test_a_worker_is_drained_and_works_again(visitor: Visitor) -> None:
    """It says draining, takes nothing, and comes back."""
    page = visitor.go("/cluster")
    visitor.live()
    page.get_by_role("button", name="Drain").click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(page.locator("#workers")).to_contain_text("draining")
    tick = job_id(visitor, "invoice-mailer")
    run = visitor.context.request.post(f"{visitor.url}/v1/jobs/{tick}/trigger").json()
    page.get_by_role("button", name="Take work again").click()
    expect(page.locator("#workers")).to_contain_text("ready")
    ended = visitor.context.request.get(f"{visitor.url}/v1/runs/{run['id']}", headers={"Prefer": "wait=10"}).json()
    assert ended["state"] == "succeeded"


def test_all_of_it_can_be_reached_by_key(visitor: Visitor) -> None:
    """Skip link first, letters for the screens, a slash for the search, and a list of the keys."""
    page = visitor.go("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#content")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("j")
    page.wait_for_url(re.compile("/jobs$"))
    page.keyboard.press("/")
    expect(page.get_by_label("Filter")).to_be_focused()
    page.keyboard.type("invoice")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("q=invoice"))
    link = page.get_by_role("link", name="invoice-mailer")
    for _ in range(40):
        page.keyboard.press("Tab")
        if link.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/jobs/[0-9a-f-]{36}"))


@pytest.mark.parametrize("path", ["/lateness", "/forecast"])
def test_charts_are_drawn(visitor: Visitor, path: str) -> None:
    """uPlot draws what the page holds."""
    page = visitor.go(path)
    expect(page.locator(".plot canvas").first).to_be_visible()


def test_a_page_rests_while_it_is_hidden(visitor: Visitor) -> None:
    """A hidden tab lets its stream go; one that is looked at again connects anew."""
    page = visitor.go("/")
    visitor.live()
    page.evaluate(
        """() => { Object.defineProperty(document, "hidden", {value: true, configurable: true});
                   document.dispatchEvent(new Event("visibilitychange")); }"""
    )
    page.wait_for_selector("[data-live=paused]")
    with page.expect_request(re.compile("/live\\?")):
        page.evaluate(
            """() => { Object.defineProperty(document, "hidden", {value: false, configurable: true});
                       document.dispatchEvent(new Event("visibilitychange")); }"""
        )
    visitor.live()
