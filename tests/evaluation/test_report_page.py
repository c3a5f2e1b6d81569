"""The page of a report in a browser: what it shows, its keys, its safety, its speed."""

import random
import re
import shutil
import time
from pathlib import Path

import pytest

from rankdistillm.data.runs import Run
from rankdistillm.evaluation.metrics import evaluate_run
from rankdistillm.evaluation.report_page import Exchange, ReportedRuns, RunOrigin, report_page
from rankdistillm.evaluation.significance import compare

METRICS = ["ndcg@10", "mrr@10-l2"]
MINUS = "\u2212"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>--></style>\"'&amp;"


@pytest.fixture(scope="module")
def browser():
    """Chromium: one that is installed, or Playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    with playwright.sync_playwright() as running:
        own = running.chromium.executable_path
        found = next(filter(None, map(shutil.which, names)), own)
        if not Path(found).exists():
            pytest.skip(f"no browser: {', '.join(names)} or that of `playwright install chromium`")
        started = running.chromium.launch(executable_path=found)
        yield started
        started.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a page; at the end, nothing was logged, no dialog opened, nothing else loaded."""
    contexts, faults, loaded = [], [], []

    def open_page(html, viewport=DESKTOP, fragment="", **options):
        file = tmp_path / "report.html"
        file.write_text(html, "utf-8")
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(file.as_uri() + fragment)
        page.wait_for_selector("html[data-ready]")
        return page

    open_page.faults = faults
    yield open_page
    for context in contexts:
        context.close()
    assert not faults
    own = (tmp_path / "report.html").as_uri()
    assert {url.partition("#")[0] for url in loaded} == {own}


def page_of(
    scores, qrels, queries=None, docs=None, *, origins=None, baseline=None, title="t", notes=()
):
    runs = {name: Run.from_scores(lists, source=name) for name, lists in scores.items()}
    measured = {name: evaluate_run(run, qrels, METRICS) for name, run in runs.items()}
    baselines = [baseline or next(iter(runs))]
    tests = compare(measured, baselines) if len(qrels) > 1 else None
    compared = ReportedRuns(runs, qrels, METRICS, measured, tests, baselines)
    query_ids = list(dict.fromkeys(query_id for run in runs.values() for query_id in run))
    return report_page(
        compared, query_ids, queries or {}, docs or {}, origins=origins or {}, title=title,
        notes=notes,
    )  # fmt: skip


DOC_IDS = [f"d{i}" for i in range(30)]
QRELS = {f"q{i}": {"d3": 2, "d7": 1, "d9": 0} for i in range(12)}
QUERIES = {f"q{i}": f"question number {i}" for i in range(11)}
QUERIES |= {"q7": "why do owls hoot", "q11": "ما هو المد والجزر"}
TEXTS = {d: f"passage {d} speaks of " + "tides and bread " * 30 for d in DOC_IDS}
TEXTS |= {"d5": "潮汐は月に従う", "d7": "Owls fly. " * 20}
del TEXTS["d9"]


def ranked(query, relevant_rank):
    """30 passages; d3 is at this rank (from 1), d7 behind it."""
    others = [d for d in DOC_IDS if d not in ("d3", "d7")]
    order = [*others[: relevant_rank - 1], "d3", "d7", *others[relevant_rank - 1 :]]
    return {d: 30.0 - i for i, d in enumerate(order)}


@pytest.fixture(scope="module")
def example():
    rng = random.Random(1)
    ranks = {name: [rng.randint(1, 12) for _ in QUERIES] for name in ("bm25", "teacher", "student")}
    scores = {
        name: {q: ranked(q, rank) for q, rank in zip(QUERIES, of, strict=True)}
        for name, of in ranks.items()
    }
    scores["bm25"]["unjudged"] = {"d1": 1.0}
    asked, replied = DOC_IDS[:5], [DOC_IDS[3], *DOC_IDS[:3], DOC_IDS[4]]
    windows = {"q2": [Exchange(asked, replied, ["wrong_format"]), Exchange(asked, asked, [])]}
    origins = {"teacher": RunOrigin([("model", "m/7b"), ("cost", "0.1")], windows)}
    return page_of(
        scores, QRELS, QUERIES, TEXTS, origins=origins, title="Example", notes=["a note"]
    )


def listed(page):
    """The ids of the listed queries."""
    return [link[1:] for link in page.eval_on_selector_all(
        ".queries a", "links => links.map(a => a.getAttribute('href'))"
    )]  # fmt: skip


