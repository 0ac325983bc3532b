"""One thread for scoring that would block the event loop, with a bounded queue and timeouts."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from scoring_service.errors import RequestError
from scoring_service.latency import LatencyEstimate

Outcome = tuple[bytes, int] | RequestError
"""The response body and its number of predictions, or the error."""


def abandoned() -> RequestError:
    """Return the error of a request whose client disconnected before its turn. It is logged, and not scored."""
    return RequestError(503, "queue_timeout", "the client disconnected before the model was free")


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
        """Call ``finish``, unless that has happened."""
        if not self.answered:
            self.answered = True
            self.finish(outcome)


class ThreadExecutor:
    """Run jobs one after the other in one thread.

    A job waits at most ``queue_timeout`` seconds for the thread. After ``timeout`` seconds in the thread its client is
    answered and ``cancel`` is called. A job that still runs after twice that time makes the executor call ``on_stuck``:
    Python cannot stop a thread, so the worker has to end.
    """

    def __init__(
        self,
        score: Callable[[bytes], tuple[bytes, int]],
        cancel: Callable[[], None],
        on_stuck: Callable[[], None],
        *,
        max_queue: int,
        queue_timeout: float,
        timeout: float,
    ) -> None:
        self.latency = LatencyEstimate()
        self._score = score
        self._cancel = cancel
        self._on_stuck = on_stuck
        self._max_queue = max_queue
        self._queue_timeout = queue_timeout
        self._timeout = timeout
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, "model")

    def score(self, body: bytes) -> tuple[bytes, int]:
        """Score in the calling thread, and add its processor time to the estimate.

        Raises:
            RequestError: the request is invalid, or the model failed.
        """
        started = time.thread_time()
        try:
            return self._score(body)
        finally:
            self.latency.add_thread_sample(len(body), time.thread_time() - started)

    def submit(self, job: Job) -> None:
        """Queue a job. It ends with 503 at once if the queue is full."""
        if len(self._waiting) >= self._max_queue:
            job.end(RequestError(503, "queue_full", "too many requests wait for the model", retry_after=1))
            return
        job.since = asyncio.get_running_loop().time()
        self._waiting.append(job)
        self._start_next()

    def _start_next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._running is None:
            job = self._waiting.popleft()
            if job.answered or not job.is_wanted():
                job.end(abandoned())
                continue
            job.since = loop.time()
            self._running = job
            self._thread.submit(self._work, loop, job)
        if self._timer is None and (self._running or self._waiting):
            self._timer = loop.call_later(min(0.1, self._queue_timeout / 4, self._timeout / 4), self._check_timeouts)

    def _work(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        try:
            outcome: Outcome = self.score(job.body)
        except RequestError as error:
            outcome = error
        except BaseException as error:  # whatever happens, the thread must become free again
            outcome = RequestError(500, "internal", f"unexpected {type(error).__name__}")
            outcome.__cause__ = error
        loop.call_soon_threadsafe(self._on_done, job, outcome)

    def _on_done(self, job: Job, outcome: Outcome) -> None:
        if self._running is job:
            self._running = None
        job.end(outcome)
        self._start_next()

    def _check_timeouts(self) -> None:
        """End the jobs that have waited or run for too long."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting and now - self._waiting[0].since > self._queue_timeout:
            message = f"the model was not free within {self._queue_timeout:g} s"
            self._waiting.popleft().end(RequestError(503, "queue_timeout", message, retry_after=1))
        job = self._running
        if job is not None and now - job.since > 2 * self._timeout + 1:
            self._running = None
            self._on_stuck()
        elif job is not None and now - job.since > self._timeout and not job.answered:
            message = f"the model took longer than {self._timeout:g} s"
            job.end(RequestError(503, "model_timeout", message, retry_after=1))
            self._cancel()
        self._start_next()
