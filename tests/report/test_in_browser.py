"""Reports in headless Chromium: nothing is missing, nothing complains, and no request leaves the page."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedddpm_app.report.comparison import comparison_page
from fedddpm_app.report.run import run_page
from fedddpm_app.report.saving import LARGEST_BYTES, save_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs the packages chromium and chromium-driver"),
]
WIDTHS = {"desktop": 1280, "phone": 390}


class Browser:
    """A headless Chromium."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, path: Path, width: int, scheme: str) -> None:
        """Open a page at a width, and wait for its plots."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(path.as_uri())
        self.wait("return document.documentElement.dataset.drawn")

    def wait(self, script: str) -> object:
        """Return the value of a script once it has one."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if value := self.driver.execute_script(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"no value after a minute: {script}")

    def requests(self) -> set[str]:
        """The addresses of all requests so far."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [each["params"] for each in events if each["method"] == "Network.requestWillBeSent"]
        return {each["request"]["url"] for each in sent}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield Browser(driver)
    driver.quit()


def test_reports_are_complete_and_send_no_request(run: Path, comparison: Path, browser: Browser) -> None:
    pages = {"run": run_page(run), "comparison": comparison_page(comparison)}
    for name, page in pages.items():
        path = run / f"{name}.html"
        assert save_page(page, path) < LARGEST_BYTES
        for width in WIDTHS.values():
            for scheme in ("light", "dark"):
                browser.open(path, width, scheme)
                script = "return document.documentElement.scrollWidth <= window.innerWidth"
                assert browser.driver.execute_script(script), f"{name} scrolls sideways at {width}"
                charts = "return [...document.querySelectorAll('.chart')].every(c => c.querySelector('svg'))"
                assert browser.driver.execute_script(charts)
                images = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
                assert browser.driver.execute_script(images)
        assert browser.driver.get_log("browser") == []
        assert {url for url in browser.requests() if not url.startswith("data:")} == {path.as_uri()}
        printed = browser.driver.execute_cdp_cmd("Page.printToPDF", {})
        assert len(printed["data"]) > 10_000


def test_the_x_axis_follows_the_reader(run: Path, browser: Browser) -> None:
    save_page(run_page(run), run / "report.html")
    browser.open(run / "report.html", 1280, "light")
    title = "document.querySelector('#curves .chart').textContent.includes('MB exchanged')"
    assert not browser.driver.execute_script(f"return {title}")
    browser.driver.execute_script("document.querySelector('#curves input[value=mb]').click()")
    assert browser.wait(f"return {title}")
    assert browser.driver.get_log("browser") == []
