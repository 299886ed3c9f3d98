"""The report in a browser: Debian's `chromium`, from disk.

Skipped where there is none, but not in `.ci/run`.
"""

import csv
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from test_report import make_run, rows

from perdure.report import report

CHROMIUM = shutil.which("chromium")
NAMES = ["<script>alert(1)<", "مهمة-التصنيف", "🦊 fox", "タスク"]
DEMO = Path(__file__).parents[2] / "docs" / "demo"
if os.environ.get("PERDURE_BROWSER") != "required" and not CHROMIUM:
    pytest.skip("no `chromium` is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "`chromium` is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Open a page from disk; what it says to the console or asks for must be nothing."""
    said, pages = [], []

    def open(path, *, width=1200, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: said.append(request.url) if request.url != path.as_uri() else None,
        )
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open
    for page in pages:
        page.close()
    assert [text for text in said if not text.startswith(("data:image/png", "blob:"))] == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The report of three runs with every kind of figure,
    and with names that nobody should give.
    """
    place, rng, runs = tmp_path_factory.mktemp("compared"), np.random.default_rng(0), []
    for number, title in enumerate(["<script>alert(2)</script>", "مقارنة 🦊", "a plain name"]):
        events = [
            {"event": "step", "task": task, "step": step, "loss": 1 / step}
            for task in NAMES
            for step in (1, 2)
        ]
        events += [{"event": "task", "task": task, "seconds": 3.0, "trained": 70} for task in NAMES]
        scores = []
        for way in ("given", "posterior", "none"):
            matrix = np.where(
                np.tril(np.ones((4, 4))), rng.uniform(0.3, 0.9, (4, 4)), None
            ).tolist()
            scores += rows(matrix, NAMES, task_id=way, rule="ties")
        combined = {
            "label": "ties",
            "options": {"scale": 0.5},
            "candidates": {"0.5": 0.8, "1.0": 0.6},
        }
        recipe = {"name": title, "method": {"name": f"method {number}"}}
        runs.append(
            make_run(
                place / str(number), scores, NAMES, recipe=recipe, combined=combined, events=events
            )
        )
    summary = report(runs, place / "report.html")
    return place / "report.html", summary


def unfold(page):
    page.locator("details.figures-block").evaluate_all("all => all.forEach(one => one.open = true)")


def test_every_figure_is_there(compared, opened):
    page = opened(compared[0])
    unfold(page)
    captions = page.locator("figcaption").all_inner_texts()
    ways = ("task posterior", "not known", "task given")
    for way in ways:
        assert {
            f"Mean score on the tasks seen · {way}",
            f"Stability and plasticity · {way}",
        } <= set(captions)
        for title in ("<script>alert(2)</script>", "مقارنة 🦊", "a plain name"):
            assert f"{title} · ties · {way}" in captions
        assert f"Each task · {way}" in captions
    assert {
        "Forgetting, points",
        "Search of λ",
        "Training loss",
        "Time, parameters and bytes",
    } <= set(captions)
    for figure in page.locator("figure").all():
        box = figure.locator("svg").bounding_box()
        assert box and box["width"] > 100 and box["height"] > 60
        assert figure.locator("table tbody tr").count() > 0
    text = page.locator("body").inner_text()
    assert all(name in text for name in ["<script>alert(2)</script>", "مقارنة 🦊"])
    assert all(name in page.locator("figure svg text").all_text_contents() for name in NAMES)


def test_tables_are_sorted_by_a_click(compared, opened):
    page = opened(compared[0])
    table = page.get_by_role("region", name="Results").locator("table")

    def column(place):
        return table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()

    before, head = column(4), table.locator("thead th").nth(3)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(4) == sorted(before, key=float) != before
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending" and column(4) == sorted(
        before, key=float, reverse=True
    )
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None and column(4) == before  # as it was
    table.locator("thead th").nth(2).get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None and column(3) == sorted(column(3))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(compared, opened, scheme):
    page = opened(compared[0], scheme=scheme)

    def brightness(element="body", style="backgroundColor"):
        page.wait_for_timeout(50)
        colour = page.locator(element).last.evaluate(f"e => getComputedStyle(e).{style}")
        return sum(int(part) for part in colour.strip("rgba()").split(",")[:3]) / 3

    dark = scheme == "dark"
    assert (brightness() < 60) == dark and (brightness("figure svg text", "fill") > 180) == dark
    page.get_by_role("button", name="light and dark").click()
    assert (brightness() < 60) != dark and (brightness("figure svg text", "fill") > 180) != dark
    page.emulate_media(media="print")
    assert brightness() > 250 and not page.locator("nav").is_visible()  # paper is white
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.get_by_text("Versions and hardware").first.is_visible()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_anybody_can_use_it(compared, opened, scheme, width):
    """An audit by axe-core."""
    page = opened(compared[0], scheme=scheme, width=width)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    found = Axe().run(page).response["violations"]
    assert {
        one["id"]: one["nodes"][0]["html"]
        for one in found
        if one["impact"] in ("serious", "critical")
    } == {}


