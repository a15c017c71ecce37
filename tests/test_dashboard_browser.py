"""The pages in a real Chromium, served by the child process that users get."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from analytics import jobs
from collector.config import Config, DashboardConfig, StorageConfig
from collector.lake.lake import Lake
from collector.lake.location import Location, locate
from collector.lake.segments import write_segment
from collector.spans import SPAN_SCHEMA
from dashboard import launch

WAIT_SECONDS = 60
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1600,800",
)  # fmt: skip
REGIONS = ("eu-central-1", "us-east-1")
ROW = "[data-testid=stDataFrame] canvas"
CHART = "[data-testid=stVegaLiteChart]"

pytestmark = pytest.mark.needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        if os.environ.get("CI"):
            pytest.fail("chromium and chromedriver are not installed, and CI is set")
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture(scope="module")
def location(tmp_path_factory: pytest.TempPathFactory) -> Location:
    found = locate(StorageConfig(data=str(tmp_path_factory.mktemp("data"))))
    found.prepare()
    with Lake(found, read_only=False) as lake:
        jobs.prepare(lake)
    store(found)
    return found


@pytest.fixture(scope="module")
def url(location: Location) -> Iterator[str]:
    storage = StorageConfig(data=str(location.root))
    dashboard = launch.start(Config(storage=storage, dashboard=DashboardConfig(port=0, refresh_seconds=1)))
    try:
        launch.wait_ready(dashboard.url, WAIT_SECONDS, dashboard.process)
        yield dashboard.url
    finally:
        dashboard.process.terminate()
        dashboard.process.wait(WAIT_SECONDS)


def store(location: Location) -> None:
    """Add two hours of traffic, 480 spans, and roll it up."""
    with Lake(location, read_only=False) as lake:
        path = write_segment(traffic(), location.files / "main" / "spans")
        with lake.write() as transaction:
            transaction.add_files("spans", [path])
        jobs.run_once(lake, Config())


def traffic() -> pa.Table:
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [
        {
            "trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1", "flags": 0, "name": "get", "kind": "server",
            "start_time": now - timedelta(minutes=offset), "duration_ns": 1_000_000, "status": "unset",
            "service_name": "cache", "region": region, "tenant": tenant, "component": "cache", "operation": "get",
            "cache_hit": True, "attributes": {}, "events": [], "links": [], "resource_id": "r", "received_at": now,
        }
        for offset in range(120) for region in REGIONS for tenant in ("acme", "globex")
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SPAN_SCHEMA)


def body(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def settled(browser: webdriver.Chrome) -> None:
    """Wait for the last thing that a run of the page draws."""
    WebDriverWait(browser, WAIT_SECONDS).until(
        lambda b: len(b.find_elements(By.CSS_SELECTOR, f"{CHART} canvas, {CHART} svg")) >= 6
    )


def click_first_row(browser: webdriver.Chrome) -> None:
    canvas = browser.find_element(By.CSS_SELECTOR, ROW)
    x, y = 60 - canvas.size["width"] // 2, 45 - canvas.size["height"] // 2
    ActionChains(browser).move_to_element_with_offset(canvas, x, y).click().perform()


def test_the_page_shows_regions_and_keeps_its_filters_in_the_url(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    waiting = WebDriverWait(browser, WAIT_SECONDS)
    settled(browser)
    assert all(region in body(browser) for region in REGIONS)

    browser.find_element(By.XPATH, "//button[normalize-space()='15 min']").click()
    waiting.until(lambda b: "window=15m" in b.current_url)
    settled(browser)
    click_first_row(browser)
    waiting.until(lambda b: "region=" in b.current_url and "by=tenant" in b.current_url)
    waiting.until(lambda b: "Over time, by tenant" in body(b))

    browser.back()
    waiting.until(lambda b: "region=" not in b.current_url and "Over time, by region" in body(b))
    assert "window=15m" in browser.current_url
    assert "Traceback" not in body(browser)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_refresh_brings_new_figures_and_leaves_the_reader_where_he_was(
    browser: webdriver.Chrome, url: str, location: Location
) -> None:
    browser.get(url)
    settled(browser)
    assert "480 spans rolled up" in body(browser)
    main = "document.querySelector('[data-testid=stMain]')"
    browser.execute_script(f"{main}.scrollTop = 150; document.querySelectorAll('{CHART}').forEach(e => e.id = 'kept')")
    scrolled = browser.execute_script(f"return {main}.scrollTop")
    assert scrolled > 0

    store(location)
    WebDriverWait(browser, WAIT_SECONDS).until(lambda b: "960 spans rolled up" in body(b))
    settled(browser)
    assert browser.execute_script(f"return {main}.scrollTop") == scrolled
    assert len(browser.find_elements(By.CSS_SELECTOR, f"{CHART}#kept")) == 6
