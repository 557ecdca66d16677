"""`python -m tests.page`: the pictures of the live page that the README shows, from a mesh at work."""

import tempfile
from pathlib import Path

from playwright.sync_api import Page

from tests.mesh_processes import ROOT, Mesh
from tests.page.browser import PHONE, WIDE, Scheme, browser, opened

# What the chart shows of the past when the picture is taken.
SHOWN_S = 75
CARS, AGAIN_S, CUT_AT = 24, 5, 44


def main() -> None:
    """Writes docs/page-*.png."""
    with Mesh(Path(tempfile.mkdtemp())) as mesh, browser() as chromium:
        mesh.start()
        scheme: Scheme
        for name, size, scheme in (("light", WIDE, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")):
            with opened(chromium, mesh.url, size, scheme) as page:
                _play(mesh, page)
                _save(page, name)


def _play(mesh: Mesh, page: Page) -> None:
    """An hour of charging: cars come, and then a limit is cut."""
    mesh.http.delete("/v1/substations/a/limits/so")
    for at in range(SHOWN_S):
        _go_on(mesh, at)
        page.wait_for_timeout(1000)


def _go_on(mesh: Mesh, at: int) -> None:
    """One second: a car each at first, fewer later."""
    if at < CARS or at % AGAIN_S == 0:
        car = {
            "vehicle_id": f"EV-{1000 + 37 * at}",
            "energy_kwh": 5 + 7 * at % 12,
            "max_power_kw": (11, 22, 7.4)[at % 3],
        }
        mesh.http.post("/v1/charges", json=car)
    if at == CUT_AT:
        mesh.http.put("/v1/substations/a/limits/so", json={"limit_kw": 40})


def _save(page: Page, name: str) -> None:
    path = ROOT / "docs" / f"page-{name}.png"
    path.parent.mkdir(exist_ok=True)
    page.screenshot(path=path, animations="disabled")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
