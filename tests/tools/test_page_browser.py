"""The page in a real browser: translate, pick an alternative, walk the tree, switch heads, without a mouse and with
axe-core's rules of accessibility."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra `page`")
pytest.importorskip("selenium", reason="needs selenium")
pytest.importorskip("tokenizers", reason="needs tokenizers")
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_attention_verb import vocabulary, workdirs  # noqa: F401
from test_page import ODD, SENTENCE, Page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]
RULES = "['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']"


class Browser:
    def __init__(self, driver, page):
        self.driver, self.address = driver, f"http://127.0.0.1:{page.client.port}/"

    def open(self, fragment=""):
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)
        self.wait(lambda: self.all("form button"))
        return self

    def wait(self, condition, seconds=120):
        return WebDriverWait(self.driver, seconds).until(lambda _: condition())

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector, text=None):
        return next(found for found in self.all(selector) if text is None or found.text == text)

    def settled(self):
        """The status, once nothing is computed."""
        return self.wait(lambda: (text := self.one("#status").text) and not text.endswith("…") and text)

    def run(self, text):
        field = self.one("form textarea")
        field.clear()
        field.send_keys(text)
        field.send_keys(Keys.CONTROL, Keys.ENTER)
        self.wait(lambda: self.one("#status").text)
        assert self.settled().startswith("Done"), self.one("#status").text

    def press(self, key, element=None):
        """Press a key where the focus is, or in an element that need not be visible."""
        if element is not None:
            self.driver.execute_script("arguments[0].focus()", element)
        ActionChains(self.driver).send_keys(key).perform()

    def content(self, selector):
        return self.one(selector).get_attribute("textContent")

    def no_errors(self):
        assert self.driver.get_log("browser") == []

    def fits(self):
        """Nothing is wider than the page, and no field of the form lies over another one or leaves the form."""
        root = "document.documentElement"
        assert self.driver.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
        boxes = [each.rect for each in self.all("form input, form textarea, form button")]
        right = (form := self.one("form").rect)["x"] + form["width"]
        for i, one in enumerate(boxes):
            assert one["x"] + one["width"] <= right + 1
            for other in boxes[:i]:
                across = min(one["x"] + one["width"], other["x"] + other["width"]) - max(one["x"], other["x"])
                down = min(one["y"] + one["height"], other["y"] + other["height"]) - max(one["y"], other["y"])
                assert across <= 0 or down <= 0

    def accessible(self, axe):
        self.driver.execute_script(axe)
        found = self.driver.execute_async_script(
            f"const done = arguments[0]; axe.run(document, {{runOnly: {RULES}}}).then(found => done(found.violations"
            ".map(one => [one.id, one.nodes.map(node => node.html)])), error => done(String(error)))"
        )
        assert found == []


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1200"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The script of axe-core."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, to fetch axe-core")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(["npm", "pack", "axe-core@4"], cwd=folder, capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip("npm could not fetch axe-core")
    (archive,) = Path(folder).glob("*.tgz")
    with tarfile.open(archive) as opened:
        return opened.extractfile("package/axe.min.js").read().decode()


@pytest.fixture(scope="module")
def translation(trained):
    with Page(trained, n_best=2) as page:
        yield page


@pytest.fixture
def browser(driver, translation):
    browser = Browser(driver, translation).open()
    yield browser
    browser.no_errors()


def pieces(browser):
    return [button.text for button in browser.all(".text button.piece")]


def test_translate_and_pick_an_alternative(browser, translation):
    browser.run(SENTENCE)
    expected = translation.ask("translate", source=SENTENCE, search=True)
    assert browser.one(".said").text == expected["translation"]
    assert pieces(browser) == [piece["piece"] for piece in expected["search"]["outputs"][0]["pieces"]]
    assert [label.text.split(maxsplit=1)[1] for label in browser.all(".outputs label")] == [
        each["translation"] for each in expected["n_best"]
    ]
    browser.all(".outputs input")[1].send_keys(Keys.SPACE)
    assert browser.one(".said").text == expected["n_best"][1]["translation"]
    browser.all(".outputs input")[0].send_keys(Keys.SPACE)
    # By keyboard: the second piece, its first alternative that is another one.
    browser.all(".text button.piece")[1].send_keys(Keys.ENTER)
    second = expected["search"]["outputs"][0]["pieces"][1]
    choices = browser.all(".alternatives button")
    assert [choice.text for choice in choices] == [one["piece"] for one in second["alternatives"]]
    at = next(i for i, one in enumerate(second["alternatives"]) if one["text"] and one["piece"] != second["piece"])
    choices[at].send_keys(Keys.ENTER)
    prefix = (expected["search"]["outputs"][0]["pieces"][0]["text"] + second["alternatives"][at]["text"]).lstrip()
    browser.wait(lambda: browser.one("#prefix").get_attribute("value") == prefix)
    browser.settled()
    again = translation.ask("translate", source=SENTENCE, prefix=prefix)["translation"]
    browser.wait(lambda: browser.one(".said").text == again)
    assert again.startswith(prefix) and browser.one(".forced")


def test_a_link_gives_the_same_again(browser):
    browser.run(SENTENCE)
    said, link = browser.one(".said").text, browser.driver.current_url
    browser.open(link.removeprefix(browser.address))
    browser.settled()
    assert browser.one(".said").text == said and browser.one("#source").get_attribute("value") == SENTENCE


def saved(browser):
    """What `Save as JSON` writes."""
    browser.driver.execute_script(
        "URL.createObjectURL = (file) => { window.file = file; return '#'; };"
        "HTMLAnchorElement.prototype.click = () => {};"
    )
    browser.one("#save").click()
    return json.loads(browser.driver.execute_async_script("window.file.text().then(arguments[0])"))


def test_save_all_that_is_shown(browser, translation):
    """Attention too, until another output is chosen."""
    browser.run(SENTENCE)
    assert sorted(saved(browser)) == ["answer", "endpoint", "model", "request"]
    browser.one("button.do", "Show attention").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.all(".matrix"))
    browser.settled()
    expected = translation.ask("attention", source=SENTENCE, target=browser.one(".said").text, packed=True)
    assert saved(browser)["attention"] == expected
    browser.all(".outputs input")[1].send_keys(Keys.SPACE)
    assert "attention" not in saved(browser) and not browser.all(".matrix")


def test_what_was_given_stays_marked(browser):
    """Only pieces that the request had are marked, whatever is typed later. The focus is where the search went on."""
    browser.run(SENTENCE)
    browser.one("#prefix").send_keys("x" * 40)
    browser.all(".outputs input")[1].send_keys(Keys.SPACE)
    assert not browser.all(".forced") and "given" not in browser.one(".key").text
    browser.all(".text button.piece")[1].send_keys(Keys.ENTER)
    next(one for one in browser.all(".alternatives button") if one.is_enabled()).send_keys(Keys.ENTER)
    browser.wait(lambda: browser.all(".forced"))
    browser.settled()
    assert browser.driver.switch_to.active_element == browser.all(".forced")[-1]
    assert "given" in browser.one(".key").text


def test_a_field_to_be_corrected_has_the_focus(browser):
    browser.run(SENTENCE)
    browser.driver.execute_script("document.getElementById('beam_size').value = 99")
    browser.one("form button[type=submit]").click()
    browser.wait(lambda: "beam_size: must be" in browser.one("#status").text)
    field = browser.driver.switch_to.active_element
    assert (field.get_attribute("id"), field.get_attribute("aria-invalid")) == ("beam_size", "true")
    browser.driver.execute_script("arguments[0].value = 2", field)
    field.send_keys(Keys.ENTER)
    browser.wait(lambda: browser.one("#status").text.startswith("Done"))
    assert field.get_attribute("aria-invalid") is None
    (failed,) = browser.driver.get_log("browser")
    assert "400" in failed["message"]


def test_a_question_that_is_not_waited_for_is_dropped(browser):
    """The one before the last is aborted, so that its computation can end."""
    browser.driver.execute_script(
        "window.ended = []; const before = fetch; window.fetch = (...given) => "
        "(given[1].signal.onabort = () => ended.push(given[0]), before(...given))"
    )
    browser.run(SENTENCE)
    assert browser.driver.execute_script("return ended") == []
    browser.run(SENTENCE + " cat")
    assert browser.driver.execute_script("return ended") == ["api/1/translate"]


def test_pieces_can_be_seen(browser):
    """Also those without a shape; and numbers near 0."""
    found = browser.driver.execute_script(r"return ['\u200b', '\ufeff', '\u00ad', ' ', 'a'].map(page.visible)")
    assert found == ["<200b>", "<feff>", "<ad>", "␣", "a"]
    assert browser.driver.execute_script("return [1e-9, 0.004, 0.5].map(page.percent)") == [
        "<\u00a00.01\u00a0%", "0.4\u00a0%", "50\u00a0%"]  # fmt: skip


def test_walk_the_tree(browser, translation):
    """With arrow keys along the best output to its end; then go on from a hypothesis that fell out."""
    browser.run(SENTENCE)
    found = translation.ask("translate", source=SENTENCE, search=True)["search"]
    items = browser.all("[role=treeitem]")
    assert len(items) == sum(node["state"] != "considered" for node in found["nodes"])
    first = browser.one("[role=treeitem][tabindex='0']")
    browser.press(Keys.END, first)
    path = [found["nodes"][piece["node"]]["piece"] for piece in found["outputs"][0]["pieces"]]
    assert browser.content("[aria-selected=true] text") == path[-1] == "</s>"
    assert "complete, score" in browser.one("[aria-selected=true]").get_attribute("aria-description")
    for piece in reversed(path[:-1]):
        browser.press(Keys.ARROW_LEFT)
        assert browser.content("[aria-selected=true] text") == piece
    assert len(browser.all("[role=treeitem][tabindex='0']")) == 1
    browser.one("#results input[type=checkbox]").send_keys(Keys.SPACE)
    assert len(browser.all("[role=treeitem]")) == len(found["nodes"])
    browser.one("#results section details summary").send_keys(Keys.ENTER)
    browser.wait(lambda: len(browser.all("#results section table tbody tr")) == len(found["nodes"]))
    out = next(item for item in browser.all("[role=treeitem]") if "not kept" in item.get_attribute("aria-description"))
    browser.driver.execute_script("arguments[0].dispatchEvent(new MouseEvent('click'))", out)
    browser.one("button.do", "Go on from here").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.one("#prefix").get_attribute("value"))
    browser.settled()
    assert browser.one(".said").text.startswith(browser.one("#prefix").get_attribute("value").rstrip())


def test_switch_heads(browser):
    browser.run(SENTENCE)
    browser.one("button.do", "Show attention").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.all(".matrix"))
    title = browser.one("section[aria-label='One map'] h2")
    assert title.text == "Cross-attention, layer 1, mean of heads"
    browser.press(Keys.ARROW_LEFT, browser.all("input[name=map]")[2])
    browser.wait(lambda: title.text == "Cross-attention, layer 1, head 2")
    browser.one("input[name=kind][value=encoder]").send_keys(Keys.SPACE)
    browser.wait(lambda: title.text.startswith("Encoder self-attention"))
    browser.one("section[aria-label='One map'] details summary").send_keys(Keys.ENTER)
    browser.wait(lambda: browser.all("section[aria-label='One map'] table tbody tr"))


def test_texts_stay_text(browser):
    for text in ODD:
        browser.open()
        field = browser.one("form textarea")
        browser.driver.execute_script("arguments[0].value = arguments[1]", field, text)
        field.send_keys(Keys.CONTROL, Keys.ENTER)
        browser.wait(lambda: browser.one("#status").text)
        assert browser.settled()
        assert not browser.all("#results script, #results a, #results img")
    browser.open()
    browser.driver.execute_script("arguments[0].value = 'x'.repeat(100000)", browser.one("form textarea"))
    browser.one("form button[type=submit]").send_keys(Keys.ENTER)
    browser.wait(lambda: "65,536 bytes" in browser.one("#status").text)
    assert "wrong" in browser.one("#status").get_attribute("class")
    failed = browser.driver.get_log("browser")  # the browser logs each answer that is an error
    assert all("Failed to load resource" in entry["message"] for entry in failed)


@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_everything_is_accessible(browser, axe, look):
    browser.driver.set_window_size(400 if look == "narrow" else 1280, 1200)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if look == "dark" else "light"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    try:
        browser.accessible(axe)
        browser.run(SENTENCE)
        browser.all(".text button.piece")[1].click()
        browser.one("form details summary").click()
        browser.fits()
        for summary in browser.all("#results details summary"):
            summary.click()
        browser.one("button.do", "Show attention").click()
        browser.wait(lambda: browser.all(".matrix"))
        browser.settled()
        browser.accessible(axe)
        browser.fits()
    finally:
        browser.driver.set_window_size(1280, 1200)
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_lines_of_a_tree_leave_its_labels_alone(browser):
    """Also the line of a child that is far to the right of its parent."""
    park = ["NP", ["DT", "the"], ["NN", "park"]]
    verb = ["VP", ["VBD", "chased"], ["NP", ["DT", "the"], ["NN", "cat"]], ["PP", ["IN", "with"], park]]
    root = ["S", ["NP", ["DT", "the"], ["NN", "man"]], verb, [".", "."]]
    struck = browser.driver.execute_script(
        """
        const picture = constituents(arguments[0]);
        picture.style.font = "13px system-ui";
        document.body.append(picture);
        const labels = [...picture.querySelectorAll("text")].map((one) => [one.textContent, one.getBBox()]);
        const found = [];
        for (const path of picture.querySelectorAll("path"))
          for (let at = 0; at <= path.getTotalLength(); at++) {
            const { x, y } = path.getPointAtLength(at);
            for (const [label, box] of labels)
              if (x > box.x + 1 && x < box.x + box.width - 1 && y > box.y + 4 && y < box.y + box.height - 4)
                found.push(label);
          }
        picture.remove();
        return found;
        """,
        root,
    )
    assert struck == []


OTHERS = {"gpt": "#prompt=abc", "pairs": "#text=the+cat&second=a+dog", "tags": "#text=the+cat", "bert": "#text=[MASK]"}


@pytest.mark.parametrize("kind", [*OTHERS, "parser"])
def test_other_kinds(driver, workdirs, axe, kind):  # noqa: F811
    options = {"beam_size": 2} if kind == "gpt" else {}
    with Page(workdirs[kind], **options) as page:
        browser = Browser(driver, page).open(OTHERS.get(kind, "#text=the+cat+walks"))
        assert browser.settled().startswith("Done")
        if kind == "gpt":
            assert len(browser.all(".text span.piece")) == 3 and browser.all("[role=treeitem]")
            browser.all(".text button.piece")[0].send_keys(Keys.ENTER)
            choice = next(one for one in browser.all(".alternatives button") if one.is_enabled())
            choice.send_keys(Keys.ENTER)
            browser.wait(lambda: len(browser.one("#prompt").get_attribute("value")) == 4)
            browser.settled()
            browser.press(Keys.ENTER, browser.all("[role=treeitem]:not(.complete)")[0])
            browser.one("button.do", "Go on from here").send_keys(Keys.ENTER)
            browser.wait(lambda: len(browser.one("#prompt").get_attribute("value")) > 4)
            browser.settled()
        elif kind == "parser":
            assert browser.one("pre").text == page.ask("predict", text="the cat walks")["tree"]
            assert len(browser.all("svg text")) > 6
        elif kind == "pairs":
            found = page.ask("predict", text="the cat", second="a dog")
            assert browser.one(".said").text.startswith(found["label"]) and len(browser.all(".bar")) == 2
        elif kind == "tags":
            assert len(browser.all(".words li")) == 2
        else:
            assert len(browser.all("#results tbody tr")) == 5
        browser.one("button.do", "Show attention").send_keys(Keys.ENTER)
        browser.wait(lambda: browser.all(".matrix"))
        browser.accessible(axe)
        browser.no_errors()
