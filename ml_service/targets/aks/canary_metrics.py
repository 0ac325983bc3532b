"""Judge a canary by what both versions' pods counted: failures and latency since it began.

Traffic metrics tell whether the service works. They do not judge the quality of a model: docs/aks.md.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ml_service.config import Settings
from ml_service.errors import UnavailableError, UnhealthyError
from ml_service.http_session import session_for
from ml_service.ports import Progress
from ml_service.targets.aks.client import Cluster, Object
from ml_service.targets.aks.deployment import CANARY, STABLE, read_version
from ml_service.targets.aks.port_forward import PORT, forwarded
from ml_service.targets.aks.tracks import Tracks

BASELINE = "mlops/canary-baseline"
"""The annotation with what the stable pods had counted when the canary began."""

SLOWDOWN = 1.5
"""How much the candidate's 95th percentile may exceed the stable version's; beyond it, chance has to be ruled out."""

_SIGNIFICANCE = 0.01
"""A difference between equal versions is larger than this one with a lower probability: it is no chance."""

_REQUESTS = re.compile(r'^scoring_requests_total\{route="score",status="(\d+)"\} (\S+)$', re.MULTILINE)
_BUCKET = re.compile(r'^scoring_request_duration_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Traffic:
    """Counters of pods: requests without those that a client got wrong (4xx), and the failures (5xx) among them.

    ``buckets`` is the latency histogram of the requests that were scored: cumulative counts by upper bound in seconds.
    """

    requests: float = 0
    failures: float = 0
    buckets: Mapping[float, float] = field(default_factory=dict)

    def __add__(self, other: Traffic) -> Traffic:
        return self._combine(other, 1)

    def __sub__(self, other: Traffic) -> Traffic:
        """Return what was counted since ``other``: everything, when the pod restarted and counts from zero again."""
        since = self._combine(other, -1)
        return self if min(since.requests, since.failures, *since.buckets.values()) < 0 else since

    def _combine(self, other: Traffic, sign: int) -> Traffic:
        buckets = Counter(self.buckets)
        for bound, count in other.buckets.items():
            buckets[bound] += sign * count  # type: ignore[assignment]
        return Traffic(
            self.requests + sign * other.requests, self.failures + sign * other.failures, dict(sorted(buckets.items()))
        )

    @property
    def timed(self) -> float:
        """The number of requests in the histogram."""
        return max(self.buckets.values(), default=0.0)

    def quantile(self, q: float) -> float:
        """Return an estimate of the latency's quantile, in seconds, by linear interpolation inside a bucket."""
        total = self.timed
        lower, below = 0.0, 0.0
        for bound, count in self.buckets.items():
            if total and count >= q * total:
                if math.isinf(bound):
                    return lower
                part = (q * total - below) / (count - below) if count > below else 1.0
                return lower + part * (bound - lower)
            lower, below = bound, count
        return lower

    def slower_than(self, bound: float) -> float:
        """Return how many requests took longer than ``bound`` seconds, which has to be the bound of a bucket."""
        return self.timed - self.buckets.get(bound, 0.0)


def parse(exposition: str) -> Traffic:
    """Read the counters of scoring requests from one pod's /metrics, in the Prometheus text format."""
    by_status = [(int(status), float(count)) for status, count in _REQUESTS.findall(exposition)]
    return Traffic(
        requests=sum(count for status, count in by_status if not 400 <= status < 500),
        failures=sum(count for status, count in by_status if status >= 500),
        buckets={float(bound.replace("+Inf", "inf")): float(count) for bound, count in _BUCKET.findall(exposition)},
    )


def verdict(stable: Traffic, canary: Traffic, least: int) -> tuple[bool | None, str]:
    """Return whether the candidate may take over, or None while undecided, and the reason.

    Args:
        least: how many requests each version must have answered.
    """
    counted = f"{canary.requests:.0f} requests to the candidate, {stable.requests:.0f} to the serving version"
    undecided = f"undecided: {counted}; {least} of each are needed"
    if min(canary.requests, stable.requests) < least:
        return None, undecided
    failed = f"{canary.failures:.0f} against {stable.failures:.0f} failures"
    if _p_value(stable.failures, stable.requests, canary.failures, canary.requests) < _SIGNIFICANCE:
        return False, f"the candidate fails more often: {failed} ({counted})"
    if min(canary.timed, stable.timed) < least:
        return None, undecided
    slow, usual = canary.quantile(0.95), stable.quantile(0.95)
    times = f"95th percentile {1000 * slow:.2f} ms against {1000 * usual:.2f} ms"
    if slow <= SLOWDOWN * usual:
        return True, f"no worse: {times}, {failed} ({counted})"
    # A few requests that had to wait move a percentile far, and inside a bucket it is only an estimate. So
    # significantly more of the candidate's requests must have exceeded a bound at which both versions count.
    bound = max((one for one in canary.buckets.keys() & stable.buckets.keys() if one <= slow), default=0.0)
    if _p_value(stable.slower_than(bound), stable.timed, canary.slower_than(bound), canary.timed) < _SIGNIFICANCE:
        return False, f"the candidate is slower: {times} ({counted})"
    return True, f"slower, but not significantly: {times}, {failed} ({counted})"


