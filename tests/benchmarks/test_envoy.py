"""What the comparison with Envoy rests on, all but Envoy itself: client, judge, configuration, and our side of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from benchmarks import arms, closed_loop, envoy, envoy_proxy, envoy_tables, ledgers, loads
from benchmarks.closed_loop import BadReplyError, Reply
from benchmarks.envoy import Kind
from benchmarks.ledgers import Kept
from benchmarks.loads import Asked, Time, Told
from gridmesh.v1 import charging_pb2

BODY = b'{"session": "0\r\n\r\n"}'
WITH_LENGTH = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x;x=y\r\n%s\r\n0\r\n\r\n" % (
    BODY[:5],
    len(BODY) - 5,
    BODY[5:],
)
SECONDS = 0.3


# --- the client -------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [WITH_LENGTH, IN_CHUNKS])
def test_a_reply_is_whole_with_its_last_byte(raw: bytes) -> None:
    assert [closed_loop.is_whole(raw[:end]) for end in range(len(raw))] == [False] * len(raw)
    assert closed_loop.is_whole(raw)
    assert Reply(0, 0.0, 0.0, raw).body == BODY


@pytest.mark.parametrize("raw", [WITH_LENGTH * 2, IN_CHUNKS * 2, b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_is_not_one_reply_with_a_length_is_refused(raw: bytes) -> None:
    with pytest.raises(BadReplyError):
        closed_loop.is_whole(raw)


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's body: in chunks on every second connection, and in two writes."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        if self.client_address[1] % 2:
            self.send_header("transfer-encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        else:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:3])
        self.wfile.write(body[3:])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def echoing() -> Iterator[tuple[str, int]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_each_connection_asks_again_when_it_was_answered() -> None:
    def request(number: int) -> bytes:
        return b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\n%08d" % number

    with echoing() as address:
        made = closed_loop.run(address, request, in_flight=8, for_s=SECONDS, first=100)
    assert all(reply.body == b"%08d" % reply.number for reply in made.replies)
    assert sorted(reply.number for reply in made.replies) == list(range(100, 100 + len(made.replies)))
    assert sum(reply.came_s >= made.ends_s for reply in made.replies) == 8
    assert len(made.replies) > 16


# --- the judge --------------------------------------------------------------------------------------


def asked(*told: Told) -> Asked:
    return Asked([Time(0.0, 0.1)] * len(told), 0.0, 1.0, 1, lambda: iter(told))


def kept(session_id: str, request_id: str, started_ms: int = 0, ended_ms: int = 100) -> Kept:
    return Kept(session_id, request_id, 11_000, started_ms, ended_ms)


def test_replies_that_the_ledgers_bear_out_pass() -> None:
    envoy.check(asked(Told("r-2", "b.2"), Told("r-1", "a.1")), [kept("a.1", "r-1"), kept("b.2", "r-2")])


@pytest.mark.parametrize(
    ("told", "held"),
    [
        ([Told("r-1", "a.1")], []),
        ([Told("r-1", "a.1")], [kept("a.1", "r-1"), kept("b.1", "r-1")]),
        ([Told("r-1", "a.1"), Told("r-2", "a.1")], [kept("a.1", "r-1")]),
        ([Told("r-1", "a.1")], [kept("a.1", "r-2")]),
    ],
    ids=["lost", "double", "one session for two", "another's"],
)
def test_replies_that_the_ledgers_do_not_bear_out_fail(told: list[Told], held: list[Kept]) -> None:
    with pytest.raises(AssertionError):
        envoy.check(asked(*told), held)


def test_the_most_that_lived_at_once_are_counted() -> None:
    sessions = [kept("a.1", "1", 0, 100), kept("a.2", "2", 50, 150), kept("a.3", "3", 100, 200)]
    assert ledgers.peak_live(sessions) == 2


def test_equal_loads_have_no_spread_and_one_of_two_has_all() -> None:
    lasting = [kept("a.1", str(at), at, 1000) for at in range(0, 1000, 100)]
    assert ledgers.spread({"a": lasting, "b": lasting}) == 0
    assert ledgers.spread({"a": lasting, "b": []}) == 1


# --- Envoy's side, as far as it goes without Envoy ---------------------------------------------------


def test_envoy_is_told_of_every_substation_and_of_the_contract(tmp_path: Path) -> None:
    contract = tmp_path / "contract.binpb"
    envoy_proxy.descriptors(contract)
    files = FileDescriptorSet.FromString(contract.read_bytes()).file
    services = {f"{file.package}.{service.name}" for file in files for service in file.service}
    assert envoy_proxy.SERVICE in services
    assert "google/rpc/status.proto" in {file.name for file in files}
    config = envoy_proxy.configuration(envoy_proxy.Proxy(1, 2, 3), ["127.0.0.1:11", "127.0.0.1:12"], contract)
    text = json.dumps(config)
    assert all(f'"port_value": {port}' in text for port in (1, 2, 3, 11, 12))
    assert str(contract) in text


def test_both_sides_are_asked_the_same() -> None:
    car = loads._car(0.02)
    ours, theirs = (loads._single(car, by_transcoder=it)(7).partition(b"\r\n\r\n") for it in (False, True))
    for head, _, body in (ours, theirs):
        assert f"content-length: {len(body)}".encode() in head
    # The transcoder reads JSON as protobuf does.
    request = json_format.Parse(theirs[2], charging_pb2.ChargeRequest())
    assert request.request_id == loads.key(7)
    assert b"idempotency-key: charge-000000000007" in ours[0]
    assert json.loads(theirs[2]) == {"request_id": loads.key(7), **json.loads(ours[2])}


# --- our side ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [loads.http_single, loads.http_batch, loads.grpc_single, loads.grpc_batch])
def test_a_cell_of_ours_is_measured_and_borne_out(load: loads.Load, ours: arms.Arm) -> None:
    record = envoy.measure(ours, Kind("some", load, ()), in_flight=2, for_s=SECONDS)
    assert record["charges"] > 0
    assert set(record["cpu"]) == {"gateway", "balancer", "substations"}
    assert 0 < record["live"] <= record["charges"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[arms.Arm]:
    with arms.running(arms.OURS, tmp_path_factory.mktemp("ours")) as arm:
        yield arm


def test_a_bare_server_keeps_as_much_as_a_substation(tmp_path: Path) -> None:
    with arms.direct(tmp_path) as (station, bare):
        records = [envoy.measure(arm, envoy.TABLES["direct"][0], 2, SECONDS) for arm in (station, bare)]
        last = [arm.ledgers.row(arm.ledgers._seen["a"]) for arm in (station, bare)]
    assert [list(record["cpu"]) for record in records] == [["substations"], ["bare server"]]
    assert all(record["charges"] > 0 for record in records)
    # But for a byte or so: whole numbers are as long as they are large.
    assert len(last[0]) == pytest.approx(len(last[1]), abs=8)


# --- tables -----------------------------------------------------------------------------------------


def cell(arm: str, number: int, per_second: float, cpu: dict[str, float]) -> envoy.Record:
    of = {"table": "http", "round": number, "load": "one charge", "in_flight": 16, "arm": arm}
    took = {"per_second": per_second, "p50_ms": 1.0, "p99_ms": 2.0}
    beside = {"client_cpu": 0.2, "rss_mb": dict.fromkeys(cpu, 60.0), "live": 40, "cv": 0.1}
    return {**of, **took, "cpu": cpu, **beside}


def test_tables_tell_medians_and_each_rounds_ratio() -> None:
    ours = [cell("ours", at, 300 + at, {"gateway": 2.0, "balancer": 2.0, "substations": 6.0}) for at in range(3)]
    theirs = [cell("Envoy", at, 600, {"envoy": 1.0, "substations": 4.0}) for at in range(3)]
    shown = envoy_tables.show([*ours, *theirs])
    assert "| one charge | 16 | ours | 301 (300 to 302) |" in shown
    assert (
        "| one charge | 16 | ours | 0.50 (0.50, 0.50, 0.50) | 2.00 (2.00, 2.00, 2.00) | 4.00 (4.00, 4.00, 4.00) |"
        in shown
    )
