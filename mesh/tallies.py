"""Metrics of what happens with every charge: counted as plain numbers, and made into samples when a scrape asks.

A Counter or a Histogram of prometheus_client takes a lock and half a dozen calls for each number, as any thread may
write to it. These are written to by the event loop's thread alone; the thread of the scrape reads.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter. Whoever counts adds to `counts`, by the values of the labels."""

    def __init__(self, name: str, what: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self.counts: defaultdict[Labels, int] = defaultdict(int)
        self._said = name, what, labels
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, count in list(self.counts.items()):
            family.add_metric(labels, count)
        yield family

    def _family(self) -> CounterMetricFamily:
        name, what, labels = self._said
        return CounterMetricFamily(name, what, labels=labels)


class _Series(Struct):
    """What is counted for one set of labels: how many in each bucket, and their sum."""

    counts: list[int]
    sum_s: float = 0.0


class Durations(Collector):
    """A histogram of seconds. `bounds` are the upper ones of its buckets, without the last, which has none."""

    def __init__(
        self, name: str, what: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._said = name, what, labels
        self._bounds = tuple(bounds)
        self._names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._series: dict[Labels, _Series] = {}
        registry.register(self)

    def begin(self, labels: Labels) -> "_Series":
        """Shows these, with nothing counted yet."""
        series = self._series[labels] = _Series([0] * len(self._names))
        return series

    def observe(self, labels: Labels, seconds: float) -> None:
        """Counts one."""
        series = self._series.get(labels) or self.begin(labels)
        series.counts[bisect_left(self._bounds, seconds)] += 1
        series.sum_s += seconds

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        family = self._family()
        for labels, series in list(self._series.items()):
            buckets = list(zip(self._names, accumulate(series.counts), strict=True))
            family.add_metric(labels, buckets, series.sum_s)
        yield family

    def _family(self) -> HistogramMetricFamily:
        name, what, labels = self._said
        return HistogramMetricFamily(name, what, labels=labels)
