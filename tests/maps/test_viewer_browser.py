"""The page in a headless Chromium: load, click, keys, pointer, both themes, both directions, two runs, a large run."""

import time
from dataclasses import replace

import pytest
import torch

from lvlm_attn.layout.prompt import Block, ImageGrid
from lvlm_attn.maps.naming import short_name
from lvlm_attn.maps.viewer.page import page
from tests.maps.browser import chromium, opened
from tests.maps.made import hand_made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture
def shown(browser, tmp_path):
    """Opens a page of some runs; afterwards nothing may have been complained of or fetched."""

    def show(runs, **options):
        path = tmp_path / "page.html"
        path.write_text(page(runs, **options), encoding="utf-8")
        opened(browser, path)
        return browser

    yield show
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(item => item.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []


def settled(driver):
    driver.execute_async_script("const done = arguments[0]; setTimeout(done, 150)")


def said(driver, panel=0):
    settled(driver)
    return driver.find_elements("css selector", ".said")[panel].text


def click_token(driver, text, panel=0):
    tokens = driver.find_elements("css selector", ".panel")[panel].find_elements("css selector", ".token")
    next(token for token in tokens if token.text.strip() == text).click()
    settled(driver)


def press(driver, keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(keys).perform()
    settled(driver)


def point_at(driver, x, y, panel=0, click=False):
    """Moves to a place of a picture, as shares of its width and height."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = driver.find_elements("css selector", "canvas.map")[panel]
    size = canvas.size
    chain = ActionChains(driver).move_to_element_with_offset(
        canvas, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
    )
    (chain.click() if click else chain).perform()
    settled(driver)


def percent(text):
    return float(text.replace("%", "").replace("+", "").strip())


def test_tokens_layers_and_heads(shown):
    maps = hand_made(layers=3, heads=2)
    driver = shown({"bare": maps})
    assert driver.find_element("id", "title").text == "Say it:"
    click_token(driver, "hot")
    mass = float(torch.stack([w[0, :, 1, 2:14].sum(-1).mean() for w in maps.weights.values()]).mean())
    assert percent(said(driver).split("pays")[1].split("%")[0]) == pytest.approx(100 * mass, abs=0.1)
    press(driver, "\ue013")  # arrow up
    press(driver, "]")
    assert driver.find_element("id", "layer").get_attribute("value") == "1"
    assert driver.find_element("id", "head").get_attribute("value") == "1"
    mass = float(maps.weights[0][0, 0, 1, 2:14].sum())
    assert percent(said(driver).split("pays")[1].split("%")[0]) == pytest.approx(100 * mass, abs=0.1)
    press(driver, "\ue014")  # arrow right
    assert "“dog”" in said(driver)
    press(driver, "m")
    assert driver.find_element("id", "layer").get_attribute("value") == "0"


def test_a_page_opens_at_the_word_it_was_made_for(shown):
    assert "“hot”" in said(shown({"bare": hand_made()}, word="hotdog"))


def test_a_page_opens_at_the_first_word_that_says_something(shown):
    driver = shown({"bare": hand_made(words=[" The", " image", " contains", ",", " a", " dog", "."])})
    assert "“dog”" in said(driver)
    assert "“The”" in said(shown({"bare": hand_made(words=[" The", " image", "."])}))


def test_a_long_name_of_a_run_leaves_the_pictures_at_one_height(shown):
    full = "var:tau=3.5355339059327378,sink_dims=[85],layers=2..4"
    bare, other = hand_made(), hand_made(seed=1)
    other = replace(other, meta={**other.meta, "interventions": [full], "asked": "var"})
    driver = shown({short_name(maps): maps for maps in (bare, other)})
    heads = [item.text for item in driver.find_elements("css selector", ".panel h2")]
    assert heads[:2] == ["bare", "var"]
    lines = driver.find_elements("css selector", ".panel .full")
    assert [line.get_attribute("title") for line in lines] == ["", full, ""]
    tops = {round(item.rect["y"]) for item in driver.find_elements("css selector", "canvas.map")}
    assert len(tops) == 1
    assert "shaded" in driver.find_element("id", "legend").text


def test_the_value_under_the_pointer(shown):
    maps = hand_made()
    driver = shown({"bare": maps})
    click_token(driver, "hot")
    point_at(driver, 2.5 / 4, 1.5 / 3)
    status = driver.find_element("id", "status").text
    assert "row 2, column 3 of 3 x 4" in status
    weight = float(torch.stack([w[0, :, 1, 2 + 4 + 2].mean() for w in maps.weights.values()]).mean())
    assert percent(status.split("bare: ")[1]) == pytest.approx(100 * weight, rel=0.02, abs=0.2)


def test_who_attends_to_a_patch(shown):
    driver = shown({"bare": hand_made()})
    point_at(driver, 2.5 / 4, 1.5 / 3, click=True)
    assert driver.find_element("id", "direction").get_attribute("value") == "to"
    rows = hand_made().attended_by((1, 2))
    most = max(rows, key=lambda row: row.weight)
    assert f"the patch in row 2, column 3; most does “{most.text.strip()}”" in said(driver)
    titles = [token.get_attribute("title") for token in driver.find_elements("css selector", ".token.answer")]
    assert all(" pays " in title for title in titles)
    click_token(driver, "USER:")
    assert "what they pay to “USER:”" in said(driver)


def test_views(shown):
    driver = shown({"bare": hand_made()}, neutral=hand_made(seed=2)[:1])
    names = [option.get_attribute("value") for option in driver.find_elements("css selector", "#view option")]
    assert names == ["raw", "no_sinks", "relative", "contrast"]
    click_token(driver, "hot")
    maps = hand_made()
    press(driver, "vv")
    point_at(driver, 0.5 / 4, 0.5 / 3)
    wanted = 100 * float(maps.view("relative")[1].mean()[2])
    assert percent(driver.find_element("id", "status").text.split("bare: ")[1]) == pytest.approx(
        wanted, abs=0.2
    )
    press(driver, "v")
    neutral = hand_made(seed=2)[:1]
    for key, part in (
        ("", lambda one: one),
        ("]", lambda one: one.head(0)),
        ("\ue013", lambda one: one.head(0).layer(0)),
    ):
        press(driver, key) if key else None
        wanted = float(part(maps)[1].view("contrast", neutral=part(neutral)).mean()[2])
        ratio = float(driver.find_element("id", "status").text.split("bare: ")[1].rstrip("x"))
        assert ratio == pytest.approx(wanted, rel=0.05)


def test_themes_and_pictures_are_painted(shown, tmp_path):
    driver = shown({"bare": hand_made()})
    colours = []
    for theme in ("light", "dark"):
        driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
        settled(driver)
        colours.append(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
        painted = driver.execute_script(
            "const c = document.querySelector('canvas.map'); const d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; return new Set(d).size"
        )
        assert painted > 5
    assert colours[0] != colours[1]
    driver.find_element("id", "theme").click()
    assert driver.find_element("id", "theme").text in ("Dark", "Light")
    driver.find_element("id", "help").click()
    assert "token before" in driver.find_element("id", "keys").text
    assert driver.save_screenshot(str(tmp_path / "page.png"))


def test_two_runs_share_the_cursor_and_the_token(shown):
    bare, other = hand_made(), hand_made(seed=1)
    driver = shown({"bare": bare, "var": other})
    click_token(driver, "hot", panel=1)
    assert "“hot”" in said(driver, 0)
    assert "“hot” minus “hot”" in said(driver, 2)
    point_at(driver, 0.5 / 4, 0.5 / 3, panel=0)
    status = driver.find_element("id", "status").text
    values = [percent(part.split(": ")[1]) for part in status.split(" | ")[1:]]
    wanted = [100 * float(maps[1].mean()[2]) for maps in (bare, other)]
    assert values[:2] == pytest.approx(wanted, abs=0.2)
    assert values[2] == pytest.approx(wanted[1] - wanted[0], abs=0.2)


def test_several_images_and_tiles(shown):
    from lvlm_attn.maps.geometry import Frame, Level
    from lvlm_attn.maps.onto_image import MapImage

    grid = ImageGrid((Block(2, 2, "tile"), Block(2, 2, "tile"), Block(2, 2, "thumbnail")))
    maps = hand_made(grid=grid, size=(40, 20))
    frame = Frame(0, 0, 40, 20)
    levels = (Level(frame, 2, 2, ((2, 0, 0),)), Level(frame, 2, 4, ((0, 0, 0), (1, 0, 2))))
    maps = replace(maps, images=((MapImage((40, 20), levels, maps.images[0][0].picture),),))
    driver = shown({"bare": maps})
    click_token(driver, "hot")
    assert driver.find_element("id", "level-label").is_displayed()
    point_at(driver, 0.1, 0.2)
    lines = driver.find_element("id", "status").text.splitlines()
    assert lines[0].startswith("thumbnail row 1, column 1 of 2 x 2")
    assert lines[1].startswith("tiles row 1, column 1 of 2 x 4")


def test_hostile_words_stay_words(shown):
    words = [
        " <img src=x onerror=document.title='bad'>",
        " </script><script>document.title='bad'</script>",
        ".",
    ]
    driver = shown({"<b>bare</b>": hand_made(words=words)})
    tokens = [token.text for token in driver.find_elements("css selector", ".token.answer")]
    assert tokens[0].strip() == words[0].strip()
    assert driver.title == "Say it:"
    assert driver.find_elements("css selector", "main img, main b") == []


def test_a_large_run_opens_quickly_and_stays_small(browser, tmp_path):
    """32 layers x 32 heads x 576 patches x 100 tokens: below 40 MB, and painted within 3 seconds."""
    grid = ImageGrid((Block(24, 24, "base"),))
    maps = hand_made(layers=32, heads=32, grid=grid, size=(336, 336), words=[" a"] * 100)
    text = page({"bare": maps})
    assert len(text.encode()) < 40 * 10**6
    path = tmp_path / "large.html"
    path.write_text(text, encoding="utf-8")
    begun = time.perf_counter()
    opened(browser, path)
    taken = browser.execute_script(
        "return performance.timing.loadEventEnd - performance.timing.navigationStart"
    )
    assert taken < 3000
    assert time.perf_counter() - begun < 30
    press(browser, "\ue013")
    assert browser.find_element("id", "layer").get_attribute("value") == "1"
    note = browser.find_element("id", "notes").text
    assert ("heads were averaged in groups of" in note) == ('"group":1,' not in text)
