"""What a balancer measures. Each metric is declared here, once.

The label `substation` is the substation's id, and its address until it has reported; both come from
the settings, DNS and the substations themselves, so their number is bounded.
"""

from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from balancer.attempt import Outcome
from balancer.desk import Desk
from balancer.view import Known
from mesh.clock import Clock
from mesh.model import ErrorReason, ReportState
from mesh.tallies import Durations, Tally

# A pick takes microseconds; what takes a millisecond is worth seeing.
_PICK_BUCKETS = (0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.005)
_RESULTS = {outcome: (outcome.__name__.lower(),) for outcome in get_args(Outcome)}


class BalancerMetrics:
    """Counters and histograms that the router and the subscriptions write to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._picks = Tally("balancer_picks", "Substations chosen for a new session.", ("substation",), registry)
        self._pick_seconds = Durations(
            "balancer_pick_seconds", "Time to decide whom to ask next.", (), _PICK_BUCKETS, registry
        )
        self._pick_seconds.begin(())
        self.reports = Counter(
            "balancer_reports", "Load reports by what became of them.", ("result",), registry=registry
        )
        self._tries = Tally(
            "balancer_tries",
            "Charge calls sent to substations, and doubts, by what became of them.",
            ("result",),
            registry,
        )
        self.lookups = Counter(
            "balancer_lookups",
            "Lookups of the names of substations, by how they ended.",
            ("result",),
            registry=registry,
        )
        for result in ("resolved", "failed"):
            self.lookups.labels(result)
        self._refusals = Tally(
            "balancer_refusals", "Charges answered with an error, by its reason.", ("reason",), registry
        )
        self.duplicates = Counter(
            "balancer_duplicates", "Sessions ended because their request had another one.", registry=registry
        )
        # From the start: the first of its kind is an increase only where a zero was seen before it.
        for reason in ErrorReason:
            self._refusals.counts[(reason.name,)] = 0
        for labels in _RESULTS.values():
            self._tries.counts[labels] = 0

    def decided(self, took_s: float) -> None:
        """Counts a decision whom to ask."""
        self._pick_seconds.observe((), took_s)

    def tried(self, outcome: type[Outcome]) -> None:
        """Counts a try by what became of it; the label is the outcome's name."""
        self._tries.counts[_RESULTS[outcome]] += 1

    def refused(self, reason: ErrorReason) -> None:
        """Counts a charge that was answered with an error."""
        self._refusals.counts[(reason.name,)] += 1

    def picked(self, substation_id: str) -> None:
        """Counts a new session by where it is."""
        self._picks.counts[(substation_id,)] += 1


class DeskCollector(Collector):
    """What the balancer knows at the moment of the scrape."""

    def __init__(self, desk: Desk, clock: Clock) -> None:
        self._desk = desk
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        return _families()

    def collect(self) -> Iterator[Metric]:
        state, age, reserved, ejected, ejections, doubts = _families()
        view, now = self._desk.view, self._clock.now_ms()
        for known in view:
            label = known.substation_id or known.address
            _add_state(state, label, view.state(known, now))
            _add_age(age, label, known, now)
            reserved.add_metric((label,), known.reserved_w)
            ejected.add_metric((label,), self._desk.ejections.ejected(known.address))
            ejections.add_metric((label,), self._desk.ejections.times[known.address])
        doubts.add_metric((), len(self._desk.doubts))
        yield from (state, age, reserved, ejected, ejections, doubts)


_Gauge = GaugeMetricFamily


def _families() -> tuple[_Gauge, _Gauge, _Gauge, _Gauge, CounterMetricFamily, _Gauge]:
    return (
        GaugeMetricFamily(
            "balancer_substation_state",
            "1 for the state that the substation's reports are in, else 0.",
            labels=("substation", "state"),
        ),
        GaugeMetricFamily(
            "balancer_report_age_seconds",
            "Time since the last report arrived; absent before the first.",
            labels=("substation",),
        ),
        GaugeMetricFamily(
            "balancer_reserved_watts",
            "Demand placed by this balancer that the last report does not contain.",
            labels=("substation",),
        ),
        GaugeMetricFamily(
            "balancer_ejected",
            "1 while the substation is left out because calls to it failed, else 0.",
            labels=("substation",),
        ),
        CounterMetricFamily(
            "balancer_ejections",
            "Times that the substation was left out because calls to it failed.",
            labels=("substation",),
        ),
        GaugeMetricFamily(
            "balancer_open_doubts", "Charges of which it is not known whether they were admitted.", labels=()
        ),
    )


def _add_state(family: GaugeMetricFamily, label: str, current: ReportState) -> None:
    for state in ReportState:
        family.add_metric((label, state.name.lower()), 1.0 if state is current else 0.0)


def _add_age(family: GaugeMetricFamily, label: str, known: Known, now: int) -> None:
    if known.received_ms is not None:
        family.add_metric((label,), (now - known.received_ms) / 1000)
