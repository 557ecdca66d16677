"""Invariant 3 under random histories: one key, one session, whatever is lost, late, twice, out of order or dead.

`PROTOCOL_EXAMPLES=20000` makes it that many histories, new ones each time; without it they are few and always the same.
"""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gridmesh.v1 import charging_pb2
from substation.keys import REMEMBER_MS
from tests.protocol.substation import Write
from tests.protocol.world import BALANCERS, GATEWAYS, PLUGS, World

KEYS = st.sampled_from(["k1", "k2", "k3"])
WHICH = st.integers(0, BALANCERS - 1)
NAMES = st.sampled_from(sorted(PLUGS))
TIMEOUTS_MS = st.sampled_from([500, 2_000, 5_000])
CLOCKS_MS = st.sampled_from([0, -2_000, 2_000, 700])


class Protocol(RuleBasedStateMachine):
    """Each rule is one thing that may happen at any time."""

    @initialize(clocks=st.tuples(*[CLOCKS_MS] * (len(PLUGS) + BALANCERS + GATEWAYS)))
    def begin(self, clocks: tuple[int, ...]) -> None:
        self.world = World(clocks)
        self.sent: list[charging_pb2.ChargeRequest] = []

    # --- clients ---------------------------------------------------------------------------------------

    @rule(number=WHICH, key=KEYS, hop=st.integers(0, GATEWAYS), timeout_ms=TIMEOUTS_MS)
    def a_client_calls(self, number: int, key: str, hop: int, timeout_ms: int) -> None:
        self.sent.append(self.world.call(number, key, hop, timeout_ms))

    @precondition(lambda self: self.sent)
    @rule(number=WHICH, which=st.integers(0, 9), timeout_ms=TIMEOUTS_MS)
    def an_attempt_arrives_twice(self, number: int, which: int, timeout_ms: int) -> None:
        self.world.call_with(number, self.sent[-1 - which % len(self.sent)], timeout_ms)

    @rule(which=st.integers(0, 9))
    def a_car_leaves(self, which: int) -> None:
        live = [(s, one) for s in self.world.substations.values() if s.up for one in s.station.sessions()]
        if live:
            substation, session = live[which % len(live)]
            substation.end(session.session_id)

    # --- the network -----------------------------------------------------------------------------------

    @precondition(lambda self: self.world.network)
    @rule(which=st.integers(0, 20), again=st.booleans(), write=st.booleans())
    def a_message_arrives(self, which: int, again: bool, write: bool) -> None:
        network = self.world.network
        packet = network[which % len(network)]
        if not again:
            network.remove(packet)
        packet.arrive()
        if write:
            self._write_all()

    @precondition(lambda self: self.world.network)
    @rule(which=st.integers(0, 20))
    def a_message_is_lost(self, which: int) -> None:
        self.world.disturbed = True
        self.world.network.pop(which % len(self.world.network))

    @rule(number=WHICH, name=NAMES)
    def a_connection_is_cut(self, number: int, name: str) -> None:
        self.world.disturbed = True
        self.world.links[number, name].cut()

    @rule(sees=st.permutations(sorted(PLUGS)), again=st.booleans())
    def each_balancer_sees_one_substation(self, sees: list[str], again: bool) -> None:
        """What one admits the other does not know; `again`: until now, so that what each knows is old."""
        self.world.disturbed = True
        for number in range(BALANCERS):
            for name in PLUGS:
                link = self.world.links[number, name]
                if name != sees[number]:
                    link.cut()
                if again or name == sees[number]:
                    link.connect()
                    link.report()
                    link.hear()

    @rule(number=WHICH, name=NAMES, reports=st.booleans())
    def a_connection_is_made(self, number: int, name: str, reports: bool) -> None:
        self.world.links[number, name].connect()
        if reports:
            self.world.links[number, name].report()

    @rule(number=WHICH, name=NAMES, most=st.integers(1, 5))
    def admissions_are_heard(self, number: int, name: str, most: int) -> None:
        self.world.links[number, name].hear(most)

    @rule(number=WHICH, name=NAMES)
    def a_stream_breaks(self, number: int, name: str) -> None:
        self.world.disturbed = True
        self.world.links[number, name].break_stream()
        self.world.links[number, name].open_stream()

    # --- processes -------------------------------------------------------------------------------------

    @rule(number=WHICH)
    def pauses_are_over(self, number: int) -> None:
        self.world.balancers[number].timers()

    @rule(turns=st.integers(1, 4))
    def all_goes_well_for_a_while(self, turns: int) -> None:
        for _ in range(turns):
            self.world.turn()

    @rule(name=NAMES, how=st.sampled_from(Write))
    def a_commit_ends(self, name: str, how: Write) -> None:
        substation = self.world.substations[name]
        if substation.up:
            self.world.disturbed |= how is not Write.DONE
            substation.write(how)

    @rule(name=NAMES)
    def a_commit_begins(self, name: str) -> None:
        if self.world.substations[name].up:
            self.world.substations[name].begin_write()

    @rule(name=NAMES, how=st.sampled_from([Write.DONE, Write.FAILED]), back=st.booleans())
    def a_substation_dies(self, name: str, how: Write, back: bool) -> None:
        substation = self.world.substations[name]
        if substation.up:
            self.world.disturbed = True
            substation.crash_while_writing(how)
        if back:
            substation.start()

    @rule(number=WHICH)
    def a_balancer_dies(self, number: int) -> None:
        self.world.disturbed = True
        self.world.crash_balancer(number)

    def _write_all(self) -> None:
        for substation in self.world.substations.values():
            while substation.up and substation.unwritten:
                substation.write()

    # --- time ------------------------------------------------------------------------------------------

    @rule(milliseconds=st.sampled_from([1, 50, 400, 2_500, 6_000]))
    def time_passes(self, milliseconds: int) -> None:
        self.world.pass_time(milliseconds)

    @rule(how_much=st.sampled_from([REMEMBER_MS - 3_000, REMEMBER_MS, REMEMBER_MS + 5_000]))
    def a_day_passes(self, how_much: int) -> None:
        self.world.disturbed = True
        self._write_all()  # no commit takes a day
        self.world.pass_time(how_much)
        for substation in self.world.substations.values():
            if substation.up:
                substation.forget()

    @rule()
    def peace_comes(self) -> None:
        self.world.make_peace()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.make_peace()


