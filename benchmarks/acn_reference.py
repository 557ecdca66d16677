"""acnportal's own schedulers on the same visits: its simulator, network and batteries, five-minute steps.

One phase at 208 V, plugs of 32 A from 0 up as at the real site, one limit on the sum of currents. Which plug a car
takes makes no difference; as few as possible are set up, because acnportal's time grows with them.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from acnportal import acnsim, algorithms

from benchmarks.sim.traces import Visit

VOLTAGE = 208
PLUG_A = 32
PERIOD_MIN = 5
_PERIOD_MS = PERIOD_MIN * 60_000
ALGORITHMS = {
    "FCFS": lambda: algorithms.SortedSchedulingAlgo(algorithms.first_come_first_served),
    "RR": lambda: algorithms.RoundRobin(algorithms.first_come_first_served, continuous_inc=1),
    "EDF": lambda: algorithms.SortedSchedulingAlgo(algorithms.earliest_deadline_first),
    "LLF": lambda: algorithms.SortedSchedulingAlgo(algorithms.least_laxity_first),
}


def run(visits: Sequence[Visit], limit_kw: float, name: str) -> tuple[float, float]:
    """Energy delivered and cars fully served (99 %), in percent."""
    start_ms = visits[0].arrives_ms
    network = acnsim.ChargingNetwork()
    events = acnsim.EventQueue()
    evs = []
    plugs = _plugs(visits)
    for station in sorted(set(plugs)):
        network.register_evse(acnsim.EVSE(station, max_rate=PLUG_A), VOLTAGE, 0)
    for visit, station in zip(visits, plugs, strict=True):
        kwh = visit.energy_j / 3_600_000
        ev = acnsim.EV(
            (visit.arrives_ms - start_ms) // _PERIOD_MS,
            (visit.leaves_ms - start_ms) // _PERIOD_MS,
            kwh,
            station,
            visit.name,
            acnsim.Battery(kwh, 0, visit.max_w / 1000),
        )
        evs.append(ev)
        events.add_event(acnsim.PluginEvent(ev.arrival, ev))
    network.add_constraint(acnsim.Current(network.station_ids), limit_kw * 1000 / VOLTAGE, name="limit")
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=start_ms)
    acnsim.Simulator(network, ALGORITHMS[name](), events, start, period=PERIOD_MIN, verbose=False).run()
    got = [ev.energy_delivered / ev.requested_energy for ev in evs]
    energy = sum(ev.energy_delivered for ev in evs) / sum(ev.requested_energy for ev in evs)
    return float(100 * energy), 100 * sum(share >= 0.99 for share in got) / len(got)


def _plugs(visits: Sequence[Visit]) -> list[str]:
    """For each visit, in the order of arrival, the first plug that is free."""
    free_ms: dict[str, int] = {}
    taken = []
    for visit in visits:
        plug = next((name for name, at in free_ms.items() if at < visit.arrives_ms), f"EVSE-{len(free_ms)}")
        free_ms[plug] = visit.leaves_ms
        taken.append(plug)
    return taken
