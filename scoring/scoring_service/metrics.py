"""Counters in memory that all workers share, and their exposition in Prometheus' text format.

Each worker has its own range of one anonymous mapping that the supervisor made. A worker that exits leaves its numbers
there, and its successor adds to them. A counter costs one 8-byte addition.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator, Sequence

ROUTES = ("score", "root", "live", "ready", "swagger", "metrics", "model", "other")
STATUSES = (200, 400, 401, 404, 405, 408, 413, 414, 415, 417, 431, 500, 501, 503, 505)
CODES = (
    "wrong_type",
    "out_of_range",
    "no_rows",
    "too_many_rows",
    "wrong_shape",
    "wrong_width",
    "unknown_column",
    "missing_column",
    "not_utf8",
    "too_deep",
    "not_json",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "unsupported_media_type",
    "body_too_large",
    "unexpected_body",
    "header_too_large",
    "target_too_long",
    "bad_request",
    "request_timeout",
    "queue_full",
    "queue_timeout",
    "model_timeout",
    "too_many_bodies",
    "too_many_connections",
    "draining",
    "model_failed",
    "internal",
)
BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds of the latency histogram, in seconds."""

GAUGES = ("ready", "heartbeat", "connections", "in_flight", "pid")
COUNTERS = ("rows", "latency_sum", "log_lines_dropped", "restarts", "key_reloads")

_REQUESTS = 0
_ERRORS = _REQUESTS + len(ROUTES) * len(STATUSES)
_LATENCY = _ERRORS + len(CODES)
_COUNTERS = _LATENCY + len(BUCKETS) + 1
_GAUGES = _COUNTERS + len(COUNTERS)
_SIZE = _GAUGES + len(GAUGES)

_ROUTE_INDEX = {route: _REQUESTS + i * len(STATUSES) for i, route in enumerate(ROUTES)}
_STATUS_INDEX = {status: i for i, status in enumerate(STATUSES)}
_CODE_INDEX = {code: _ERRORS + i for i, code in enumerate(CODES)}
_NAMED = {name: _COUNTERS + i for i, name in enumerate(COUNTERS + GAUGES)}


class SharedMetrics:
    """The numbers of ``workers`` workers. It is made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, workers * _SIZE * 8)).cast("d")
        starts = range(0, workers * _SIZE, _SIZE)
        self.workers = [WorkerMetrics(self._memory[slice(start, start + _SIZE)]) for start in starts]

    def total(self, index: int) -> float:
        """Return one number, summed over the workers."""
        return sum(self._memory[index::_SIZE])

    def exposition(self, name: str, version: str, package: str) -> bytes:
        """Return all numbers in Prometheus' text format 0.0.4."""
        return ("\n".join(self._lines(name, version, package)) + "\n").encode()

    def _lines(self, name: str, version: str, package: str) -> Iterator[str]:
        yield from _head("scoring_model_info", "gauge", "The model that answers.")
        labels = f'name="{_escaped(name)}",version="{_escaped(version)}",package_sha256="{_escaped(package)}"'
        yield f"scoring_model_info{{{labels}}} 1"
        yield from _head("scoring_requests_total", "counter", "Requests answered, by route and status.")
        for route, start in _ROUTE_INDEX.items():
            for status, offset in _STATUS_INDEX.items():
                if count := self.total(start + offset):
                    yield f'scoring_requests_total{{route="{route}",status="{status}"}} {count:.0f}'
        yield from _head("scoring_errors_total", "counter", "Requests refused or failed, by code.")
        for code, index in _CODE_INDEX.items():
            if count := self.total(index):
                yield f'scoring_errors_total{{code="{code}"}} {count:.0f}'
        yield from self._histogram()
        yield from self._simple("scoring_rows_total", "counter", "Rows answered.", "rows")
        yield from self._simple(
            "scoring_in_flight_requests", "gauge", "Requests waiting for or in the model's thread.", "in_flight"
        )
        yield from self._simple("scoring_connections", "gauge", "Open connections.", "connections")
        yield from self._simple("scoring_workers_ready", "gauge", "Workers that serve.", "ready")
        yield from self._simple("scoring_worker_restarts_total", "counter", "Workers lost and replaced.", "restarts")
        yield from self._simple("scoring_key_reloads_total", "counter", "New keys, read by a worker.", "key_reloads")
        yield from self._simple(
            "scoring_log_lines_dropped_total", "counter", "Log lines that nobody read in time.", "log_lines_dropped"
        )

    def _simple(self, metric: str, kind: str, text: str, field: str) -> Iterator[str]:
        yield from _head(metric, kind, text)
        yield f"{metric} {self.total(_NAMED[field]):.0f}"

    def _histogram(self) -> Iterator[str]:
        metric = "scoring_request_duration_seconds"
        yield from _head(metric, "histogram", "From the last byte of a scoring request to its answer.")
        count = 0.0
        for i, bound in enumerate((*map(str, BUCKETS), "+Inf")):
            count += self.total(_LATENCY + i)
            yield f'{metric}_bucket{{le="{bound}"}} {count:.0f}'
        yield f"{metric}_sum {self.total(_NAMED['latency_sum']):.6f}"
        yield f"{metric}_count {count:.0f}"


class WorkerMetrics:
    """The numbers of one worker. Only that worker writes them while it runs."""

    def __init__(self, memory: memoryview[float]) -> None:
        self._memory = memory

    def answered(self, route: str, status: int) -> None:
        """Count a request."""
        self._memory[_ROUTE_INDEX[route] + _STATUS_INDEX[status]] += 1

    def scored(self, seconds: float, rows: int) -> None:
        """Count a scoring request's latency and its ``rows`` predictions."""
        memory = self._memory
        memory[_LATENCY + bisect_left(BUCKETS, seconds)] += 1
        memory[_NAMED["latency_sum"]] += seconds
        memory[_NAMED["rows"]] += rows

    def failed(self, code: str) -> None:
        """Count an error."""
        self._memory[_CODE_INDEX[code]] += 1

    def add(self, name: str, amount: float = 1) -> None:
        """Add to one of COUNTERS or GAUGES."""
        self._memory[_NAMED[name]] += amount

    def set(self, name: str, value: float) -> None:
        """Set one of GAUGES."""
        self._memory[_NAMED[name]] = value

    def get(self, name: str) -> float:
        """Read one of COUNTERS or GAUGES."""
        return self._memory[_NAMED[name]]

    def reset_gauges(self) -> None:
        """Reset the gauges of a worker that has exited. Its counters stay."""
        for name in GAUGES:
            self.set(name, 0)


def _head(metric: str, kind: str, text: str) -> Sequence[str]:
    return f"# HELP {metric} {text}", f"# TYPE {metric} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