def gains(page):
    texts = page.locator(".queries a .number:nth-of-type(4)").all_text_contents()
    return [float(text.replace(MINUS, "-")) for text in texts]


def test_the_summary_and_a_query(example, visit):
    page = visit(example)
    assert page.title() == "Example"
    assert page.locator(".means tbody tr").count() == 3
    assert "judged queries: 12" in page.text_content(".notes")
    assert "a note" in page.text_content(".notes")
    assert "m/7b" in page.text_content(".origins")
    title = page.text_content("#gains-title")
    expected = rf"student over bm25: [+{MINUS}]0\.\d{{3}} ndcg@10 over 12 queries, p = .*"
    assert re.fullmatch(expected, title)
    found = gains(page)
    assert len(found) == 12
    assert found == sorted(found, reverse=True)
    assert page.locator(".queries a").last.text_content().endswith("not judged")
    page.click(".queries a >> nth=2")
    assert page.locator("#query-text").text_content() in QUERIES.values()
    assert page.locator(".column").count() == 3
    assert page.locator(".column >> nth=1 >> .row").count() == 30
    rows = page.locator('.row[data-doc="{}"]'.format(number_of(page, "d3")))
    assert rows.count() == 3
    assert set(rows.locator(".grade").all_text_contents()) == {"2"}
    assert "text not found" in page.locator(".row", has_text="d9").first.text_content()


def number_of(page, doc_id):
    return page.evaluate("id => data.docs.indexOf(id)", doc_id)


def test_lines_join_the_same_passage(example, visit):
    page = visit(example, fragment="#q1")
    page.wait_for_selector(".lines path")
    assert page.locator(".lines").count() == 2
    assert page.locator(".lines >> nth=0 >> path").count() == 30
    number = number_of(page, "d3")
    line = f'.lines path[data-doc="{number}"]'
    first = page.locator(line).first.bounding_box()
    left, middle = (
        page.locator(f'.row[data-doc="{number}"]').nth(i).bounding_box() for i in (0, 1)
    )
    for row, x in ((left, first["x"] - left["width"]), (middle, first["x"] + first["width"])):
        assert row["x"] == pytest.approx(x, abs=6)  # with the line's width
    ends = sorted((left["y"], middle["y"]))
    assert ends[0] <= first["y"] <= ends[0] + left["height"]
    assert ends[1] <= first["y"] + first["height"] <= ends[1] + left["height"]
    page.locator(f'.row[data-doc="{number}"]').nth(1).hover()
    assert page.locator(".row.hot").count() == 3
    assert page.locator(".lines path.hot").count() == 2
    page.mouse.move(5, 5)
    assert page.locator(".hot").count() == 0
    height = "e => e.getBoundingClientRect().height"
    high = page.locator(".lines").first.evaluate(height)
    page.keyboard.press("t")  # rows without their texts are lower, and so are the lines
    page.wait_for_timeout(100)
    low = page.locator(".lines").first.evaluate(height)
    assert low == pytest.approx(page.locator(".column").first.evaluate(height), abs=1)
    assert low < 0.7 * high
    page.locator(f'.row[data-doc="{number}"] button').nth(2).focus()
    assert page.locator(".row.hot").count() == 3


def test_a_passage_opens_and_closes(example, visit):
    page = visit(example, fragment="#q1")
    row = page.locator(".row", has_text="passage d0").first
    short = row.bounding_box()["height"]
    row.locator("button").press("Enter")
    assert row.locator("button").get_attribute("aria-expanded") == "true"
    assert row.bounding_box()["height"] > 1.5 * short
    row.click()
    assert row.bounding_box()["height"] == pytest.approx(short)
    page.keyboard.press("t")
    assert row.bounding_box()["height"] < 0.7 * short


def test_sorting_metric_and_pair(example, visit):
    page = visit(example)
    page.select_option("#sort", "loss")
    assert gains(page) == sorted(gains(page))
    page.select_option("#sort", "id")
    assert listed(page) == [*(f"q{i}" for i in range(12)), "unjudged"]
    page.select_option("#sort", "best")
    values = page.locator(".queries a .number:nth-of-type(3)").all_text_contents()
    assert values == sorted(values, reverse=True)
    before = page.text_content("#gains-title")
    page.select_option("#metric", "1")
    page.select_option("#run", "1")
    after = page.text_content("#gains-title")
    assert after.startswith("teacher over bm25:")
    assert "mrr@10" in after
    assert before != after
    page.select_option("#base", "2")
    assert page.text_content("#gains-title").endswith("over 12 queries")  # this pair is not tested
    assert page.locator(".queries .head .number").all_text_contents() == [
        "student", "teacher", "gain",
    ]  # fmt: skip


