"""The page in headless Chromium, opened from disk."""

import shutil

import pytest

from tests.reports import builders as b

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not both installed"),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--window-size=1400,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(chromium, report):
    chromium.get((report / f"{b.SUITE}.html").as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return performance.getEntriesByType('resource').length") == 0


def column(driver, table, index):
    rows = driver.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr")
    cells = [row.find_elements(By.TAG_NAME, "td")[index] for row in rows]
    return [cell.get_attribute("data-sort") for cell in cells]


def heading(driver, table, title):
    heads = driver.find_elements(By.CSS_SELECTOR, f"#{table} th")
    return next((i, head) for i, head in enumerate(heads) if head.text.strip(" \u2191\u2193") == title)


def test_sorting_by_a_click(opened):
    index, head = heading(opened, "t-group-0", "peak MiB")
    button = head.find_element(By.TAG_NAME, "button")
    button.click()
    up = column(opened, "t-group-0", index)
    filled = [float(value) for value in up if value is not None]
    assert len(filled) > 3
    assert filled == sorted(filled)
    assert up[-1] is None, "absent values come last"
    assert head.get_attribute("aria-sort") == "ascending"
    button.click()
    down = column(opened, "t-group-0", index)
    assert [float(value) for value in down if value is not None] == sorted(filled, reverse=True)
    assert down[-1] is None


def shown(driver):
    return [row for row in driver.find_elements(By.CSS_SELECTOR, "#comparison tbody tr") if row.is_displayed()]


def test_filtering(opened):
    every = len(shown(opened))
    Select(opened.find_element(By.CSS_SELECTOR, "[data-facet=t]")).select_by_visible_text("4")
    at_four = len(shown(opened))
    assert 0 < at_four < every
    opened.find_element(By.ID, "find").send_keys("sltt")
    assert len(shown(opened)) == 2
    assert all("sltt" in row.text for row in shown(opened))
    assert opened.find_element(By.ID, "shown").text == "2 rows in 1 tables"


def test_themes(opened):
    def paper():
        return opened.execute_script("return getComputedStyle(document.body).backgroundColor")

    def ink():
        return opened.execute_script("return getComputedStyle(document.querySelector('figure svg text')).fill")

    button = opened.find_element(By.ID, "theme")
    looks = {}
    for _ in range(3):
        button.click()
        looks[button.get_attribute("data-choice")] = paper(), ink()
    assert set(looks) == {"auto", "light", "dark"}
    assert looks["light"][0] != looks["dark"][0]
    assert looks["light"][1] != looks["dark"][1], "figures follow the theme"


def test_system_theme_is_followed(opened):
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    dark = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert dark != opened.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_series_can_be_switched(opened):
    key = opened.find_element(By.CSS_SELECTOR, "#over-t button.key")
    group = opened.find_element(By.CSS_SELECTOR, f"#over-t svg .s{key.get_attribute('data-series')}")
    assert group.is_displayed()
    key.click()
    assert not group.is_displayed()


def test_wide_tables_scroll_in_their_box(opened):
    for width in (1400, 420):
        opened.set_window_size(width, 900)
        wide, room = opened.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
        assert wide <= room


def test_a_number_leads_to_its_record(opened, report):
    link = opened.find_element(By.CSS_SELECTOR, "#t-group-0 td.n a").get_attribute("href")
    opened.get(link)
    assert '"schema_version"' in opened.page_source


def test_index(chromium, report):
    chromium.get((report / "index.html").as_uri())
    chromium.find_element(By.CSS_SELECTOR, "tbody a").click()
    assert chromium.current_url.endswith(f"{b.SUITE}.html")
    assert chromium.get_log("browser") == []
