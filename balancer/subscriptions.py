"""How reports and admissions get here: two streams to each substation, over its one channel.

Their life cycle: a jittered start; no deadline; a stream of reports that is silent for three intervals
is given up; tries are 1 to 30 s apart with jitter, a little less than half a second after a stream
that had said something; UNIMPLEMENTED ends it for good. While there is no connection the channel
itself tries again, every second at most, so that a restarted substation is back at once.

An entry that cannot be read is skipped; an exception that nobody foresaw is logged and ends no more
than the stream at hand: whatever one message does, the substation must not stay unheard.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from random import Random

import grpc
import structlog

from balancer import wire
from balancer.admissions import Entry
from balancer.desk import Desk, Settled
from balancer.journal import News, ReportJournal, StreamJournal
from balancer.metrics import BalancerMetrics
from balancer.peers import Peer, Peers
from balancer.view import FRESH_INTERVALS, Load, Received
from gridmesh.v1 import reports_pb2
from mesh.charge import Key
from mesh.clock import Clock, seconds

log = structlog.get_logger()

START_JITTER_S = 0.2
SOON_S = 0.3
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
SILENT = "silent"
# Where no report says when one could be missing.
_LOOK_S = 1.0


class Unserved(Exception):
    """The other side does not have this rpc: it is no substation, and trying again changes nothing."""


class Moved(Exception):
    """The entries are another substation's than the one that reported."""


