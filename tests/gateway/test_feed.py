"""What happened, kept for readers that come again: none twice, none missed without a word."""

from gateway.feed import RECENT, Feed


def a_feed(keep: int = 10, things: int = 0) -> Feed[int]:
    feed: Feed[int] = Feed("e", keep, lambda what: b"data: %d\n" % what)
    for number in range(1, things + 1):
        feed.add(number)
    return feed


def said(block: bytes) -> list[str]:
    """Each event in a line, without what its fields are called."""
    return [
        " ".join(line.partition(": ")[2] for line in each.split("\n")) for each in block.decode().split("\n\n")[:-1]
    ]


def test_a_reader_is_told_each_thing_once_and_in_order() -> None:
    feed = a_feed(things=2)
    at, first = feed.begin("")
    assert (at, first) == (0, b"")
    assert said(feed.after(at)) == ["e-1 1", "e-2 2"]
    assert feed.after(2) == b""
    feed.add(3)
    assert said(feed.after(2)) == ["e-3 3"]


def test_who_comes_again_goes_on_where_it_was() -> None:
    at, first = a_feed(things=5).begin("e-3")
    assert (at, first) == (3, b"")


def test_who_was_away_for_too_long_is_told_how_much_it_missed() -> None:
    feed = a_feed(keep=3, things=8)
    at, first = feed.begin("e-2")
    assert said(first + feed.after(at)) == ['e-5 gap {"missed":3}', "e-6 6", "e-7 7", "e-8 8"]


def test_an_id_of_another_life_or_of_nothing_is_a_gap_of_unknown_size() -> None:
    feed = a_feed(things=2)
    for strange in ("other-1", "e-3", "e-", "7", "é-1", "e-1\n"):
        at, first = feed.begin(strange)
        assert (at, said(first)) == (0, ["e-0 gap {}"]), strange


def test_a_new_reader_begins_with_the_last_of_them() -> None:
    feed = a_feed(keep=1_000, things=RECENT + 7)
    at, _ = feed.begin("")
    assert at == 7
    assert len(said(feed.after(at))) == RECENT


def test_what_is_kept_is_bounded_and_encoded_only_when_it_is_read() -> None:
    encoded: list[int] = []

    def encode(what: int) -> bytes:
        encoded.append(what)
        return b"data: %d\n" % what

    feed: Feed[int] = Feed("e", 3, encode)
    for number in range(1, 100):
        feed.add(number)
    assert encoded == []
    assert feed.after(97) == feed.after(97)
    assert len(said(feed.after(0))) == 1 + 3
    assert encoded == [98, 99, 97], "each is encoded once"