def test_two_balancers_that_each_heard_of_one_raise_leave_one_session() -> None:
    """The hole that was in the first design: both sessions were ended as duplicates of one another."""
    world = World()
    for number, name in ((0, "b"), (0, "c"), (1, "a"), (1, "c")):
        world.links[number, name].cut()
    for number in range(BALANCERS):
        world.call(number, "k1", GATEWAYS, 5_000)
        world.pass_time(5)
    for _ in range(3):  # request, reply, answer
        world.turn()
    assert len(world.told) == BALANCERS
    # Each balancer knows one session. One attempt raises both, and each hears of the other session as it was before.
    world.call_with(1, world.call(0, "k1", GATEWAYS, 5_000), 5_000)
    for number, name in ((0, "b"), (1, "a")):
        world.links[number, name].connect()
        world.links[number, name].report()
        world.links[number, name].hear()
    _arrive_and_write(world)
    world.links[0, "a"].hear()
    world.links[1, "b"].hear()
    for balancer in world.balancers:
        balancer.timers()
    assert [packet.what[:12] for packet in world.network].count("EndDuplicate") == BALANCERS
    _arrive_and_write(world)
    assert sum(session.live for session in world.sessions()) == 1
    world.make_peace()


def _arrive_and_write(world: World) -> None:
    packets, world.network = world.network, []
    for packet in packets:
        packet.arrive()
    for substation in world.substations.values():
        substation.write()


_examples = os.environ.get("PROTOCOL_EXAMPLES")
TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(
    max_examples=int(_examples or 200), stateful_step_count=60, deadline=None, derandomize=_examples is None
)
