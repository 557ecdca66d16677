"""`gridmesh doctor`: asks the gateway everything that says how the mesh is."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import click
from rich.table import Table
from rich.text import Text

from fleet import doctor
from fleet.cli import EXIT_OK, EXIT_REFUSED, EXIT_UNREACHABLE, Asked, command
from fleet.clock import utc_now
from fleet.doctor import Finding, Level
from fleet.gateway import Gateway, GatewayError, Refusal
from fleet.screen import console

PORT_WITHIN_S = 1.0
PAGE_SIZE = 1000
# What would keep a mesh from starting on this machine; empty when nothing would.
CannotStart = Callable[[], str]

_STYLES = {Level.OK: "green", Level.WRONG: "bold red", Level.NOTE: "dim"}


def make(cannot_start: CannotStart | None = None) -> click.Command:
    """The command; without `cannot_start` where no mesh can be started."""

    @command("doctor", "gridmesh doctor", "gridmesh doctor --json | jq '.findings[] | select(.level == \"wrong\")'")
    async def examine(asked: Asked) -> int:
        """Say what is wrong and what to do about it, one line each."""
        findings, code = await _examine(asked.gateway, cannot_start)
        if asked.json:
            found = [
                {"level": each.level, "subject": each.subject, "finding": each.words, "remedy": each.remedy}
                for each in findings
            ]
            asked.show({"ok": code == EXIT_OK, "findings": found})
        else:
            _print(findings)
        return code

    return examine


def _print(findings: list[Finding]) -> None:
    out, width = console(), max(len(each.subject) for each in findings)
    lines = Table.grid(padding=(0, 2, 0, 0))
    for each in findings:
        words = f"{each.words}; {each.remedy}" if each.remedy else each.words
        lines.add_row(Text(each.level, _STYLES[each.level]), each.subject, words)
        if not out.is_terminal:  # one line for each, however long
            print(f"{each.level:<5}  {each.subject:<{width}}  {words}")
    if out.is_terminal:
        out.print(lines)


async def _examine(gateway: Gateway, cannot_start: CannotStart | None) -> tuple[list[Finding], int]:
    asked_at = utc_now()
    try:
        health = await gateway.send("GET", "/healthz")
        gateway.read(health)
    except GatewayError as error:
        return [await _no_gateway(gateway.url, error, cannot_start), doctor.CERTIFICATES], EXIT_UNREACHABLE
    answered_at = utc_now()
    took = (answered_at - asked_at) / 2
    findings = [
        Finding(Level.OK, "gateway", f"{gateway.url} answers in {took.total_seconds() * 2000:.0f} ms"),
        doctor.clocks(asked_at + took, health.headers.get("date", "")),
        *await _mesh(gateway),
        doctor.CERTIFICATES,
    ]
    return findings, EXIT_REFUSED if any(each.level is Level.WRONG for each in findings) else EXIT_OK


async def _mesh(gateway: Gateway) -> list[Finding]:
    try:
        findings = [doctor.readiness(None, await gateway.call("GET", "/readyz"))]
    except Refusal as refusal:
        findings = [doctor.readiness(refusal.problem, {})]
    with suppress(Refusal):  # readiness has said that nobody can be asked
        listed = (await gateway.call("GET", "/v1/substations"))["substations"]
        silent = [each["address"] for each in listed if each.get("state") != "FRESH"]
        ports = await _ports(gateway.url, silent)
        findings += doctor.examine(listed, ports)
        findings.append(doctor.sessions(await _unreachable(gateway)))
    return findings


async def _unreachable(gateway: Gateway) -> set[str]:
    """Substations whose sessions no page shows: who is missing is said by the page where it would be."""
    missing: set[str] = set()
    query: dict[str, Any] = {"page_size": PAGE_SIZE}
    while True:
        page = await gateway.call("GET", "/v1/charges", query=query)
        missing.update(page.get("unreachable_substation_ids", ()))
        if "next_page_token" not in page:
            return missing
        query["page_token"] = page["next_page_token"]


async def _no_gateway(url: str, error: GatewayError, cannot_start: CannotStart | None) -> Finding:
    parts = urlsplit(url)
    local = _is_local(parts.hostname)
    port_open = await _is_open(parts.hostname or "", parts.port or 80)
    cannot = cannot_start() if cannot_start and local and not port_open else None
    return doctor.unreachable(str(error), port_open, cannot, local=local)


async def _ports(url: str, addresses: list[str]) -> dict[str, bool]:
    """Which are open, of those on this machine: where both gateway and substation are, the balancer may well be too."""
    if not _is_local(urlsplit(url).hostname):
        return {}
    tried = {}
    for address in addresses:
        host, _, port = address.rpartition(":")
        if _is_local(host) and port.isdecimal():
            tried[address] = await _is_open(host, int(port))
    return tried


def _is_local(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


async def _is_open(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(PORT_WITHIN_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
