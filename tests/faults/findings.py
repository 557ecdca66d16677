"""What a checker can find."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: which, and what was seen."""

    kind: str
    what: str


LOST, UNANSWERED, WRONG = "lost", "unanswered", "wrong answer"
DOUBLE, DUPLICATE, BACKWARDS = "double", "duplicate without cause", "register went back"
OVER, LEASE, LEAKED = "over the limit", "drew without a lease", "leaked"
RETRIES, SLOW = "too many retries", "slow recovery"
