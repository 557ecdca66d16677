"""The substation's metrics, each declared here once. Gauges are read from the last report at scrape time."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.model import ErrorReason, LimitReason, LimitSource, NotAccepting, StopReason
from substation.load import Load
from substation.sessions import Session

_COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COMPLIANCE_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0)


class SubstationMetrics:
    """What is counted as it happens."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.sessions = Counter(
            "substation_sessions",
            "Sessions admitted, refused (by reason) and ended (by stop reason).",
            ("outcome", "reason"),
            registry=registry,
        )
        self.commit = Histogram(
            "substation_ledger_commit_seconds",
            "Duration of one group commit of the ledger.",
            buckets=_COMMIT_BUCKETS,
            registry=registry,
        )
        self.compliance = Histogram(
            "substation_limit_compliance_seconds",
            "From a cut of the limit until committed power was back under it.",
            buckets=_COMPLIANCE_BUCKETS,
            registry=registry,
        )
        self.damaged = Gauge(
            "substation_ledger_damaged",
            "Damaged ledgers beside the one in use: to be looked at, and removed when not needed any more.",
            registry=registry,
        )
        # From the start: the first of its kind is an increase only where a zero was seen before it.
        self._admitted = self.sessions.labels("admitted", "")
        self._refused = {reason: self.sessions.labels("refused", reason.name) for reason in ErrorReason}
        self._ended = {reason: self.sessions.labels("ended", reason.name) for reason in StopReason if reason}

    def count_admitted(self, sessions: int) -> None:
        """Counts admissions that became durable."""
        self._admitted.inc(sessions)

    def count_refused(self, reason: ErrorReason) -> None:
        """Counts a charge that was not admitted."""
        self._refused[reason].inc()

    def count_ended(self, sessions: Iterable[Session]) -> None:
        """Counts endings that became durable."""
        reasons = [session.stop_reason for session in sessions]
        for reason in set(reasons):
            self._ended[reason].inc(reasons.count(reason))

    def show(self, load: Callable[[], Load], time_scale: int, delivered_j: Callable[[], int]) -> None:
        """Adds what is read at scrape time: the load as of the last change, and the energy delivered in joules.

        Pages are served by a thread of their own, so both must be safe to read from there.
        """
        self._registry.register(_Gauges(load, time_scale, delivered_j))

    def show_orphans(self, look: Callable[[], Iterable[tuple[str, float]]]) -> None:
        """Adds the sessions that nobody owns by slot, looked for at scrape time, in the thread that serves the page."""
        self._registry.register(_Orphans(look))

    def show_place(self, substation_id: str, ledger: Path) -> None:
        """Adds whose page this is, and the ledger's files with the disk that they are on."""
        self._registry.register(_Place(substation_id, ledger))


class _Orphans(Collector):
    def __init__(self, look: Callable[[], Iterable[tuple[str, float]]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "substation_orphaned_sessions",
            "Live sessions in another slot of the data folder that no substation owns; 0 while one does, "
            "+Inf where its ledger cannot be read.",
            labels=["slot"],
        )
        for slot, sessions in self._look():
            family.add_metric([slot], sessions)
        yield family


class _Gauges(Collector):
    def __init__(self, load: Callable[[], Load], time_scale: int, delivered_j: Callable[[], int]) -> None:
        self._load = load
        self._time_scale = time_scale
        self._delivered_j = delivered_j

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        watts: tuple[tuple[str, str, Callable[[], int]], ...] = (
            ("rated", "Rated power.", lambda: load.rated_w),
            ("demand", "Sum of the max power of the active sessions.", lambda: load.demand_w),
            ("required", "Power that brings every session its energy by its departure.", lambda: load.required_w),
            ("committed", "Sum of max(granted, held, measured) over the sessions.", lambda: load.committed_w),
            ("granted", "Sum of the grants.", lambda: load.granted_w),
            ("measured", "Sum of what the cars draw.", lambda: load.measured_w),
        )
        for name, text, value in watts:
            yield _gauge(f"substation_{name}_watts", text, value())
        yield _gauge("substation_active_sessions", "Sessions that want energy.", load.active_sessions)
        yield _gauge("substation_time_scale", "Seconds of charging that pass in one second.", self._time_scale)
        yield self._not_accepting(load.not_accepting)
        yield self._curtailed(load.curtailed)
        yield self._limits(load.limit_w, load.limit_source)
        yield _counter(
            "substation_over_limit_seconds",
            "Committed or measured power over the limit, outside the obedience time of a cut.",
            load.over_limit_ms / 1000,
        )
        yield _counter(
            "substation_energy_delivered_joules",
            "Energy delivered since the start.",
            self._delivered_j(),
        )

    @staticmethod
    def _not_accepting(why: NotAccepting) -> Metric:
        family = GaugeMetricFamily(
            "substation_not_accepting", "1 for the reason why nothing is admitted, 0 for the others.", labels=["reason"]
        )
        for reason in NotAccepting:
            if reason:
                family.add_metric([reason.name], reason is why)
        return family

    @staticmethod
    def _curtailed(sessions: tuple[LimitReason, ...]) -> Metric:
        family = GaugeMetricFamily(
            "substation_curtailed_sessions",
            "Sessions that want energy and are granted less than they can take, by why.",
            labels=["reason"],
        )
        for reason in LimitReason:
            if reason:
                family.add_metric([reason.name], sessions.count(reason))
        return family

    @staticmethod
    def _limits(limit_w: int, source: LimitSource) -> Metric:
        family = GaugeMetricFamily(
            "substation_limit_watts", "Limit in force, by whose it is (RATED: the rated power).", labels=["source"]
        )
        family.add_metric([source.name if source else "RATED"], limit_w)
        return family


class _Place(Collector):
    """A scraper knows an address; people know substations by their id."""

    def __init__(self, substation_id: str, ledger: Path) -> None:
        self._substation_id = substation_id
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("substation_info", "1, with the substation's id.", labels=["substation"])
        info.add_metric([self._substation_id], 1)
        yield info
        yield _gauge("substation_ledger_bytes", "Size of the ledger, its write-ahead log included.", self._size())
        disk = shutil.disk_usage(self._ledger.parent)
        yield _gauge("substation_disk_size_bytes", "Size of the disk that the ledger is on.", disk.total)
        yield _gauge("substation_disk_free_bytes", "What the substation may still write on that disk.", disk.free)

    def _size(self) -> int:
        size = 0
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                size += self._ledger.with_name(self._ledger.name + suffix).stat().st_size
        return size


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