def _p_value(stable_hits: float, stable_total: float, canary_hits: float, canary_total: float) -> float:
    """Return the probability of ``canary_hits`` or more if both versions were alike: Fisher's exact test, one-sided."""
    first, second, hits = round(stable_total), round(canary_total), round(stable_hits) + round(canary_hits)
    every = _log_binomial(first + second, hits)
    possible = range(max(round(canary_hits), hits - first), min(second, hits) + 1)
    return sum(math.exp(_log_binomial(second, k) + _log_binomial(first, hits - k) - every) for k in possible)


def _log_binomial(n: int, k: int) -> float:
    """Return the logarithm of the binomial coefficient: factorials themselves would overflow."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def baseline(cluster: Cluster, settings: Settings, key: str) -> str:
    """Return the present counters of each stable pod as JSON, for the annotation BASELINE."""
    counters = _by_pod(cluster, settings, STABLE, key)
    return json.dumps({pod: [one.requests, one.failures, _as_pairs(one.buckets)] for pod, one in counters.items()})


def judge(cluster: Cluster, settings: Settings, canary: Object, key: str, progress: Progress) -> None:
    """Compare what both versions' pods have counted since the canary began.

    Raises:
        UnavailableError: there were too few requests to decide.
        UnhealthyError: the candidate is worse, or one of its pods crashed; it stays a canary.
    """
    _refuse_crashed(cluster, settings, canary)
    stable = _sum(_since_baseline(canary, _by_pod(cluster, settings, STABLE, key)))
    candidate = _sum(_by_pod(cluster, settings, CANARY, key).values())
    accepted, reason = verdict(stable, candidate, settings.aks.canary_min_requests)
    progress(reason)
    if accepted is None:
        raise UnavailableError(
            reason, where="target aks", next_step="wait for more traffic, or lower --min-requests; the canary goes on"
        )
    if not accepted:
        version = read_version(canary)
        raise UnhealthyError(reason, where=f"canary of {version}", next_step="end it: inv rollback --target aks")


def _since_baseline(canary: Object, counters: Mapping[str, Traffic]) -> Iterator[Traffic]:
    """Yield what each pod counted since the canary began: everything for a pod that is younger."""
    raw = json.loads(canary["metadata"]["annotations"].get(BASELINE, "{}"))
    for pod, now in counters.items():
        requests, failures, pairs = raw.get(pod, (0, 0, ()))
        yield now - Traffic(requests, failures, {float(bound): count for bound, count in pairs})


def _refuse_crashed(cluster: Cluster, settings: Settings, canary: Object) -> None:
    """Raise UnhealthyError if a process crashed: its counters are lost, and so are the requests that it worked on."""
    for pod in Tracks(cluster, settings).pods(CANARY):
        if restarts := sum(one.get("restartCount", 0) for one in pod["status"].get("containerStatuses", [])):
            raise UnhealthyError(
                f"pod {pod['metadata']['name']} restarted (restarts: {restarts}), so its process had ended",
                where=f"canary of {read_version(canary)}",
                next_step="see inv logs --target aks, and end it: inv rollback --target aks",
            )


def _as_pairs(buckets: Mapping[float, float]) -> Sequence[tuple[str, float]]:
    return [(str(bound), count) for bound, count in buckets.items()]


def _sum(parts: Iterable[Traffic]) -> Traffic:
    return sum(parts, Traffic())


def _by_pod(cluster: Cluster, settings: Settings, track: str, key: str) -> dict[str, Traffic]:
    pods = [pod for pod in Tracks(cluster, settings).pods(track) if pod["status"].get("phase") == "Running"]
    return {name: _read_counters(cluster, name, key) for pod in pods if (name := pod["metadata"]["name"])}


def _read_counters(cluster: Cluster, pod: str, key: str) -> Traffic:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with forwarded(cluster, pod, PORT) as url, session_for(url) as session:
            response = session.get(f"{url}/metrics", headers=headers, timeout=15)
            response.raise_for_status()
            return parse(response.text)
    except OSError as error:
        raise UnavailableError(
            f"its metrics cannot be read ({error})", where=f"pod {pod}", next_step="see: inv logs --target aks"
        ) from None
