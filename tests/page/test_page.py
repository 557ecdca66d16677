"""The live page in a real browser, on a real mesh: what somebody does with it, and sees."""

import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from tests.mesh_processes import Mesh
from tests.page.browser import PHONE, WIDE, Scheme, browser, need_chromium, opened

need_chromium()

# What the page is late by is its own affair; how long a part of the mesh takes is not. Milliseconds.
SOON, WITHIN_2_S = 15_000, 2_000
# 1280 by 900 at 200 %.
ZOOMED = (640, 450)
MOST_TABS = 150
COUNT_WHAT_IS_SAID = """
    window.said = [];
    const hear = (changes) => said.push(...changes.map((each) => each.target.textContent));
    for (const live of document.querySelectorAll("[aria-live], [role=status], [role=alert], output"))
      new MutationObserver(hear).observe(live, { childList: true, characterData: true, subtree: true });
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


def card(page: Page, substation: str) -> Locator:
    return page.get_by_role("article", name=substation, exact=True)


def charge(page: Page, vehicle: str, kwh: str, where: str) -> Locator:
    """By the form. The row of its session."""
    page.get_by_label("Car", exact=True).fill(vehicle)
    page.get_by_label("Energy, kWh").fill(kwh)
    page.get_by_label("Where").select_option(where)
    page.get_by_role("button", name="Charge", exact=True).click()
    expect(page.locator("#charged")).to_contain_text(f"{vehicle} charges at {where}", timeout=SOON)
    return card(page, where).get_by_role("listitem").filter(has_text=vehicle)


def nothing_is_in_the_way(page: Page) -> None:
    """No finding of axe above minor, and nothing wider than the screen."""
    assert page.viewport_size is not None
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    found = Axe().run(page).response["violations"]
    said = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found if each["impact"] != "minor"]
    assert not said


def confirm(page: Page, button: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=button).click()
    expect(page.get_by_role("dialog")).to_be_hidden(timeout=SOON)


def reach(page: Page, goal: Locator) -> None:
    """By the Tab key, from wherever the focus is."""
    for _ in range(MOST_TABS):
        if goal.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"the Tab key does not lead to {goal}")


def press(page: Page, button: Locator) -> None:
    reach(page, button)
    page.keyboard.press("Enter")


def write(page: Page, field: Locator, text: str) -> None:
    """Over what is there; in a list of choices it chooses."""
    reach(page, field)
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    expect(field).to_have_value(text)


def accessible(page: Page) -> list[dict[str, Any]]:
    """The tree that Chromium gives to assistive technology."""
    nodes: list[dict[str, Any]] = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return nodes


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")])
def test_a_car_is_charged_by_the_form_is_seen_to_progress_and_ends(
    mesh: Mesh, chromium: Browser, size: tuple[int, int], scheme: Scheme
) -> None:
    with opened(chromium, mesh.url, size, scheme) as page:
        expect(page.get_by_role("article")).to_have_count(3, timeout=SOON)
        expect(page.locator("#stream")).to_have_text("live")
        vehicle = f"EV-{scheme}"
        row = charge(page, vehicle, "1", "b")
        expect(page.locator("#news")).to_contain_text(re.compile(rf"{vehicle} → bb: \d+ % after, 1 eligible"))
        bar = row.get_by_role("progressbar")
        expect(bar).to_be_visible(timeout=SOON)
        expect(row).to_contain_text(re.compile(r"0\.[2-9] of 1 kWh"), timeout=SOON)
        assert 0 < bar.evaluate("bar => bar.value") <= 1
        nothing_is_in_the_way(page)
        expect(row).to_contain_text("has its energy · 1.0 of 1 kWh", timeout=SOON)
        expect(page.locator("#news")).to_contain_text(f"{vehicle} has its energy")


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "dark"), (PHONE, "light")])
def test_an_operator_cuts_a_limit_after_being_asked_and_sees_who_gets_less(
    mesh: Mesh, chromium: Browser, size: tuple[int, int], scheme: Scheme
) -> None:
    with opened(chromium, mesh.url, size, scheme) as page:
        row = charge(page, f"EV-{scheme}", "50", "a")
        expect(row).to_contain_text("charging", timeout=SOON)
        card(page, "a").get_by_role("button", name="Limit a").press("Enter")
        page.get_by_label("Limit, kW").fill("6")
        nothing_is_in_the_way(page)
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert all(
            each["report"]["limit_power_kw"] == 100 for each in mesh.http.get("/v1/substations").json()["substations"]
        )
        card(page, "a").get_by_role("button", name="Limit a").click()
        page.get_by_label("Limit, kW").fill("6")
        page.get_by_role("button", name="Set limit").click()
        expect(row).to_contain_text("cut by system operator", timeout=WITHIN_2_S)
        expect(card(page, "a").locator(".note")).to_contain_text("by system operator, rated 100 kW")
        nothing_is_in_the_way(page)
        gauge = card(page, "a").get_by_role("meter", name="Power drawn at a")
        expect(gauge).to_have_attribute("aria-valuetext", re.compile("of a limit of 6 kW"))
        expect(page.locator("#news")).to_contain_text("a: limit 100 kW → 6 kW")
        card(page, "a").get_by_role("button", name="Clear limit").click()
        confirm(page, "Clear limit")
        expect(page.locator("#news")).to_contain_text("a: limit 6 kW → 100 kW", timeout=SOON)
        row.get_by_role("button", name="Stop").click()
        confirm(page, "Stop charging")
        expect(row).to_contain_text("stopped", timeout=SOON)


def test_a_substation_is_drained_and_undrained_and_a_refusal_says_why(mesh: Mesh, chromium: Browser) -> None:
    with opened(chromium, mesh.url) as page:
        card(page, "b").get_by_role("button", name="Drain b").click()
        confirm(page, "Drain")
        expect(card(page, "b").locator(".note")).to_have_text("draining: takes no new cars", timeout=SOON)
        reply = mesh.http.post(
            "/v1/charges", json={"vehicle_id": "no", "max_power_kw": 11, "allowed_substation_ids": ["b"]}
        )
        assert reply.status_code == 503
        expect(page.locator("#news")).to_contain_text("no refused", timeout=SOON)
        expect(page.locator("#news")).to_contain_text(reply.json()["reason"])
        card(page, "b").get_by_role("button", name="Undrain b").click()
        confirm(page, "Undrain")
        expect(card(page, "b").get_by_role("button", name="Drain b", exact=True)).to_be_visible(timeout=SOON)


def test_by_keyboard_alone_at_twice_the_size_a_car_is_charged_and_stopped_and_a_substation_cut_and_drained(
    mesh: Mesh, chromium: Browser
) -> None:
    with opened(chromium, mesh.url, ZOOMED) as page:
        page.emulate_media(reduced_motion="reduce")
        expect(page.get_by_role("article")).to_have_count(3, timeout=SOON)
        write(page, page.get_by_label("Car", exact=True), "EV-keys")
        write(page, page.get_by_label("Energy, kWh"), "50")
        write(page, page.get_by_label("Where"), "b")
        press(page, page.get_by_role("button", name="Charge", exact=True))
        expect(page.locator("#charged")).to_contain_text("EV-keys charges at b", timeout=SOON)
        row = card(page, "b").get_by_role("listitem").filter(has_text="EV-keys")
        press(page, card(page, "b").get_by_role("link", name="Skip the sessions at b"))
        expect(card(page, "b").locator(".more")).to_be_focused()
        press(page, row.get_by_role("button", name="Stop EV-keys"))
        press(page, page.get_by_role("dialog").get_by_role("button", name="Stop charging"))
        expect(row).to_contain_text("stopped", timeout=SOON)
        cut = card(page, "b").get_by_role("button", name="Limit b")
        press(page, cut)
        expect(page.get_by_label("Limit, kW")).to_be_focused()
        write(page, page.get_by_label("Limit, kW"), "30")
        page.keyboard.press("Enter")
        expect(page.locator("#news")).to_contain_text("b: limit 100 kW → 30 kW", timeout=SOON)
        expect(cut).to_be_focused()
        press(page, card(page, "b").get_by_role("button", name="Clear limit of b"))
        press(page, page.get_by_role("dialog").get_by_role("button", name="Clear limit"))
        expect(page.locator("#news")).to_contain_text("b: limit 30 kW → 100 kW", timeout=SOON)
        for verb, then in (("Drain", "Undrain"), ("Undrain", "Drain")):
            press(page, card(page, "b").get_by_role("button", name=f"{verb} b", exact=True))
            press(page, page.get_by_role("dialog").get_by_role("button", name=verb, exact=True))
            expect(card(page, "b").get_by_role("button", name=f"{then} b", exact=True)).to_be_focused(timeout=SOON)
        nothing_is_in_the_way(page)
        still = "getComputedStyle(document.querySelector('.gauge path')).transitionDuration"
        assert page.evaluate(still) == "0s"


def test_a_screen_reader_is_told_what_is_what_and_not_every_second(mesh: Mesh, chromium: Browser) -> None:
    with opened(chromium, mesh.url) as page:
        rows = [charge(page, f"EV-read-{where}", "2", where) for where in "ab"]
        page.evaluate(COUNT_WHAT_IS_SAID)
        for row in rows:
            expect(row).to_contain_text(re.compile(r"0\.[5-9] of 2 kWh"), timeout=SOON)
        assert page.evaluate("said") == []
        tree = [each for each in accessible(page) if not each["ignored"]]
        named = [each["name"]["value"] for each in tree if each["role"]["value"] == "button"]
        assert sorted(named) == sorted(set(named)), "buttons that sound alike"
        assert {"Stop EV-read-a", "Limit a", "Drain a"} <= set(named)
        meters = {each["name"]["value"]: each for each in tree if each["role"]["value"] == "meter"}
        assert sorted(meters) == [f"Power drawn at {where}" for where in "abc"]
        assert 0 < meters["Power drawn at a"]["value"]["value"] <= 100


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "dark"), (PHONE, "light")])
def test_a_dead_substation_is_shown_as_silent_and_not_as_idle(
    mesh: Mesh, chromium: Browser, size: tuple[int, int], scheme: Scheme
) -> None:
    try:
        with opened(chromium, mesh.url, size, scheme) as page:
            expect(page.locator("#stream")).to_have_text("live", timeout=SOON)
            expect(charge(page, f"EV-silent-{scheme}", "9", "c")).to_contain_text("charging", timeout=SOON)
            mesh.kill9("c")
            expect(card(page, "c")).to_contain_text(re.compile(r"silent for \d+ s"), timeout=SOON)
            expect(page.locator("#news")).to_contain_text("c is silent")
            expect(page.locator("#total-note")).to_contain_text("without c: silent")
            expect(page.get_by_role("status").filter(has_text="Substation c is silent")).to_have_count(1)
            nothing_is_in_the_way(page)
            mesh.restart("c")
            expect(page.locator("#news")).to_contain_text("c reports again", timeout=SOON)
            expect(page.locator("#news")).to_contain_text("c was started again")
    finally:
        if not mesh.alive("c"):
            mesh.restart("c")


def test_a_lost_stream_is_shown_and_found_again(mesh: Mesh, chromium: Browser, without: Callable[[str], None]) -> None:
    with opened(chromium, mesh.url, may_say=("Failed to load resource", "net::ERR")) as page:
        expect(page.locator("#stream")).to_have_text("live", timeout=SOON)
        without("gateway")
        expect(page.locator("#stream")).to_have_text("connection lost", timeout=SOON)
        expect(page.locator("#banner")).to_contain_text("The stream is lost, trying again")
        nothing_is_in_the_way(page)
        mesh.restart("gateway")
        expect(page.locator("#stream")).to_have_text("live", timeout=SOON)
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.get_by_role("status").filter(has_text="The stream is back.")).to_have_count(1)


def test_data_that_is_old_is_shown_as_old_while_the_connection_stands(
    mesh: Mesh, chromium: Browser, paused: Callable[[str], None]
) -> None:
    with opened(chromium, mesh.url, may_say=("Failed to load resource",)) as page:
        expect(page.locator("#stream")).to_have_text("live", timeout=SOON)
        paused("balancer")
        expect(page.locator("#banner")).to_contain_text(re.compile(r"What you see is \d+ s old"), timeout=SOON)


@pytest.fixture
def paused(mesh: Mesh) -> Iterator[Callable[[str], None]]:
    """Stops a part where it stands; it goes on at the end."""
    stopped: list[str] = []

    def stop(name: str) -> None:
        stopped.append(name)
        mesh.signal(name, signal.SIGSTOP)

    yield stop
    for name in stopped:
        mesh.signal(name, signal.SIGCONT)
        mesh.wait_ready(name)


@pytest.fixture
def without(mesh: Mesh) -> Iterator[Callable[[str], None]]:
    """Kills a part; it is there again at the end."""
    killed: list[str] = []

    def kill(name: str) -> None:
        killed.append(name)
        mesh.kill9(name)

    yield kill
    for name in killed:
        if not mesh.alive(name):
            mesh.restart(name)
