"""The benchmark of streams, small: what it plays is what a balancer reads."""

from benchmarks.ingest import hosts, play

STREAMS, RATE, WARM_UP_S, MEASURED_S = 3, 20.0, 0.0, 0.5


def test_every_stream_has_a_connection_and_every_report_an_age() -> None:
    read, sent = play(STREAMS, RATE, WARM_UP_S, MEASURED_S, is_bare=False)
    assert (read.connections, sent.connections) == (STREAMS, STREAMS)
    assert len(read.ages_ms) == read.reports > 0
    assert min(read.cpu_s, sent.cpu_s) > 0


def test_without_a_view_there_is_no_age() -> None:
    read, sent = play(STREAMS, RATE, WARM_UP_S, MEASURED_S, is_bare=True)
    assert (read.connections, sent.connections, read.ages_ms) == (STREAMS, STREAMS, [])
    assert read.reports > 0


def test_every_substation_has_an_address_of_its_own() -> None:
    assert len(set(hosts(70_000))) == 70_000
