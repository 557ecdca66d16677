"""Counters and histograms that are plain numbers show what prometheus_client's own would."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from mesh.metrics import LATENCY_BUCKETS, new_registry
from mesh.tallies import Durations, Tally

ROUTES = [("/v1/charges", "POST"), ("/v1/charges", "POST"), ("/healthz", "GET")]
# On a bound, between two, above the last, and none at all.
SECONDS = [0.0005, 0.003, 11.0, 0.0]


def test_a_page_reads_as_if_the_librarys_own_had_counted() -> None:
    ours, theirs = new_registry(), new_registry()
    tally = Tally("requests", "Requests.", ("route", "method"), ours)
    durations = Durations("duration_seconds", "Time.", ("route", "method"), LATENCY_BUCKETS, ours)
    counter = Counter("requests", "Requests.", ("route", "method"), registry=theirs)
    histogram = Histogram("duration_seconds", "Time.", ("route", "method"), buckets=LATENCY_BUCKETS, registry=theirs)
    for labels in ROUTES:
        tally.counts[labels] += 1
        counter.labels(*labels).inc()
        for seconds in SECONDS:
            durations.observe(labels, seconds)
            histogram.labels(*labels).observe(seconds)
    assert _of(ours, "requests") == _of(theirs, "requests")
    assert _of(ours, "duration") == _of(theirs, "duration")


def _of(registry: CollectorRegistry, name: str) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if name in line]


def test_what_has_begun_is_shown_as_nothing_yet() -> None:
    registry = CollectorRegistry()
    Durations("pick_seconds", "Time.", (), (0.1,), registry).begin(())
    Tally("picks", "Picks.", ("at",), registry).counts["a",] = 0
    assert registry.get_sample_value("pick_seconds_count") == 0
    assert registry.get_sample_value("picks_total", {"at": "a"}) == 0


def test_a_name_is_declared_once() -> None:
    registry = CollectorRegistry()
    Tally("picks", "Picks.", (), registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Tally("picks", "Picks.", (), registry)
