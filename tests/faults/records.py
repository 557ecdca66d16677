"""What is written down during a run. The checker sees nothing else.

Times are seconds since the run began, monotonic. `sent` and `heard` bound when something was true: a register
that was heard before another was asked for must not be above it.
"""

from dataclasses import dataclass, field

PLACES = ("a", "b", "c")
BALANCERS = ("x", "y")
GATEWAY = "gateway"
# Cars at each substation that charge for the whole run: together they want more than it has.
RESIDENTS = 10
# Refusals after which a car drives on: there is no room, and nobody is at fault.
NO_ROOM = frozenset({"NO_CHARGE_POINT", "FLOOR_ABOVE_LIMIT", "TOO_MANY_WAITING"})


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time."""

    since: float
    until: float

    def overlaps(self, since: float, until: float) -> bool:
        return self.since <= until and since <= self.until

    def __contains__(self, at: float) -> bool:
        return self.since <= at <= self.until


@dataclass(frozen=True, slots=True)
class Call:
    """One try of one charge, at a balancer or at the gateway, which asks both: a session, or why there is none."""

    sent: float
    heard: float
    key: str
    door: str
    session_id: str = ""
    # The reason of ErrorInfo; empty when the connection broke or nothing came in time.
    reason: str = ""

    @property
    def balancers(self) -> tuple[str, ...]:
        """Those that may have heard of it."""
        return BALANCERS if self.door == GATEWAY else (self.door,)


@dataclass(frozen=True, slots=True)
class Read:
    """A register that somebody was shown."""

    sent: float
    heard: float
    session_id: str
    delivered_kwh: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One live session in a look."""

    session_id: str
    key: str
    granted_kw: float
    measured_kw: float
    delivered_kwh: float


@dataclass(frozen=True, slots=True)
class Look:
    """All live sessions of a substation, as it shows them when asked directly."""

    sent: float
    heard: float
    substation: str
    sessions: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A load report, heard directly."""

    heard: float
    substation: str
    limit_kw: float
    committed_kw: float
    measured_kw: float


@dataclass(frozen=True, slots=True)
class Meter:
    """`substation_over_limit_seconds_total`, and the calls of ChargeBatch that it has answered in this life."""

    heard: float
    substation: str
    over_limit_s: float
    batches: int = 0


@dataclass(frozen=True, slots=True)
class Limit:
    """An operator's limit. None: cleared. In force from between `sent` and `heard`."""

    sent: float
    heard: float
    substation: str
    source: str
    limit_kw: float | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done on purpose, from when until it was undone. A process that was killed: until it serves.

    `part` is a process, or a link as `x-a`. `spawned` is when a killed one was started again.
    """

    kind: str
    part: str
    since: float
    until: float
    spawned: float | None = None

    @property
    def dead(self) -> bool:
        """Its process did nothing meanwhile."""
        return self.kind in {"kill", "stop", "clock"}


@dataclass(frozen=True, slots=True)
class Kept:
    """A session in a ledger at the end."""

    substation: str
    session_id: str
    key: str
    live: bool
    delivered_kwh: float
    attempt_id: str = ""
    # It was ended because of that one.
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """What a balancer still holds at the end."""

    balancer: str
    # Not a number where it did not say.
    reserved_w: float
    open_doubts: int

    @property
    def nothing(self) -> bool:
        return self.reserved_w == 0 and self.open_doubts == 0


@dataclass(frozen=True, slots=True)
class Back:
    """A killed substation shows its sessions again, `after_s` from the start of its process.

    `waited_s` of that it, or who looked, was ready to run and others had the processor.
    """

    substation: str
    after_s: float
    waited_s: float


@dataclass
class Log:
    """One run."""

    seed: int = 0
    rated_kw: float = 100.0
    time_scale: float = 60.0
    calls: list[Call] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    meters: list[Meter] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    back: list[Back] = field(default_factory=list)
    # From when to when nothing was wrong and every balancer heard of every substation.
    whole: list[Span] = field(default_factory=list)
    # Seconds from the last fault of each round until that.
    whole_after: list[float] = field(default_factory=list)
    # Clients that had no answer when everything had been connected for long enough, and answers that make no sense.
    unanswered: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    # Requests of all kinds.
    requests: int = 0
