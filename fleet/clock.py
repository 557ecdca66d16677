"""The fleet's only look at the wall clock. Everything else takes `now`."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)
