"""Steady traffic through the gateway: clients that repeat a refused call with its own key when they are told to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import httpx

from tests.mesh_processes import Mesh
from tests.scenarios.asking import new_key, post_car, problem

CLIENTS = 4
PAUSE_S = 0.02
# Told to come back much later, a test comes back sooner all the same.
LONGEST_RETRY_S = 1.0


@dataclass
class Traffic:
    """What the clients were told."""

    # Key to session id, of all that was acknowledged, in order.
    acknowledged: dict[str, str] = field(default_factory=dict)
    # Reasons of the refusals that said when to come back.
    refusals: list[str] = field(default_factory=list)
    # Anything that is neither.
    wrong: list[str] = field(default_factory=list)
    stopped: Event = field(default_factory=Event)

    def on(self, substation_id: str) -> list[str]:
        """Acknowledged sessions there."""
        return [s for s in list(self.acknowledged.values()) if s.startswith(f"{substation_id}.")]

    def stop(self) -> None:
        """No new cars; who has not been answered goes on until it is."""
        self.stopped.set()

    def charge_cars(self, mesh: Mesh) -> None:
        """One client."""
        with httpx.Client(base_url=mesh.url, timeout=10, trust_env=False) as http:
            while not self.stopped.wait(PAUSE_S):
                try:
                    self._charge(http, new_key())
                except (httpx.HTTPError, AssertionError, KeyError, ValueError) as error:
                    self.wrong.append(repr(error))

    def _charge(self, http: httpx.Client, key: str) -> None:
        while not self._answered(post_car(http, key), key):
            pass

    def _answered(self, reply: httpx.Response, key: str) -> bool:
        if reply.status_code in {200, 201}:
            self.acknowledged[key] = reply.json()["session"]["session_id"]
            return True
        said = problem(reply)
        if said.status != 503 or said.retry_after_s is None:
            self.wrong.append(f"{said.status} {said.reason} {said.message}")
            return True
        self.refusals.append(said.reason)
        Event().wait(min(said.retry_after_s, LONGEST_RETRY_S))
        return False


@contextmanager
def traffic(mesh: Mesh) -> Iterator[Traffic]:
    """Traffic for as long as the block lasts; after it all clients have been answered."""
    told = Traffic()
    clients = [Thread(target=told.charge_cars, args=(mesh,), daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield told
    finally:
        told.stop()
        for client in clients:
            client.join(30)
    assert not any(client.is_alive() for client in clients), "a client still waits for an answer"
