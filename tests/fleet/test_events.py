"""Server-sent events, however the bytes come."""

import json

import pytest

from fleet.events import Event, Parser

FIRST = 'event: session\nid: 7\ndata: {"a":"ü\u2028"}\n\n'
STREAM = f"{FIRST}: still here\n\ndata: 1\n\nevent: end\nid: 8\ndata: {{}}\n\n".encode()
EVENTS = [Event("session", {"a": "ü\u2028"}, "7"), Event("message", 1), Event("end", {}, "8")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    parser = Parser()
    found = [event for at in range(0, len(STREAM), size) for event in parser.feed(STREAM[at : at + size])]
    assert found == EVENTS


def test_an_event_that_is_not_complete_is_none() -> None:
    assert Parser().feed(STREAM[:-1]) == EVENTS[:-1]


def test_data_that_is_no_json_is_an_error() -> None:
    with pytest.raises(json.JSONDecodeError):
        Parser().feed(b"data: <html>\n\n")