def test_passages_are_relevant_from_the_level_of_the_metric_on(example, visit):
    page = visit(example)
    for metric, number, level in (("0", 2, 1), ("1", 1, 2)):
        page.select_option("#metric", metric)
        page.click(".queries a >> nth=0")
        about = page.locator(".column header p").first.text_content()
        assert about.endswith(f"{number} of {number} relevant")
        assert f"judged grade; relevant: {level} or more" in page.text_content("#legend")
        page.keyboard.press("Escape")


def test_the_bars_open_their_query(example, visit):
    page = visit(example)
    best = listed(page)[0]
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 20)
    assert page.text_content("#pointed").endswith(f"({best})")
    page.mouse.click(box["x"] + 3, box["y"] + 20)
    page.wait_for_selector("#query:not([hidden])")
    assert page.url.endswith(f"#{best}")
    assert page.text_content("#query-text") == QUERIES[best]


def test_search_finds_queries_ids_and_passages(example, visit):
    page = visit(example)
    page.keyboard.press("/")
    page.keyboard.type("HOOT owls")
    page.wait_for_selector("#found:not(:empty)")
    assert listed(page) == ["q7"]
    assert page.locator(".queries mark").all_text_contents() == ["owls", "hoot"]
    for words, number in (("潮汐", 12), ("d29", 12), ("owls nothing", 0), ("والجزر", 1)):
        page.fill("#search", words)
        page.wait_for_selector(f"#found >> text=/^{number} quer/")
        assert len(listed(page)) == number, words
    page.keyboard.press("Escape")
    assert page.input_value("#search") == ""
    assert len(listed(page)) == 13


