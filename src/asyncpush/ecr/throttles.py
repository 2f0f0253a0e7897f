"""What a share of refused requests means: a limit that was met, or others who share a quota."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: Answers that a share is judged by, at least: fewer are chance.
_FEWEST = 16
#: Deviations by which a share must be beyond what is borne: answers are looked at often, and each look may err.
_SURE = 3.0
#: And by which it must be beyond what is ever borne.
_RATHER_SURE = 2.5
#: The share of refusals that needs no explanation, and how much more than what is borne it must be.
_MARGIN = 0.05
_MORE = 1.2
#: The largest share that is ever put down to others; beyond it the rate is cut again.
_MOST_BORNE = 0.65

#: Answers after which a count begins again: seconds and answers at least, or at most where some were refused.
_FULL = (1.0, 20)
_FULL_AT_LAST = (30.0, 200)

#: Refusals by which a trial is decided, or as many answers as should bring half as many more.
_DECISIVE = 20
#: What of the share before is refused, at most, where a limit was met, and at least, where it was not.
_LIMIT_BELOW = 0.3
_SHARED_FROM = 0.6
#: How much more than before says that even the lower rate is too high: a burst had hidden it.
_WORSE = 1.5
#: Odds (their logarithm) at which a limit is certain early.
_CERTAIN = 6.0

#: Seconds for which a share is borne without another trial: at first, and at most, as trials confirm it.
_BELIEF = 20.0
_LONGEST_BELIEF = 120.0


@dataclass(slots=True)
class Count:
    """Answers to requests that started after ``began``.

    Attributes:
        began: since when is counted, in seconds.
        started: requests that have started since then.
        answers: those that were answered.
        refused: and refused for their rate.
    """

    began: float
    started: int = 0
    answers: int = 0
    refused: int = 0

    @property
    def share(self) -> float:
        """The share of those refused."""
        return self.refused / self.answers if self.answers else 0.0

    @property
    def low(self) -> float:
        """The share that there is rather surely: a high one has drawn attention, and is chance in part."""
        return max((self.share + self._bound(_SURE)) / 2, _MARGIN)

    def add(self, *, refused: bool) -> None:
        """Count an answer."""
        self.answers += 1
        self.refused += refused

    def exceeds(self, borne: float) -> bool:
        """Whether more are refused than *borne*, the share that is put down to others."""
        return self.answers >= _FEWEST and self._bound(_SURE) > _MARGIN + _MORE * borne

    @property
    def is_too_much(self) -> bool:
        """Whether more are refused than is ever borne."""
        return self._bound(_RATHER_SURE) > _MOST_BORNE

    def is_full(self, now: float) -> bool:
        """Whether to begin again: what was long ago tells little."""
        seconds, answers = now - self.began, self.answers
        if seconds < _FULL[0] or answers < _FULL[1]:
            return False
        return not self.refused or seconds >= _FULL_AT_LAST[0] or answers >= _FULL_AT_LAST[1]

    def _bound(self, deviations: float) -> float:
        """A share that the true one is above, by so many deviations."""
        share, answers = self.share, self.answers
        return share - deviations * math.sqrt(share * (1 - share) / answers + 1 / answers**2)


@dataclass(slots=True)
class Borne:
    """The share of refusals that is put down to others, until it is tried again."""

    share: float = 0.0
    _until: float = -math.inf
    _belief: float = _BELIEF

    def forget(self, now: float) -> None:
        """Bear nothing any more once it was believed for long enough."""
        if now > self._until:
            self.share = 0.0

    def confirm(self, share: float, now: float) -> None:
        """Bear *share* for a while, each time longer."""
        self.share, self._until = share, now + self._belief
        self._belief = min(2 * self._belief, _LONGEST_BELIEF)


class Trial:
    """A lower rate, tried to learn what the refusals at the higher one were: ours, or others'.

    Args:
        rate: the rate at which too many were refused; may be infinite.
        share: the share of them.
        low: the share that there was rather surely.

    Attributes:
        good: requests a second that have succeeded last.
    """

    def __init__(self, rate: float, share: float, low: float) -> None:
        self.good: float | None = None
        self._rate = rate
        self._first = self._share = share
        self._low = min(low, 0.5)

    def verdict(self, count: Count) -> Literal["limit", "shared", "too much"] | None:
        """What the answers at the lower rate say: None while they say nothing yet."""
        share, low = count.share, self._low
        none = 0.15 * low + 0.005
        odds = count.refused * math.log(low / none)
        odds += (count.answers - count.refused) * math.log((1 - low) / (1 - none))
        if odds < -_CERTAIN:
            return "limit"
        if count.is_too_much:
            return "too much"
        if count.refused < _DECISIVE and count.answers < 1.5 * _DECISIVE / low:
            return None
        if share <= _LIMIT_BELOW * low:
            return "limit"
        return "shared" if _SHARED_FROM * low <= share <= _WORSE * self._share else "too much"

    def again(self, share: float) -> None:
        """Try a still lower rate, since *share* was refused at this one."""
        self._share, self._low = share, min(max(share, _MARGIN), 0.9)

    def rate_before(self, share: float) -> float | None:
        """The rate that the first refusals had nothing to do with, if *share* is about theirs."""
        return self._rate if share >= _SHARED_FROM * self._first else None
