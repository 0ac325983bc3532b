"""Where scoring that would hold up the event loop happens: a few threads, a short queue, limits in time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from scoring_service.errors import RequestError

Outcome = tuple[bytes, int] | RequestError
"""The answer's body and its number of predictions, or why there is none."""


def abandoned() -> RequestError:
    """Whoever asked is gone before their turn came: the log says so, and the model is not asked."""
    return RequestError(503, "queue_timeout", "nobody waits for the answer")


class Job:
    """One body to score. ``finish`` is called once, in the event loop."""

    __slots__ = ("body", "finish", "since", "is_wanted", "answered")

    def __init__(self, body: bytes, finish: Callable[[Outcome], None], is_wanted: Callable[[], bool]) -> None:
        self.body = body
        self.finish = finish
        self.is_wanted = is_wanted
        self.since = 0.0
        self.answered = False

    def end(self, outcome: Outcome) -> None:
        """Answer, unless that has happened."""
        if not self.answered:
            self.answered = True
            self.finish(outcome)


class Lane:
    """Runs jobs in ``threads`` threads. ``stuck`` is called when one does not come back though it was told to stop."""

    def __init__(
        self,
        score: Callable[[bytes], tuple[bytes, int]],
        cancel: Callable[[], None],
        stuck: Callable[[], None],
        *,
        threads: int,
        max_queue: int,
        queue_timeout: float,
        timeout: float,
    ) -> None:
        self._score = score
        self._cancel = cancel
        self._stuck = stuck
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._timeout = timeout
        self._threads = threads
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._executor = ThreadPoolExecutor(threads, "model")

    @property
    def is_busy(self) -> bool:
        """Whether jobs run or wait."""
        return bool(self._running or self._waiting)

    def submit(self, job: Job) -> None:
        """Take a job; answers 503 at once when too many wait."""
        if len(self._waiting) >= self._max_queue:
            job.end(RequestError(503, "queue_full", "too many requests wait for the model", retry_after=1))
            return
        job.since = asyncio.get_running_loop().time()
        self._waiting.append(job)
        self._pump()

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._running) < self._threads:
            job = self._waiting.popleft()
            if job.answered or not job.is_wanted():
                job.end(abandoned())
                continue
            job.since = loop.time()
            self._running.add(job)
            self._executor.submit(self._work, loop, job)
        if self._timer is None and self.is_busy:
            self._timer = loop.call_later(min(0.1, self._queue_timeout / 4, self._timeout / 4), self._check)

    def _work(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        try:
            outcome: Outcome = self._score(job.body)
        except RequestError as error:
            outcome = error
        except BaseException as error:  # a thread must give back its place whatever happened
            outcome = RequestError(500, "internal", f"unexpected {type(error).__name__}")
            outcome.__cause__ = error
        loop.call_soon_threadsafe(self._came_back, job, outcome)

    def _came_back(self, job: Job, outcome: Outcome) -> None:
        self._running.discard(job)
        job.end(outcome)
        self._pump()

    def _check(self) -> None:
        """Answer those who waited or ran too long."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and now - self._waiting[0].since > self._queue_timeout:
            message = f"the model was not free within {self._queue_timeout:g} s"
            self._waiting.popleft().end(RequestError(503, "queue_timeout", message, retry_after=1))
        for job in list(self._running):
            if now - job.since > 2 * self._timeout + 1:
                self._running.discard(job)
                self._stuck()
            elif now - job.since > self._timeout and not job.answered:
                message = f"the model took longer than {self._timeout:g} s"
                job.end(RequestError(503, "model_timeout", message, retry_after=1))
                self._cancel()
        self._pump()
