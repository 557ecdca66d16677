"""Who is left out for a while because calls to it fail, and how many calls may be tried again.

A substation is ejected after 7 failures in a row, or when fewer than 0.8 of at least 5 calls within
10 s succeeded: for 1 s, then twice as long each time up to 60 s. After that one call probes it. A
refusal for want of power or plugs is an answer, not a failure.

Times are wall milliseconds.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

CONSECUTIVE_FAILURES = 7
LEAST_SUCCESS = 0.8
LEAST_SAMPLES = 5
WINDOW_MS = 10_000
FIRST_MS = 1_000
LONGEST_MS = 60_000
_BUCKET_MS = 1_000
_LOOK_MS = 100


@dataclass(slots=True)
class _Bucket:
    """Calls that ended within one second."""

    start_ms: int
    calls: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Record:
    failures_in_a_row: int = 0
    buckets: deque[_Bucket] = field(default_factory=deque)
    # How long the last ejection was; 0 after a long time without one.
    length_ms: int = 0
    until_ms: int | None = None
    # When the one probe was sent.
    probe_ms: int | None = None


class Ejections:
    """The record of each substation, by address."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        # The addresses of those that are left out, until a probe has succeeded; the version changes with them.
        self.out: set[str] = set()
        self.version = 0
        # How often each was left out, since the start.
        self.times: Counter[str] = Counter()
        # Those that may be probed, and when to find out anew: with many out that takes long.
        self._due: list[str] = []
        self._look_ms = 0

    def permits(self, address: str, now: int) -> bool:
        """Whether a call may be sent there: it is not ejected, or this call would be its probe."""
        record = self._records.get(address)
        if record is None or record.until_ms is None:
            return True
        return now >= record.until_ms and not _probing(record, now)

    def ejected(self, address: str) -> bool:
        """Whether it is left out, until a probe has succeeded."""
        return address in self.out

    def probes(self, now: int) -> list[str]:
        """Those that are left out and may be probed, as of a moment ago: ask `permits` before it is done."""
        if now >= self._look_ms:
            self._due = [address for address in self.out if self.permits(address, now)]
            nobody_before = min((self._due_ms(self._records[address]) for address in self.out), default=now)
            self._look_ms = now + _LOOK_MS if self._due else nobody_before
        return self._due

    def _due_ms(self, record: _Record) -> int:
        """When it may be probed, if nothing happens before."""
        begun_ms = record.until_ms or 0
        return begun_ms if record.probe_ms is None else max(begun_ms, record.probe_ms + LONGEST_MS)

    def wait_ms(self, address: str, now: int) -> int:
        """Milliseconds until it may be probed; 0 when it may be asked."""
        record = self._records.get(address)
        return max(0, record.until_ms - now) if record and record.until_ms is not None else 0

    def sent(self, address: str, now: int) -> None:
        """A call leaves for it. To an ejected substation it is the probe."""
        record = self._records.get(address)
        if record is not None and record.until_ms is not None:
            record.probe_ms = now

    def unsent(self, address: str) -> None:
        """The call did not leave after all: the next one may be the probe."""
        record = self._records.get(address)
        if record is not None:
            record.probe_ms, self._look_ms = None, 0

    def succeeded(self, address: str, now: int) -> None:
        """A call was answered, be it with a refusal."""
        record = self._records.get(address)
        if record is None:
            record = self._records[address] = _Record()
        if record.until_ms is None:
            record.failures_in_a_row = 0
            _count(record, now, failures=0)
        elif record.probe_ms is not None:
            _readmit(record)
            self.out.discard(address)
            self.version += 1

    def failed(self, address: str, now: int) -> None:
        """A call could not be sent, was lost, or met a defect."""
        record = self._records.setdefault(address, _Record())
        if record.until_ms is not None:
            if record.probe_ms is not None:
                _eject(record, now)
                self._look_ms = 0
            return
        record.failures_in_a_row += 1
        _count(record, now, failures=1)
        if record.failures_in_a_row >= CONSECUTIVE_FAILURES or _fails_often(record):
            _eject(record, now)
            self.out.add(address)
            self.times[address] += 1
            self.version += 1
            self._look_ms = 0

    def forget(self, address: str) -> None:
        """Nobody is there any more."""
        self._records.pop(address, None)
        self.out.discard(address)
        self._due, self._look_ms = [], 0
        self.version += 1

    def restarted(self, address: str, now: int) -> None:
        """It reports from a new life: its probe may come at once."""
        record = self._records.get(address)
        if record is not None and record.until_ms is not None:
            record.until_ms, record.probe_ms, self._look_ms = now, None, 0


def _probing(record: _Record, now: int) -> bool:
    # A probe whose end nobody heard of must not lock the substation out.
    return record.probe_ms is not None and now - record.probe_ms < LONGEST_MS


def _count(record: _Record, now: int, failures: int) -> None:
    buckets = record.buckets
    while buckets and buckets[0].start_ms <= now - WINDOW_MS:
        buckets.popleft()
    if not buckets or now - buckets[-1].start_ms >= _BUCKET_MS:
        buckets.append(_Bucket(now))
    latest = buckets[-1]
    latest.calls += 1
    latest.failures += failures


def _fails_often(record: _Record) -> bool:
    calls = sum(bucket.calls for bucket in record.buckets)
    failures = sum(bucket.failures for bucket in record.buckets)
    return calls >= LEAST_SAMPLES and calls - failures < LEAST_SUCCESS * calls


def _eject(record: _Record, now: int) -> None:
    record.length_ms = min(max(FIRST_MS, 2 * record.length_ms), LONGEST_MS)
    record.until_ms, record.probe_ms = now + record.length_ms, None
    record.failures_in_a_row = 0
    record.buckets.clear()


def _readmit(record: _Record) -> None:
    """Back in, on trial: one step shorter next time, so that a flapping one stays out longer and longer."""
    record.until_ms = record.probe_ms = None
    record.length_ms = record.length_ms // 4 if record.length_ms > FIRST_MS else 0


class RetryBudget:
    """Second tries in proportion to calls, so that a failing mesh is not asked many times as often.

    Each call earns 0.2 of a try; 10 tries a second are earned by waiting, so that a quiet mesh can
    retry too. At most 100 are saved up.
    """

    PER_CALL = 0.2
    PER_SECOND = 10.0
    MOST = 100.0

    def __init__(self) -> None:
        self._tries = self.MOST
        self._at_ms: int | None = None

    def call(self, now: int) -> None:
        """A call has arrived."""
        if self._tries < self.MOST:  # else it can earn nothing, nor can the time since then
            self._earn(self.PER_CALL, now)

    def spend(self, now: int) -> bool:
        """Takes one try; False when none is left."""
        self._earn(0.0, now)
        if self._tries < 1.0:
            return False
        self._tries -= 1.0
        return True

    def _earn(self, tries: float, now: int) -> None:
        waited_ms = 0 if self._at_ms is None else max(0, now - self._at_ms)
        self._at_ms = now
        self._tries = min(self.MOST, self._tries + tries + self.PER_SECOND * waited_ms / 1000)