def test_nothing_overflows_on_a_telephone(compared, opened):
    page = opened(compared[0], width=390)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = """() => [...document.querySelectorAll("body *")].filter(one =>
        one.getBoundingClientRect().right > 391 && !one.closest(".scroll, .image")
        ).map(one => one.outerHTML)"""
    assert page.evaluate(wide) == []


def test_the_scores_are_seen_at_once_on_a_telephone(compared, opened):
    page = opened(compared[0], width=390)
    table = page.get_by_role("region", name="Results")
    assert table.evaluate("one => one.scrollWidth <= one.clientWidth")
    row = table.locator("tbody tr").first
    assert row.locator("td:visible").count() == 4  # the metrics
    assert row.locator("th").inner_text().split("\n") == [
        "<script>alert(2)</script>",
        "ties · task given",
    ]
    assert table.locator("thead th:visible").all_inner_texts()[1:] == ["AA", "AIA", "BWT", "F"]


def test_the_results_are_never_cut(tmp_path, opened):
    scores = []
    for number in range(12):
        scores += rows([[0.5]], "a", rule=f"rule {number}")
    many = [make_run(tmp_path / str(number), scores, "a") for number in range(4)]
    report(many, tmp_path / "report.html")
    table = opened(tmp_path / "report.html").get_by_role("region", name="Results")
    assert table.locator("tbody tr").count() == 48
    assert table.evaluate("one => one.scrollHeight <= one.clientHeight")


def test_downloads(compared, opened):
    path, summary = compared
    page = opened(path)
    unfold(page)
    figure = page.locator("figure").filter(has_text="a plain name · ties · task given").first
    with page.expect_download() as download:
        figure.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "a-plain-name-ties-task-given.csv"
    header, *lines = csv.reader(
        io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))
    )
    assert header == ["after learning", *NAMES] and [line[0] for line in lines] == NAMES
    found = [[float(cell) if cell else None for cell in line[1:]] for line in lines]
    (result,) = (one for one in summary["runs"][2]["results"] if one["task_id"] == "given")
    assert np.allclose(
        np.array(found, float), np.array(result["matrix"], float), atol=1e-6, equal_nan=True
    )
    with page.expect_download() as download:
        figure.get_by_role("button", name="SVG").click()
    image = Path(download.value.path()).read_text(encoding="utf-8")
    assert image.startswith("<svg xmlns=") and "مهمة-التصنيف" in image


def test_three_hundred_tasks_open(tmp_path, opened):
    names = [f"task-{i}" for i in range(300)]
    matrix = np.where(np.tril(np.ones((300, 300))), 0.5, None).tolist()
    report([make_run(tmp_path / "run", rows(matrix, names), tasks=names)], tmp_path / "report.html")
    page = opened(tmp_path / "report.html", width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("figure svg image").first.bounding_box()
    assert box and box["width"] > 250 and box["height"] > 250


def test_diagnostics_on_a_telephone(tmp_path, opened):
    report([DEMO / "pic"], tmp_path / "report.html")
    page = opened(tmp_path / "report.html", width=390, scheme="dark")
    titles = page.locator("h2").all_inner_texts()
    assert {
        "Interference of task vectors",
        "How far the features moved (CKA)",
        "The task posterior",
    } <= set(titles)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    found = Axe().run(page).response["violations"]
    assert {
        one["id"]: one["nodes"][0]["html"]
        for one in found
        if one["impact"] in ("serious", "critical")
    } == {}


def test_the_picture_of_the_readme(opened, tmp_path):
    """Of the runs of `perdure demo`, without their weights;
    PERDURE_PICTURE says where to keep it.
    """
    report([DEMO / "sequential", DEMO / "pic"], tmp_path / "report.html")
    page = opened(tmp_path / "report.html", width=1080)
    path = Path(os.environ.get("PERDURE_PICTURE") or tmp_path / "report.png")
    page.set_viewport_size({"width": 1080, "height": 1440})
    page.screenshot(path=path)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 40_000
