"""The page to label on, driven by keys and clicks in a real browser; skipped where there is none."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deeppatch.data.label_file import SKIPPED, read_labels, table_to_bytes
from deeppatch.report.contact_sheet import Tile
from deeppatch.report.labelling_page import Task, labelling_page

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Chromium and its driver"),
]
ENTER, ESCAPE, LEFT, RIGHT, DOWN, BACKSPACE, CONTROL, TAB = (
    "\ue007", "\ue00c", "\ue012", "\ue014", "\ue015", "\ue003", "\ue009", "\ue004"
)  # fmt: skip
CLASSES = ("cat", "dog", "catfish")
HOSTILE_FILES = ["</script><img src=x onerror=alert(1)>.png", 'quo"tea, comma.png', "zwei\nzeilen.png", "=1+1.png",
                 "__proto__", "zo\u00eb \U0001f408.png", "a\rb.png", "(skipped)"]  # fmt: skip
HOSTILE_CLASSES = ("</script><b>", 'a "cat", or', "__proto__", "=SUM(1)", "\u017dlu\u0165", "two\nlines", "(skipped)",
                   "constructor")  # fmt: skip


def table_of(files, labels=None) -> pd.DataFrame:
    count = len(files)
    reasons = [f"centre of {number} similar images, uncertain together" for number in range(count)]
    clusters = [str(number % 3) for number in range(count)]
    uncertain = [number / 7 for number in range(count)]
    columns = {"file": files, "reason": reasons, "cluster": clusters, "uncertainty": uncertain}
    return pd.DataFrame({**columns, "label": labels or [""] * count})


class Browser:
    """A browser with a page of ours, and what a person does and sees there."""

    def __init__(self, folder) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
                         "hide-scrollbars", "disable-background-networking"):  # fmt: skip
            options.add_argument(f"--{argument}")
        options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(30)
        self.folder, self.pages = folder, 0

    def open(self, files, classes=CLASSES, *, size=8, guesses=None, pool="") -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (5, size, size, 3), dtype=np.uint8)
        images = [Image.fromarray(each) for each in pixels]
        table = table_of(files)
        tiles = (Tile(images[place % 5], name, [reason, "uncertainty 0.50"])
                 for place, (name, reason) in enumerate(zip(table["file"], table["reason"], strict=True)))  # fmt: skip
        guesses = guesses or [[(0, 0.75), (1, 0.25)]] * len(files)
        task = Task("3 images.", table, classes, f"{self.folder}{pool}", "python src/relearn.py --labels selection.csv")
        self.pages += 1
        path = self.folder / f"page{self.pages}.html"
        path.write_bytes(labelling_page(task, tiles, guesses))
        self.driver.get(path.as_uri())
        self.look(1280, 800)

    def look(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def run(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def text(self, name: str) -> str:
        return self.run("return document.getElementById(arguments[0]).textContent", name)

    def click(self, name: str) -> None:
        self.driver.find_element("id", name).click()

    @property
    def labels(self) -> list:
        return self.run("return state.labels")

    @property
    def at(self) -> int:
        return self.run("return state.at")

    def downloaded(self) -> bytes:
        path = self.folder / "downloads" / "selection.csv"
        path.unlink(missing_ok=True)
        self.click("download")
        end = time.monotonic() + 10
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.02)
        return path.read_bytes()

    def load(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        before = self.text("notice")
        self.run("tell('')")
        self.driver.find_element("id", "file").send_keys(str(path))
        end = time.monotonic() + 10
        while not (said := self.text("notice")) and time.monotonic() < end:
            time.sleep(0.02)
        assert said, before
        return said

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("labelling"))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(started):
    yield started
    assert started.complaints() == [], "nothing is refused, missing or wrong"
    started.run("localStorage.clear()")


def names(count: int) -> list[str]:
    return [f"day{number % 2}/{number:03}.png" for number in range(count)]


def test_keys_label_skip_undo_and_move(browser):
    browser.open(names(5))
    assert browser.text("count") == "0 of 5 labelled, 5 to go"
    assert browser.text("reason") == "centre of 0 similar images, uncertain together"
    browser.press("2")
    assert (browser.labels, browser.at) == ([1, None, None, None, None], 1)
    assert browser.text("place") == "Image 2 of 5"
    browser.press("-", "1")
    assert browser.labels == [1, SKIPPED, 0, None, None]
    assert browser.text("count") == "2 of 5 labelled, 1 skipped, 2 to go"
    assert browser.run("return byId('bar').getAttribute('aria-valuenow')") == "3"
    browser.press(BACKSPACE)
    assert (browser.labels[2], browser.at) == (None, 2)
    webdriver.ActionChains(browser.driver).key_down(CONTROL).send_keys("z").key_up(CONTROL).perform()
    assert (browser.labels[1], browser.at) == (None, 1)
    browser.press("9")
    assert browser.text("notice") == "No class has the key 9."
    browser.press(LEFT)
    assert browser.at == 0
    assert browser.run("return buttons.map(b => b.getAttribute('aria-pressed'))") == ["false", "true", "false"]
    browser.press("3")
    assert (browser.labels[0], browser.at) == (2, 1), "a label can be changed"
    browser.press(RIGHT, RIGHT, "1")
    assert (browser.labels, browser.at) == ([2, None, None, 0, None], 4)
    browser.press("1")
    assert browser.at == 1, "going round to what is left"
    browser.press(*[BACKSPACE] * 9)
    assert browser.labels == [None] * 5
    assert browser.text("notice") == "There is nothing to undo."


def test_a_digit_that_is_the_name_of_a_class_is_its_key(browser):
    browser.open(names(4), ("0", "1", "12", "7"))
    browser.press("1", "0", "7", "2")
    assert browser.labels == [1, 0, 3, 2]


def test_the_tenth_class_has_the_key_0(browser):
    browser.open(names(3), tuple("abcdefghijk"))
    browser.press("0", "9")
    assert browser.labels == [9, 8, None]


def test_one_of_100_classes_is_found_by_typing_and_digits_are_text_meanwhile(browser):
    classes = tuple(f"{kind} {number}" for kind in ("Café", "owl", "barn owl", "9-spotted") for number in range(25))
    browser.open(names(6), classes)
    browser.press("cafe 2")
    shown = "return [...byId('classes').children].filter(b => !b.hidden).map(b => b.lastChild.textContent)"
    assert browser.run(shown)[:3] == ["Café 2", "Café 20", "Café 21"]
    browser.press(ENTER)
    assert browser.labels[0] == 2
    browser.press("owl 11", DOWN, ENTER)
    assert classes[browser.labels[1]] == "barn owl 11", "those that begin with it come first"
    browser.press("/", "9-spotted 24", ENTER)
    assert classes[browser.labels[2]] == "9-spotted 24"
    browser.press("zebra", ENTER)
    assert browser.text("notice") == "No class has \u201czebra\u201d in its name."
    assert browser.labels[3] is None
    browser.press(ESCAPE, "3")
    assert browser.labels[3] == 2
    browser.press("o", BACKSPACE, "4")
    assert browser.labels[4] == 3, "an empty search ends, it does not undo"
    assert len(browser.run(shown)) == 100


def test_the_network_s_guess_is_hidden_until_asked_for_and_again_for_the_next_image(browser):
    browser.open(names(2), guesses=[[(2, 0.9), (0, 0.1)], [(1, 1.0)]])
    assert "%" not in browser.run("return document.body.innerText")
    browser.press("?")
    assert browser.run("return [...byId('guesses').children].map(li => li.textContent)") == [
        "catfish, 90 %",
        "cat, 10 %",
    ]
    assert browser.run("return byId('guess').getAttribute('aria-expanded')") == "true"
    browser.press("1")
    assert "%" not in browser.run("return document.body.innerText")
    browser.press("?", "?")
    assert "%" not in browser.run("return document.body.innerText")


def test_labels_outlive_the_page_in_this_browser_and_selections_do_not_mix(browser):
    browser.open(names(3))
    browser.press("1", "-")
    browser.driver.refresh()
    assert (browser.labels, browser.at) == ([0, SKIPPED, None], 2)
    assert browser.text("notice") == "Your labels are as you left them in this browser."
    browser.open(names(3), pool="another")
    assert browser.labels == [None] * 3
    browser.open(names(3))
    assert browser.labels == [0, SKIPPED, None], "the same selection, written again"
    first = browser.driver.current_window_handle
    url = browser.driver.current_url
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(url)
    browser.press("3")
    browser.driver.close()
    browser.driver.switch_to.window(first)
    end = time.monotonic() + 10  # a message between windows takes its time
    while browser.labels != [0, SKIPPED, 2] and time.monotonic() < end:
        time.sleep(0.05)
    assert browser.labels == [0, SKIPPED, 2], "two windows with one page agree"


@pytest.mark.parametrize("kept", ["{", "null", '{"labels": [0, 1, 99], "at": 0}', '{"labels": [0], "at": 0}'])
def test_what_the_browser_keeps_is_not_trusted(browser, kept):
    browser.open(names(3))
    browser.run("localStorage.setItem(KEPT, arguments[0])", kept)
    browser.driver.refresh()
    assert browser.labels == [None] * 3
    browser.press("1")
    assert browser.labels[0] == 0


def test_the_download_is_the_table_with_the_labels_to_the_byte_whatever_names_hold(browser):
    browser.open(HOSTILE_FILES, HOSTILE_CLASSES)
    assert browser.run("return document.querySelectorAll('b').length") == 1, "no name became HTML"
    given = [*HOSTILE_CLASSES[:6], "", "((skipped))"]
    browser.press(*"123456", RIGHT, "-")
    content = browser.downloaded()
    assert content == table_to_bytes(table_of(HOSTILE_FILES, given))
    assert browser.text("finish-text").startswith("1 images have no label yet.")
    browser.press("7")
    assert browser.text("finish-text").startswith("All images are done.")
    labels = read_labels(browser.downloaded(), "x.csv", HOSTILE_FILES, HOSTILE_CLASSES)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, SKIPPED]
    shown = browser.run("return [...strip.querySelectorAll('button')].map(b => b.getAttribute('aria-label'))")
    assert shown[2:4] == ["Image 3: __proto__", "Image 4: =SUM(1)"]


def test_a_half_filled_table_is_taken_back_and_can_be_undone(browser):
    browser.open(HOSTILE_FILES, HOSTILE_CLASSES)
    browser.press(*"123", "-")
    content = browser.downloaded()
    browser.run("localStorage.clear()")
    browser.driver.refresh()
    assert browser.load("half.csv", content) == "half.csv: 4 images with a label or skipped."
    assert (browser.labels, browser.at) == ([0, 1, 2, SKIPPED] + [None] * 4, 4)
    assert browser.downloaded() == content
    browser.press("5")
    spreadsheet = content.decode("utf-8-sig").replace(",__proto__", ",'=sum(1)".upper()).encode("utf-16")
    assert browser.load("other.csv", spreadsheet) == (
        "other.csv: 4 images with a label or skipped; 1 replace what was here."
    )
    assert browser.labels == [0, 1, 3, SKIPPED, 4] + [None] * 3, "an empty cell takes nothing away"
    browser.press(BACKSPACE, BACKSPACE)
    assert browser.labels == [0, 1, 2, SKIPPED] + [None] * 4
    dropped = "const d = new DataTransfer(); d.items.add(new File([arguments[0]], 'dropped.csv')); " \
              "dispatchEvent(new DragEvent('drop', {dataTransfer: d, cancelable: true}))"  # fmt: skip
    browser.run(dropped, 'file;label\n"zo\u00eb \U0001f408.png";constructor\n')
    end = time.monotonic() + 10
    while browser.labels[5] is None and time.monotonic() < end:
        time.sleep(0.02)
    assert browser.labels[5] == 7


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\ny.png,cat\nx.png,dog\n", "t.csv belongs to another selection: none of its 2 images is on this "
         "page, such as y.png. Nothing was read."),
        ("file,label\nday0/000.png,bird\n", "t.csv calls day0/000.png \u201cbird\u201d, which is no class here. "
         "Nothing was read."),
        ("file,label\nday0/000.png,cat\nday0/000.png,dog\n", "t.csv has day0/000.png more than once, with other "
         "labels. Nothing was read."),
        ("name,label\na,cat\n", "t.csv has no columns file and label. Nothing was read."),
        ("file,label,Label\na,cat,\n", "t.csv has 2 columns label; keep the one that counts."),
        ("", "t.csv has no columns file and label. Nothing was read."),
        ("PK\x03\x04", "t.csv is a workbook of a spreadsheet; save it as CSV UTF-8."),
    ],
)  # fmt: skip
def test_another_table_is_refused_in_one_line(browser, content, said):
    browser.open(names(3))
    browser.press("2")
    assert browser.load("t.csv", content.encode()) == said
    assert browser.labels == [1, None, None]


def test_labels_for_another_selection_count_where_images_were_chosen_again(browser):
    browser.open(names(3))
    content = "file,label\nday0/000.png,dog\nx.png,bird\nday0/000.png,dog\n"
    said = browser.load("t.csv", content.encode())
    assert said == "t.csv: 1 images with a label or skipped; 1 of its images are not on this page."
    assert browser.labels == [1, None, None]


def test_what_is_left_can_be_skipped_at_once(browser):
    browser.open(names(4))
    browser.press("2")
    browser.downloaded()
    assert browser.text("skip-rest") == "Skip the 3 that are left"
    browser.click("skip-rest")
    assert browser.labels == [1] + [SKIPPED] * 3
    assert browser.text("command") == "python src/relearn.py --labels selection.csv"
    browser.press(BACKSPACE)
    assert browser.labels == [1, None, None, None]


def test_everything_can_be_reached_and_done_by_the_tab_key(browser):
    browser.open(names(40))
    seen = []
    for _ in range(14):
        browser.press(TAB)
        focused = (
            "const e = document.activeElement; "
            "return [e.id || e.textContent || 'current', getComputedStyle(e).outlineStyle]"
        )
        seen.append(browser.run(focused))
    assert [name for name, _ in seen[:11]] == [
        "download", "load", "keys", "next", "skip", "query", "1cat", "2dog", "3catfish", "guess", "current"
    ]  # fmt: skip
    assert all(style == "solid" for _, style in seen[:11])
    browser.run("buttons[1].focus()")
    browser.press(ENTER, ENTER)
    assert browser.labels[:3] == [1, 1, None], "the focus stays on the class"
    browser.click("keys")
    browser.press("1")
    assert browser.labels[2] is None, "no key labels behind the list of keys"
    browser.press(ESCAPE, "1")
    assert browser.labels[2] == 0
    browser.click("keys")
    browser.press(ENTER)
    assert browser.run("return byId('help').open") is False


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (400, True), (320, True)])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits(browser, width, phone, dark):
    browser.open(names(30), tuple("x" * 90 + str(number) for number in range(40)))
    browser.look(width, 800, dark=dark, phone=phone)
    browser.run("finish(); toggleGuesses(); tell('y'.repeat(300))")
    assert browser.run("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert browser.run("return byId('frame').firstChild.getBoundingClientRect().width") > 180
    beyond = "return [...document.querySelectorAll('header *, main *, #notice')].filter(e => " \
             "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"  # fmt: skip
    assert browser.run(beyond) == []
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") is dark


def test_350_images_of_224_pixels_stay_fluid(browser):
    browser.open(names(350), size=224)
    timed = """
      const done = arguments[0], times = [];
      (async () => {
        for (let step = 0; step < 30; step++) {
          const start = performance.now();
          dispatchEvent(new KeyboardEvent('keydown', {key: step % 5 ? '1' : 'ArrowRight'}));
          await byId('frame').firstChild.decode();
          await new Promise(requestAnimationFrame);
          times.push(performance.now() - start);
        }
        done(times);
      })();"""
    times = browser.driver.execute_async_script(timed)
    assert np.median(times) < 100, times
    assert browser.run("return strip.querySelectorAll('img').length") < 60, "thumbnails beyond the window are not made"
    assert browser.run("return document.images.length") < 60
    assert (
        browser.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )
    browser.run("strip.scrollLeft = 1e6")
    browser.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert browser.run("return thumbnails.has(349) && !thumbnails.has(100)")


def test_on_paper_every_image_stands_with_its_label(browser):
    browser.open(names(7))
    browser.press("1", "-")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    shown = browser.run("return [...document.querySelectorAll('#sheet figcaption b')].map(b => b.textContent)")
    assert shown == ["cat", "skipped"] + ["________"] * 5
    assert browser.run("return document.querySelectorAll('#sheet img').length") == 7
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert len(browser.driver.print_page()) > 1_000


def test_a_page_without_images_says_so(browser):
    browser.open([])
    assert browser.text("notice") == "There is no image to label."
    browser.press("1", "-", BACKSPACE, LEFT, RIGHT, "?", "c", ENTER)
    assert browser.labels == []
