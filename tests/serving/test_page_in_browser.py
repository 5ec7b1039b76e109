"""The operator page in a real browser, on a service that really listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import browser, require_chromium, until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from sbdzsl.serving.keys import KeyFile
from sbdzsl.serving.rules import AlarmSettings
from sbdzsl.serving.settings import ServeSettings
from tests.conftest import SEEN, UNSEEN, Trained
from tests.serving.running import Running, running

Picture = Callable[..., bytes]

#: What a gloved finger would miss: controls below 44 px. Links in a table have their row.
TOO_SMALL = """
return [...document.querySelectorAll("button, .button, nav a, select")]
  .filter((one) => one.offsetParent && !one.matches("td *") && one.getBoundingClientRect().height < 44)
  .map((one) => one.outerHTML)
"""


@pytest.fixture(scope="module", autouse=True)
def _chromium() -> None:
    require_chromium()


def one(driver: WebDriver, css: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, css)


def every(driver: WebDriver, css: str) -> list[WebElement]:
    return driver.find_elements(By.CSS_SELECTOR, css)


def text(driver: WebDriver, css: str) -> str:
    """What an element says now; "" where it is not there, or was just drawn anew."""
    found: str = driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", css)
    return found


def shown_event(driver: WebDriver) -> int:
    return int(driver.execute_script("return document.querySelector('#tile').dataset.event ?? 0"))


def press(driver: WebDriver, *keys: str) -> None:
    driver.execute_script("document.activeElement.blur()")
    for key in keys:
        one(driver, "body").send_keys(key)


def click(driver: WebDriver, css: str) -> None:
    until(lambda: every(driver, css))
    driver.execute_script("document.querySelector(arguments[0]).click()", css)


def is_loaded(driver: WebDriver, css: str) -> bool:
    script = "const i = document.querySelector(arguments[0]); return Boolean(i && i.complete && i.naturalWidth)"
    return bool(driver.execute_script(script, css))


@pytest.fixture
def live(trained: Trained, tmp_path: Path) -> Iterator[Running]:
    alarms = AlarmSettings(in_a_row=3, delay_on_s=0, delay_off_s=0)
    with running(trained.bundle_url, ServeSettings(threads=1, data=str(tmp_path / "data"), alarms=alarms)) as found:
        yield found


@pytest.fixture
def page(live: Running, tmp_path: Path) -> Iterator[WebDriver]:
    with browser(tmp_path / "profile") as driver:
        driver.get(live.url)
        until(lambda: text(driver, "#foot").startswith("● Connected") or "Connected" in text(driver, "#foot"))
        yield driver
        # What went wrong in the page itself; answers such as 415 are the service's.
        logged = driver.get_log("browser")  # type: ignore[no-untyped-call]
        assert [line for line in logged if line["level"] == "SEVERE" and line["source"] != "network"] == []


def test_an_image_that_is_posted_is_seen_within_two_seconds(
    live: Running, page: WebDriver, picture_of: Picture
) -> None:
    assert text(page, "#tile .word") == "NO RESULT"  # never OK by default
    started = time.monotonic()
    good = live.post(picture_of(SEEN[0]), camera="line7", part_id="P-1")
    until(
        lambda: shown_event(page) == good["event_id"] and is_loaded(page, "#picture img"),
        2 - time.monotonic() + started,
    )
    assert text(page, "#tile .word") == "OK"
    assert SEEN[0] in text(page, "#tile .why")

    started = time.monotonic()
    bad = live.post(picture_of(SEEN[0], "defect", 1), camera="line7", part_id="P-2")
    assert bad["verdict"] == "defect"
    until(
        lambda: text(page, "#tile .word") == "NOT OK" and is_loaded(page, "#picture img"),
        2 - time.monotonic() + started,
    )
    until(lambda: is_loaded(page, "#picture img.over"))
    press(page, "o")
    until(lambda: not every(page, "#picture img.over"))
    assert float(one(page, "#tile .word").value_of_css_property("font-size").removesuffix("px")) >= 96
    until(lambda: text(page, "[data-counter=defect] b") == "1")


def test_filters_keys_and_pause(live: Running, page: WebDriver, picture_of: Picture) -> None:
    pictures = [picture_of(SEEN[0]), picture_of(SEEN[0], "defect", 1)]
    sent = [
        live.post(picture, part_id=part)
        for picture, part in zip((*pictures, pictures[0]), ("a", "bad", "c"), strict=True)
    ]
    assert [one["verdict"] for one in sent] == ["good", "defect", "good"]
    numbers = [int(str(one["event_id"])) for one in sent]
    until(lambda: len(every(page, "#strip [role=option]")) == 3)
    press(page, "n")
    until(lambda: len(every(page, "#strip [role=option]")) == 1)
    until(lambda: shown_event(page) == numbers[1])
    assert "part bad" in text(page, "#review")  # what is reviewed is what is shown
    press(page, "n")
    until(lambda: shown_event(page) == numbers[2])
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    until(lambda: shown_event(page) == numbers[0])
    assert "Looking back" in text(page, "#tile")
    live.post(picture_of(SEEN[1]))
    until(lambda: len(every(page, "#strip [role=option]")) == 4)
    assert shown_event(page) == numbers[0]  # who looks at a part is not disturbed by the line
    until(lambda: "1 newer" in text(page, "#playing"))
    press(page, Keys.SPACE)
    until(lambda: text(page, "#tile .why").startswith(SEEN[1]))


def test_a_review_is_kept(live: Running, page: WebDriver, picture_of: Picture) -> None:
    page.execute_script("localStorage.setItem('name', 'ada')")
    number = live.post(picture_of(SEEN[0], "defect", 3))["event_id"]
    until(lambda: shown_event(page) == number)
    press(page, "1")
    click(page, "[data-reason=dust]")
    until(lambda: "ada: Good (dust)" in text(page, "#past"))
    (kept,) = live.client.get(f"/v1/verdicts/{number}").json()["reviews"]
    assert (kept["who"], kept["decision"], kept["reason"]) == ("ada", "good", "dust")


def test_an_alarm_is_acknowledged_and_shelved(live: Running, page: WebDriver, picture_of: Picture) -> None:
    page.execute_script("localStorage.setItem('name', 'ada')")
    for number in range(3):
        live.post(picture_of(UNSEEN, "benign", number), camera="line7")
    until(lambda: "show no surface that is known" in text(page, "#banner .first"))
    assert text(page, "#tile .word") == "NOT DECIDABLE"
    press(page, "a")
    click(page, ".alarm.unacknowledged .main")
    until(lambda: every(page, "dialog[open] input"))
    one(page, "dialog[open] input").send_keys("new product", Keys.ENTER)
    until(lambda: "acknowledged by ada" in text(page, ".alarm.acknowledged"))
    page.execute_script("[...document.querySelectorAll('.alarm button')].at(-1).click()")
    until(lambda: every(page, "dialog[open] input"))
    one(page, "dialog[open] input").send_keys("until it is enrolled", Keys.ENTER)
    until(lambda: every(page, ".alarm.shelved"))
    (alarm,) = live.client.get("/v1/alarms").json()["alarms"]
    assert (alarm["comment"], alarm["shelved_because"], alarm["state"]) == (
        "new product",
        "until it is enrolled",
        "shelved",
    )


def test_the_unseen_are_grouped_and_an_image_can_be_tried(
    live: Running, page: WebDriver, picture_of: Picture, tmp_path: Path
) -> None:
    click(page, "#views a[href='#try']")
    files = []
    for number in range(4):
        files.append(tmp_path / f"unseen {number}.png")
        files[-1].write_bytes(picture_of(UNSEEN, "benign", number))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    one(page, "#file").send_keys("\n".join(map(str, [*files, tmp_path / "broken.png"])))
    until(lambda: len(every(page, ".tried-row.error, .tried-row.unseen, .tried-row.good, .tried-row.defect")) == 5, 20)
    assert len(every(page, ".tried-row.error")) == 1
    click(page, "#views a[href='#unseen']")
    click(page, "#group-now")
    until(lambda: every(page, ".group"), 60)
    until(lambda: is_loaded(page, ".group .thumbs img"))


def test_names_are_text_and_never_markup(live: Running, page: WebDriver, picture_of: Picture) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    live.post(picture_of(SEEN[0]), camera=hostile, part_id=hostile, name=hostile + ".png")
    until(lambda: shown_event(page))
    click(page, "#views a[href='#history']")
    until(lambda: hostile in text(page, "#view-history"))
    time.sleep(0.3)
    assert page.title != "owned"


def test_a_lost_stream_greys_the_page(live: Running, page: WebDriver, picture_of: Picture) -> None:
    live.post(picture_of(SEEN[0]))
    until(lambda: text(page, "#tile .word") == "OK")
    assert "stale" not in (one(page, "body").get_attribute("class") or "")
    live.server.should_exit = True
    until(lambda: "DATA STALE since" in text(page, "#stale"), 15)
    assert "grayscale(1)" in one(page, "main").value_of_css_property("filter")
    assert "Not connected" in text(page, "#foot")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_and_can_be_touched(live: Running, tmp_path: Path, picture_of: Picture, width: int) -> None:
    live.post(picture_of(SEEN[0], "defect", 1), camera="line7", part_id="P-1")
    live.post(picture_of(UNSEEN), camera="line7", part_id="P-2")  # its word is the longest
    with browser(tmp_path / f"profile {width}", width, 800) as driver:
        for view in ("line", "history", "alarms", "unseen", "try"):
            driver.get(f"{live.url}/#{view}")
            until(lambda: "Connected" in text(driver, "#foot"))
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            assert (view, wide) == (view, width)
            small = driver.execute_script(TOO_SMALL)
            assert (view, small) == (view, [])


def test_signing_in(trained: Trained, tmp_path: Path, picture_of: Picture) -> None:
    keys = KeyFile(str(tmp_path / "keys.json"))
    secret = keys.create("ada", ["infer", "review"])
    settings = ServeSettings(threads=1, data=str(tmp_path / "data"))
    with running(trained.bundle_url, settings, keys) as live, browser(tmp_path / "profile") as driver:
        driver.get(live.url)
        until(lambda: every(driver, "#sign-in[open] #key"))
        one(driver, "#key").send_keys("wrong", Keys.ENTER)
        until(lambda: "live API key" in text(driver, "#sign-in .wrong"))
        one(driver, "#key").clear()
        one(driver, "#key").send_keys(secret, Keys.ENTER)
        until(lambda: "ada (infer, review)" in text(driver, "#who"))
        live.client.post("/v1/inspect", content=picture_of(SEEN[0]), headers={"authorization": f"Bearer {secret}"})
        until(lambda: text(driver, "#tile .word") == "OK")
        assert secret not in driver.execute_script("return document.cookie + JSON.stringify(localStorage)")
