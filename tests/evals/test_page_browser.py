"""The report's page in a browser: filters hide cards and count them, nothing is fetched, nothing fails."""

import pytest
from PIL import Image

from lvlm_attn.evals.page import page
from lvlm_attn.evals.reporting import report
from tests.evals.runs import pope_lines, settings, write_run
from tests.maps.browser import chromium, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")


@pytest.fixture
def written(tmp_path):
    first = [i % 5 != 0 for i in range(40)]
    second = [i % 5 != 0 or i % 2 == 0 for i in range(40)]
    third = [i % 4 != 1 for i in range(40)]
    runs = [
        write_run(tmp_path / name, pope_lines(answers, 8), settings(interventions=[name]))
        for name, answers in (("bare", first), ("better", second), ("mixed", third))
    ]
    path = tmp_path / "report.html"
    path.write_text(page(report(runs), lambda run, line: Image.new("RGB", (60, 40), "red")), encoding="utf-8")
    return path


def shown(driver):
    cards = driver.find_elements("css selector", "article")
    return [card for card in cards if card.is_displayed()]


def test_filters(written, tmp_path):
    from selenium.webdriver.support.ui import Select

    with chromium(tmp_path) as driver:
        driver.get(written.as_uri())
        everything = shown(driver)
        assert len(everything) > 8
        run, change = (
            Select(driver.find_element("css selector", f"[data-filter={name}]")) for name in ("run", "change")
        )
        run.select_by_value("better")
        assert {card.get_attribute("data-run") for card in shown(driver)} == {"better"}
        assert {card.get_attribute("data-change") for card in shown(driver)} == {"better"}
        change.select_by_visible_text("worse")
        assert shown(driver) == []
        run.select_by_value("")
        assert {card.get_attribute("data-run") for card in shown(driver)} == {"mixed"}
        change.select_by_visible_text("all")
        driver.find_element("css selector", "[data-filter=text]").send_keys("THING13")
        assert ["thing13" in card.text for card in shown(driver)] == [True]
        counted = driver.find_element("css selector", ".filters output").text
        assert counted == f"1 of {len(everything)} shown"
        pictures = driver.find_elements("css selector", "article img")
        assert all(picture.get_property("naturalWidth") > 0 for picture in pictures)
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