def test_keys_go_through_the_queries(example, visit):
    page = visit(example)
    order = listed(page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("#query:not([hidden])")
    assert page.url.endswith(f"#{order[1]}")
    for key, at in (("j", 2), ("ArrowRight", 3), ("k", 2), ("ArrowLeft", 1), ("k", 0), ("k", 0)):
        page.keyboard.press(key)
        page.wait_for_timeout(30)
        assert page.url.endswith(f"#{order[at]}"), key
    assert page.locator("#previous").is_disabled()
    assert page.text_content("#place") == "1 of 13, by largest gain"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()
    assert page.locator("#query").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector("#summary:not([hidden])")
    assert page.evaluate("document.activeElement.getAttribute('href')") == f"#{order[0]}"


def test_a_link_leads_to_its_query_and_a_wrong_one_says_so(example, visit):
    page = visit(example, fragment="#q4")
    assert page.text_content("#query-text") == QUERIES["q4"]
    page.evaluate("location.hash = '#none'")
    page.wait_for_selector("#failure:not([hidden])")
    assert page.text_content("#failure") == "There is no query none on this page."
    assert page.locator("#summary").is_visible()


def test_windows_of_a_teacher(example, visit):
    page = visit(example, fragment="#q2")
    summary = page.locator("#windows summary")
    assert summary.text_content() == "teacher was asked about 2 windows; 1 answer repaired"
    summary.click()
    assert page.locator(".window").count() == 2
    first = page.locator(".window").first
    assert first.locator("h3").first.text_content() == "1 of 2; repaired: wrong format"
    assert first.locator(".column >> nth=1 >> .id").all_text_contents() == [
        "d3", "d0", "d1", "d2", "d4",
    ]  # fmt: skip
    assert first.locator(".column >> nth=1 >> .move").first.text_content() == "▲3"


def test_light_dark_and_print(example, visit):
    background = "getComputedStyle(document.documentElement).backgroundColor"
    dark = visit(example, color_scheme="dark")
    page = visit(example, color_scheme="light")
    assert dark.get_attribute("#theme", "aria-checked") == "true"
    assert page.get_attribute("#theme", "aria-checked") == "false"
    light = page.evaluate(background)
    assert dark.evaluate(background) != light
    page.click("#theme")
    assert page.evaluate(background) == dark.evaluate(background)
    assert page.get_attribute("#theme", "aria-checked") == "true"
    page.click(".queries a >> nth=0")
    page.emulate_media(media="print")
    assert page.locator("button:visible:not(.row button), select:visible").count() == 0
    assert page.locator("#query-text").is_visible()
    assert page.locator(".row:visible").count() == 90
    assert page.locator("#summary").is_hidden()


@pytest.mark.parametrize("fragment", ["", "#q11"])
def test_a_phone_has_no_horizontal_overflow(example, visit, fragment):
    page = visit(example, PHONE, fragment)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    if fragment:
        assert page.locator("#query-text").evaluate("e => getComputedStyle(e).direction") == "rtl"
        assert page.locator(".column:visible").count() == 1
        page.click("#tabs button >> nth=2")
        assert page.locator(".column:visible h2").text_content() == "student"


def test_many_runs_scroll_within_the_page(visit):
    names = [f"run with a long name {i}" for i in range(7)]
    html = page_of({n: {"q0": ranked("q0", i + 1)} for i, n in enumerate(names)}, {"q0": {"d3": 1}})
    for viewport in (DESKTOP, PHONE):
        page = visit(html, viewport, "#q0")
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


def test_no_text_id_or_name_becomes_markup(visit):
    ids = [f"{EVIL}{i}" for i in range(3)]
    scores = {
        name: {query: {doc: float(i) for i, doc in enumerate(ids[:: 1 - 2 * n])} for query in ids}
        for n, name in enumerate((EVIL, f"second{EVIL}"))
    }
    qrels = {query: {ids[0]: 1, ids[1]: 0} for query in ids}
    texts = {i: f"{i}\u2028</title><svg onload=alert(3)>" for i in ids}
    exchange = Exchange(ids, ids, [EVIL])
    origins = {EVIL: RunOrigin([(EVIL, EVIL)], {query: [exchange] for query in ids})}
    html = page_of(scores, qrels, texts, texts, origins=origins, title=EVIL, notes=[EVIL])
    for page in (visit(html), visit(html, fragment="#%3C%2Fscript%3E")):
        page.fill("#search", "<script>alert")
        page.wait_for_selector("mark")
    page.fill("#search", "")
    for query in page.query_selector_all(".queries a"):
        assert query.query_selector_all("script, img, style, svg:not(.trend)") == []
    page.evaluate("id => { location.hash = encodeURIComponent(id) }", ids[1])
    page.wait_for_selector("#query:not([hidden])")
    page.click("#windows summary")
    assert page.text_content("#query-text") == texts[ids[1]]
    assert page.locator(".row .id").first.text_content() in ids
    assert page.locator("h3", has_text="repaired").text_content() == f"1 of 1; repaired: {EVIL}"
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, link, object, svg[onload]").count() == 0
    assert page.locator("style").count() == 1


def test_the_policy_forbids_everything_else(example, visit):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', example)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", example)
    page = visit(example)
    assert page.evaluate(
        "() => new Promise(done => { document.addEventListener('securitypolicyviolation', "
        "event => done(event.effectiveDirective)); fetch('https://example.org').catch(() => 0) })"
    ).startswith("connect-src")
    assert "violates" in visit.faults.pop(0)
    visit.faults.clear()


@pytest.mark.slow
def test_a_large_page_opens_in_two_seconds(visit):
    """200 queries, 100 passages, 3 runs; texts as long as those of MS MARCO."""
    rng = random.Random(1)
    letters = "etaoinshrdlucmfwyp"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (i + 5) for i in range(len(words))]  # as in language, few words are frequent
    docs, scores = {}, {"bm25": {}, "teacher": {}, "student": {}}
    for q in range(200):
        ids = [str(1_000_000 + 100 * q + i) for i in range(100)]
        texts = rng.choices(words, weights, k=100 * 55)
        docs |= {d: " ".join(texts[55 * i : 55 * i + 55]) for i, d in enumerate(ids)}
        for lists in scores.values():
            lists[f"q{q}"] = {d: rng.uniform(-9, 9) for d in ids}
    assert 330 < sum(map(len, docs.values())) / len(docs) < 390
    qrels = {q: dict.fromkeys(list(listed)[:20], 1) for q, listed in scores["bm25"].items()}
    html = page_of(scores, qrels, {q: f"query {q}" for q in qrels}, docs)
    assert len(html) < 10e6
    visit("<html data-ready>")  # the browser has started
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        page = visit(html)
        seconds.append(time.perf_counter() - started)
        page.click(".queries a >> nth=0")
        page.wait_for_selector(".row >> nth=299")
    assert min(seconds) < 2, seconds