class Backoff:
    """Seconds to wait before the next try. Only a decoded message resets it.

    Unless one that came after it was the stream's end here: that one will come again.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._ceiling_s = 0.0
        self._defects_s = 0.0

    def heard(self) -> None:
        self._ceiling_s = 0.0

    def next(self) -> float:
        """Soon after a stream that worked, then 1 to 30 s; each with jitter down to half."""
        wait = self._ceiling_s or SOON_S
        self._ceiling_s = _longer(self._ceiling_s)
        return wait * self._rng.uniform(0.5, 1.0)

    def failed(self) -> None:
        """A message could not be processed: the next try is later than the one after the last such message."""
        self._defects_s = self._ceiling_s = _longer(self._defects_s)

    @property
    def patience_s(self) -> float:
        """How long a new stream may be silent at first: a stopped process answers when it goes on."""
        return self._ceiling_s


def _longer(ceiling_s: float) -> float:
    return min(max(FIRST_BACKOFF_S, 2 * ceiling_s), LONGEST_BACKOFF_S)


class Subscription:
    """Both streams of one substation. `on_change` is called after the view changed."""

    def __init__(
        self,
        peer: Peer,
        desk: Desk,
        clock: Clock,
        rng: Random,
        interval_ms: int,
        metrics: BalancerMetrics,
        on_change: Callable[[], None],
        on_settled: Callable[[list[Settled], list[Key]], None],
    ) -> None:
        self._peer = peer
        self._desk = desk
        self._clock = clock
        self._rng = rng
        self._interval_ms = interval_ms
        self._malformed = metrics.reports.labels("malformed")
        self._counts = {result: metrics.reports.labels(result.value) for result in Received}
        self._on_change = on_change
        self._on_settled = on_settled
        self.reported = asyncio.Event()
        self._journal = ReportJournal(desk.view, peer.address)
        self._reports_journal = StreamJournal(desk.view, peer.address, "load reports")
        # (substation, epoch, address): whose reports come from here while it is followed at another address.
        self._elsewhere: tuple[str, int, str | None] | None = None
        self._told_elsewhere = News()
        # When it is to be said that there was no report yet; None once it was said, or there was one.
        self._silent_ms: int | None = clock.now_ms() + FRESH_INTERVALS * interval_ms
        # Whether all of the snapshot under way could be read, and whether what was read was processed.
        self._whole = True
        self._sound = True

    async def run(self) -> None:
        """Until cancelled, or until it is clear that nobody there is a substation."""
        await asyncio.sleep(self._rng.uniform(0, START_JITTER_S))
        admissions = StreamJournal(self._desk.view, self._peer.address, "admissions")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(self._reports_journal, self._reports))
                group.create_task(self._follow(admissions, self._admissions))
        except* Unserved as unserved:
            line = log.bind(address=self._peer.address, why=str(unserved.exceptions[0]))
            line.error("this address serves no load reports or admissions and is given up")

    def look(self) -> float:
        """Says when reports are missing. Returns in how many seconds to look again.

        Reports age by time alone: while they are fresh nothing is to be seen, however many come.
        """
        view, known, now = self._desk.view, self._desk.view[self._peer.address], self._clock.now_ms()
        why = self._reports_journal.why
        self._journal.look(now, why or SILENT)
        if known.load is not None:
            self._silent_ms = None
        elif self._silent_ms is not None and now >= self._silent_ms:
            self._silent_ms = None
            log.warning("no report from this address yet", address=self._peer.address, why=why or "no connection")
        return max(self._interval_ms, view.fresh_until([known], now) + 1 - now) / 1000

    async def _follow(self, journal: StreamJournal, stream: Callable[[Backoff], AsyncIterator[None]]) -> None:
        backoff = Backoff(self._rng)
        while True:
            why = await self._once(stream, backoff, journal)
            journal.ended(why)
            pause_s = backoff.next()
            # After silence the patience of the next stream is the pause.
            await asyncio.sleep(min(pause_s, SOON_S) if why == SILENT else pause_s)

    async def _once(
        self, stream: Callable[[Backoff], AsyncIterator[None]], backoff: Backoff, journal: StreamJournal
    ) -> str:
        """Follows it to its end. Returns why it ended."""
        try:
            await self._peer.channel.channel_ready()
            async for _ in stream(backoff):
                backoff.heard()
                journal.heard()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise Unserved(error.details() or "UNIMPLEMENTED") from None
            return f"{error.code().name} {error.details()}"
        except TimeoutError:
            return SILENT
        except Moved:
            return "another substation answers there"
        except Exception as defect:
            journal.failed(defect)
            backoff.failed()
            return f"failed here: {type(defect).__name__}"
        return "ended by the substation"

    # --- load reports ---------------------------------------------------------------------------

    async def _reports(self, backoff: Backoff) -> AsyncIterator[None]:
        request = reports_pb2.StreamLoadReportsRequest()
        request.interval.FromMilliseconds(self._interval_ms)
        silence_s = FRESH_INTERVALS * self._interval_ms / 1000
        call = self._peer.reports.StreamLoadReports(request)
        watchdog = Watchdog(call.cancel, silence_s, max(silence_s, backoff.patience_s))
        try:
            async for response in call:
                watchdog.heard()
                if self._report(response):
                    yield
        except asyncio.CancelledError:
            watchdog.raise_if_bitten()
            raise
        finally:
            watchdog.close()
            call.cancel()
            self._desk.disconnected(self._peer.address)
            self.reported.clear()
            self._on_change()

    def _report(self, response: reports_pb2.StreamLoadReportsResponse) -> bool:
        try:
            load = self._peer.load_of(response.report)
        except wire.Malformed as malformed:
            self._malformed.inc()
            log.warning("report ignored", address=self._peer.address, why=str(malformed))
            return False
        now = self._clock.now_ms()
        result = self._desk.reported(self._peer.address, load, now)
        self._journal.look(now, SILENT)
        self._counts[result].inc()
        if self._desk.view[self._peer.address].load is None:
            self.reported.clear()
            self._followed_elsewhere(load)
        else:
            self._elsewhere = None
            self.reported.set()
        self._on_change()
        return True

    def _followed_elsewhere(self, load: Load) -> None:
        """Says so where it goes on: the last report of one that has moved may come after the first from there."""
        view, self._silent_ms = self._desk.view, None
        other = view.address_of(load.substation_id)
        before, self._elsewhere = self._elsewhere, (load.substation_id, load.epoch, other)
        if other is None or before != self._elsewhere or not self._told_elsewhere.is_new(before):
            return
        there = view[other].load
        same = there is not None and there.epoch == load.epoch
        why = "both addresses are of one process" if same else "a process that was started later has the same id there"
        log.warning(
            "substation is followed at another address",
            substation=load.substation_id,
            address=self._peer.address,
            followed_at=other,
            why=why,
        )

    # --- admissions -----------------------------------------------------------------------------

    async def _admissions(self, _: Backoff) -> AsyncIterator[None]:
        # Who is there is known from its first report.
        await self.reported.wait()
        substation_id = self._desk.view[self._peer.address].substation_id
        request = reports_pb2.StreamAdmissionsRequest()
        position = self._desk.index.position(substation_id) if self._sound else None
        if position is not None:
            request.after.epoch, request.after.sequence = position
        self._whole = True
        self._desk.admissions_begin(self._peer.address, substation_id, self._clock.now_ms())
        call = self._peer.reports.StreamAdmissions(request)
        try:
            async for response in call:
                self._sound = False
                self._admission(substation_id, response)
                self._sound = True
                yield
        finally:
            call.cancel()
            self._desk.admissions_end(self._peer.address, self._clock.now_ms())

    def _admission(self, substation_id: str, response: reports_pb2.StreamAdmissionsResponse) -> None:
        epoch, sequence, now = response.position.epoch, response.position.sequence, self._clock.now_ms()
        entries = self._entries(substation_id, response)
        address = self._peer.address
        match response.phase:
            case reports_pb2.ADMISSION_PHASE_SNAPSHOT:
                self._desk.snapshot(substation_id, entries)
            case reports_pb2.ADMISSION_PHASE_SNAPSHOT_END:
                whole = self._whole
                if whole:
                    self._look_for_lost(substation_id, epoch, sequence)
                self._on_settled(*self._desk.snapshot_end(address, substation_id, epoch, sequence, now, whole=whole))
                self._on_change()
            case reports_pb2.ADMISSION_PHASE_CHANGES:
                self._on_settled(*self._desk.changes(address, substation_id, epoch, sequence, entries, now))
                self._on_change()

    def _look_for_lost(self, substation_id: str, epoch: int, sequence: int) -> None:
        """A substation that starts on an older ledger cannot know that it does."""
        unshown = self._desk.index.unshown(substation_id, epoch, sequence)
        if lost := [entry.session_id for entry in unshown if entry.live]:
            log.error(
                "substation lacks sessions that it had",
                substation=substation_id,
                address=self._peer.address,
                count=len(lost),
                session_id=lost[0],
                why="its ledger has lost them, or is an older one",
            )

    def _entries(self, substation_id: str, response: reports_pb2.StreamAdmissionsResponse) -> list[Entry]:
        """Those that can be read. Moved where one is of another substation."""
        entries, skipped = [], []
        epoch, known = response.position.epoch, self._desk.index.entries(substation_id)
        for admission in response.admissions:
            try:
                entry = wire.entry_of(admission, epoch, known)
            except wire.Malformed as malformed:
                skipped.append(str(malformed))
                continue
            if entry.substation_id != substation_id:
                raise Moved
            entries.append(entry)
        if skipped:
            self._whole = False
            address = self._peer.address
            log.warning(
                "admissions ignored", substation=substation_id, address=address, count=len(skipped), why=skipped[0]
            )
        return entries


class Watchdog:
    """Calls `bite` after silence. One timer, moved only when it fires, however many messages come."""

    def __init__(self, bite: Callable[[], object], silence_s: float, first_s: float) -> None:
        self._bite = bite
        self._silence_s = silence_s
        self._due = seconds() + first_s
        self._bitten = False
        self._timer = asyncio.get_running_loop().call_later(first_s, self._check)

    def heard(self) -> None:
        self._due = seconds() + self._silence_s

    def raise_if_bitten(self) -> None:
        """TimeoutError when the stream was cancelled from here and its task not from outside as well."""
        task = asyncio.current_task()
        if self._bitten and not (task and task.cancelling()):
            raise TimeoutError

    def close(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        left = self._due - seconds()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._check)
        else:
            self._bitten = True
            self._bite()


class Subscriptions:
    """Those of all substations, by address."""

    def __init__(self, peers: Peers, make: Callable[[Peer], Subscription]) -> None:
        self._peers = peers
        self._make = make
        self._subscriptions: dict[str, Subscription] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        for peer in self._peers:
            self.open(peer)
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """One for all: a timer for each would wake a balancer whom nobody asks a few times a second."""
        while True:
            pause_s = _LOOK_S
            try:
                pause_s = min((one.look() for one in self._subscriptions.values()), default=_LOOK_S)
            except Exception:
                log.exception("a look at the reports met a defect; it is made again")
            await asyncio.sleep(pause_s)

    def open(self, peer: Peer) -> None:
        """Follows one more."""
        subscription = self._subscriptions[peer.address] = self._make(peer)
        self._tasks[peer.address] = asyncio.create_task(subscription.run())

    async def close(self, address: str) -> None:
        """Follows that one no longer."""
        del self._subscriptions[address]
        task = self._tasks.pop(address)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def first_reports(self, timeout_s: float) -> None:
        """Waits for one report of each, but no longer than that."""
        waits = [asyncio.create_task(one.reported.wait()) for one in self._subscriptions.values()]
        if waits:
            await asyncio.wait(waits, timeout=timeout_s)
        for wait in waits:
            wait.cancel()

    async def stop(self) -> None:
        tasks = [*self._tasks.values(), *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
