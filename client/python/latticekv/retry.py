"""How often a failed call is repeated. Everything the client does is idempotent, so it repeats what found the daemon unavailable."""
from __future__ import annotations

import dataclasses
import random
import time

from latticekv.errors import LatticeKVError, UnavailableError


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Gives up after more than `max_errors` failures in a row, waiting between half of a delay and all of it in between."""

    max_errors: int = 5
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 5.0
    multiplier: float = 2.0


class RetryState:
    """The failures of one call."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        """After progress: failures before it no longer count."""
        self._errors = 0
        self._delay = self._policy.initial_backoff_s

    def wait(self, error: LatticeKVError) -> None:
        """Waits before another attempt, or raises `error` when there will be none."""
        self._errors += 1
        if not isinstance(error, UnavailableError) or self._errors > self._policy.max_errors:
            raise error
        time.sleep(self._delay * random.uniform(0.5, 1.0))
        self._delay = min(self._delay * self._policy.multiplier, self._policy.max_backoff_s)
