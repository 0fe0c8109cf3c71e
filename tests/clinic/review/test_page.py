"""The worklist in a real browser."""

from __future__ import annotations

import json

import pytest
from equipoise_clinic.audit import verify

from ...support.review_page import SCORES, png

pytestmark = pytest.mark.slow


def enter(tab, started) -> None:
    tab.goto(started.url)
    tab.get_by_label("Your token").fill(started.token)
    tab.keyboard.press("Enter")
    tab.get_by_text("Signed in as dr.who").wait_for()
    tab.wait_for_load_state("load")


def listed(tab) -> list[str]:
    return [each.get_attribute("data-case") for each in tab.locator("article").all()]


def verdicts(started) -> list[dict]:
    assert not list(verify(started.desk.audit))
    lines = [json.loads(line) for line in started.desk.audit.read_text().splitlines()]
    return [line["body"] for line in lines if line["kind"] == "verdict"]


def test_the_most_uncertain_case_is_first_and_says_what_it_is(tab, started):
    enter(tab, started)
    assert listed(tab) == sorted(SCORES, key=SCORES.get, reverse=True)
    first = tab.locator("article").first
    text = first.inner_text()
    for shown in ("review", "0.700", "reason <b>1</b>", "1.50 mL (1.20 to 1.80 mL)", "ffffffffffff", "held until"):
        assert shown in text
    study = started.desk.store.studies.get(started.desk.store.cases.get("b" * 16).study).uid
    assert first.get_by_text("Open in viewer").get_attribute("href").endswith(f"StudyInstanceUIDs={study}")
    assert "slices are missing" in tab.locator("table").inner_text()
    assert tab.problems == []


def test_the_picture_is_shown(tab, started):
    enter(tab, started)
    image = tab.locator("article img").first
    assert image.evaluate("each => each.complete && each.naturalWidth") > 600
    assert image.get_attribute("alt")
    shown = tab.request.get(f"{started.url}pictures/{'b' * 16}.png")
    assert png(shown.body()).size[0] == image.evaluate("each => each.naturalWidth")


def test_a_verdict_by_mouse(tab, started):
    enter(tab, started)
    tab.locator("article").first.get_by_role("button", name="Accept").click()
    tab.get_by_role("status").get_by_text("Accepted.").wait_for()
    tab.wait_for_load_state("load")
    assert listed(tab) == ["c" * 16, "a" * 16]
    (verdict,) = verdicts(started)
    assert (verdict["by"], verdict["verdict"], verdict["case"]) == ("dr.who", "accept", "b" * 16)
    assert started.desk.store.cases.get("b" * 16).state == "delivering"


@pytest.mark.parametrize(("name", "verdict"), [("Reject", "reject"), ("Needs correction", "correct")])
def test_a_verdict_by_keyboard(tab, started, name, verdict):
    enter(tab, started)
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.innerText") == name:
            break
    focused = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "solid", "what has the focus must be seen"
    tab.keyboard.press("Enter")
    tab.get_by_role("status").wait_for()
    assert [(each["case"], each["verdict"]) for each in verdicts(started)] == [("b" * 16, verdict)]
    assert started.desk.store.cases.get("b" * 16).state == "withheld"


def test_a_form_of_another_site_is_refused(tab, started, tmp_path):
    """A signed-in reviewer is lured to a page that sends the form, token and all."""
    enter(tab, started)
    fields = {
        each.get_attribute("name"): each.get_attribute("value")
        for each in tab.locator("article").first.locator("input").all()
    }
    inputs = "".join(f'<input name="{name}" value="{value}">' for name, value in fields.items())
    evil = tmp_path / "evil.html"
    evil.write_text(
        f'<form method="post" action="{started.url}cases/{"b" * 16}/verdict">{inputs}'
        '<button name="verdict" value="accept">win a prize</button></form>'
    )
    tab.goto(evil.as_uri())
    with tab.expect_response("**/verdict") as answer:
        tab.get_by_role("button").click()
    assert answer.value.status == 403
    assert verdicts(started) == []


def contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast ratio of two CSS colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read(tab, started):
    """Every piece of text reaches 4.5 : 1 on what is behind it (WCAG AA)."""
    enter(tab, started)
    colours = tab.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(
                n => n.nodeType === 3 && n.textContent.trim())).map(e => {
            let back = e;
            while (back && getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement;
            const ground = getComputedStyle(back || document.documentElement).backgroundColor;
            return [e.innerText, getComputedStyle(e).color, ground];
        })"""
    )
    assert len(colours) > 30
    assert [each for each in colours if contrast(each[1], each[2]) < 4.5] == []
