"""The target on a Kubernetes cluster: rolling updates by server-side apply, and canaries. See docs/aks.md."""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from ml_service.common import keys as key_file
from ml_service.common.package_store import PackageStore
from ml_service.config import Settings
from ml_service.config.scoring import requires_key
from ml_service.errors import MlopsError, UnavailableError, UnhealthyError, UsageError
from ml_service.images import signing
from ml_service.ports import Action, Endpoint, Finding, Keys, Plan, Progress, Release, Status, Step, Verify
from ml_service.targets.aks import canary as canaries
from ml_service.targets.aks import credentials, lease, permissions
from ml_service.targets.aks.client import Cluster, Conflict, Object
from ml_service.targets.aks.deployment import (
    CANARY,
    CANDIDATE,
    PREVIOUS,
    STABLE,
    Version,
    deployment,
    read_version,
    supporting,
    track_name,
)
from ml_service.targets.aks.ingress import Entrance
from ml_service.targets.aks.manifests import difference
from ml_service.targets.aks.port_forward import forwarded
from ml_service.targets.aks.rollout import Rollout, is_half_way, last_lines, shortfall

_HERE = "target aks"
_PORT = 8080
_APPS = ("apps/v1", "Deployment")


class AksTarget:
    """The Target port on Kubernetes. All state is in the cluster; MLOPS_HOME keeps copies of packages for smoke."""

    name = "aks"
    needs_image = True
    needs_registry = True

    def __init__(self, settings: Settings, cluster: Cluster | None = None) -> None:
        self._settings = settings
        self._aks = settings.aks
        self._connected = cluster
        self._packages = PackageStore(settings.home / "targets" / "aks" / settings.aks.name / "packages")

    @functools.cached_property
    def _cluster(self) -> Cluster:
        return self._connected or credentials.connect(self._settings)

    @functools.cached_property
    def _entrance(self) -> Entrance:
        return Entrance(self._cluster, self._settings)

    # The port.

    def plan(self, release: Release, *, canary_percent: int | None = None) -> Plan:
        """See Target 1. The server itself says what would change (dry run), and who else owns it."""
        signing.check(self._settings, release)
        wanted = Version.of(release, self._settings)
        self._refuse_during_canary()
        left = self._left_canary_steps()
        if canary_percent is not None:
            return Plan(self.name, release, left + self._canary_steps(wanted, canary_percent), canary_percent)
        return Plan(self.name, release, left + self._steps(wanted))

    def apply(self, plan: Plan, verify: Verify, progress: Progress) -> Status:
        """See Target 2, 3 and 4."""
        if plan.steps:
            wanted = Version.of(plan.release, self._settings)
            signing.check(self._settings, plan.release)
            self._packages.add(plan.release)
            with self._changing(progress):
                self._refuse_during_canary()
                if self._canary() is not None:
                    self._end_canary(progress)
                if plan.canary_percent is not None:
                    self._start_canary(wanted, plan.canary_percent, verify, progress)
                else:
                    self._perform(plan, wanted, verify, progress)
            self._forget_packages()
        return self._serving()

    def endpoint(self) -> Endpoint:
        """See Target 7."""
        stable = read_version(self._stable())
        if stable is None:
            raise _nothing_deployed()
        return Endpoint(self._entrance.url(wait=0), self._key(stable))

    def status(self) -> Status | None:
        """See Target 5."""
        stable = self._stable()
        version, previous = read_version(stable), read_version(stable, PREVIOUS)
        if stable is None or version is None:
            return None
        return Status(
            target=self.name,
            url=self._entrance.url(wait=0),
            model=version.model,
            build_id=version.build_id,
            package=str(self._packages.path(version.package_sha256)),
            package_sha256=version.package_sha256,
            image_digest=version.digest,
            since=version.since,
            previous=previous.model if previous else None,
            state=self._state(stable),
        )

    def rollback(self, verify: Verify, progress: Progress) -> Status:
        """See Target 5. During a canary it removes the candidate; else it brings back the version before."""
        with self._changing(progress):
            if self._canary() is not None:
                self._end_canary(progress)
                return self._serving()
            previous = read_version(self._stable(), PREVIOUS)
            if previous is None:
                raise UsageError(
                    "there is no version before to go back to", where=_HERE, next_step="see: inv status --target aks"
                )
            self._deploy(previous, None, verify, progress)
        self._forget_packages()
        return self._serving()

    def promote(self, progress: Progress) -> Status:
        """See Target 5. The candidate takes all traffic when its metrics are no worse than those of the other one."""
        with self._changing(progress):
            running = self._canary()
            version = read_version(running)
            if running is None or version is None or not _is_ready(running):
                raise UsageError(
                    "there is no canary to promote", where=_HERE, next_step="run: inv deploy --target aks --canary 10"
                )
            canaries.judge(self._cluster, self._settings, running, self._key(version), progress)
            self._replace_stable(version, read_version(self._stable()), progress)
            self._end_canary(progress)
        self._forget_packages()
        return self._serving()

    def undeploy(self, progress: Progress) -> None:
        """See Target 6. What the pods said stays wherever the cluster collects logs."""
        with self._changing(progress):
            progress("removing everything that belongs to the deployment")
            for track in (CANARY, CANDIDATE, STABLE):
                self._cluster.delete(*_APPS, track_name(self._settings, track))
            self._remove_surroundings()
            self._cluster.delete("v1", "Secret", self._secret_name)
            self._wait_until_gone(progress)
            self._packages.keep_only(())

    def logs(self, lines: int) -> Sequence[str]:
        """See Target 7: of all pods by time, each line with its pod."""
        if lines <= 0:
            return []
        mask = self._mask()
        names = [pod["metadata"]["name"] for pod in self._pods()]
        logs = {name: self._cluster.log(name, lines, stamped=True) for name in names}
        found = [(name, *line.partition(" ")) for name, said in logs.items() for line in said]
        found.sort(key=lambda one: _moment(one[1]))
        return [f"{name} {mask(text)}" for name, _, _, text in found[-lines:]]

    def keys(self) -> Keys:
        """See Target 7."""
        if self._stable() is None:
            raise _nothing_deployed()
        return self._read_keys()

    def diagnose(self) -> Sequence[Finding]:
        """Whether the cluster answers, what it serves, and whether we may change what a deployment changes."""
        try:
            cluster = self._cluster
            versions = [api for api in ("autoscaling/v2", "policy/v1") if cluster.serves(api)]
            self._around(self._replica_range())
            weights = self._entrance.diagnose()
            route = self._entrance.route if all(finding.ok for finding in weights) else None
            rights = permissions.missing(cluster, *((route.kind, route.namespace) if route else ()))
        except MlopsError as error:
            return [Finding("cluster", False, str(error.what), error.next_step)]
        return [
            Finding("cluster", True, f"{cluster.address} answers; serves {', '.join(versions) or 'older groups only'}"),
            Finding("rights", not rights, f"missing: {', '.join(rights)}" if rights else "enough", "see docs/aks.md"),
            *weights,
        ]

    # The steps of a deployment.

    def _steps(self, wanted: Version) -> list[Step]:
        stable = self._stable()
        current = read_version(stable)
        steps = [step for body in self._surroundings() if (step := self._step(body))]
        steps += [Step(Action.DELETE, f"{one.kind} {one.name}: {one.why}") for one in self._entrance.leftovers()]
        if self._cluster.get("v1", "Secret", self._secret_name) is None:
            steps.append(Step(Action.CREATE, f"Secret {self._secret_name}, with two new keys"))
        same = wanted.same_as(current)
        assert current is not None or not same
        shown = current if same and current else wanted
        change = self._step(deployment(self._settings, shown, STABLE, _before(wanted, stable)))
        if change:
            who = f"{wanted} in a pod of its own, which serves nobody"
            steps += [Step(Action.START, who), Step(Action.VERIFY, f"{wanted} in that pod"), change]
        elif stable and (missing := shortfall(stable, self._aks.min_replicas)):
            steps.append(Step(Action.RESTORE, f"Deployment {self._aks.name}: {missing} {shown}"))
        return steps

    def _step(self, body: Object) -> Step | None:
        kind, name = body["kind"], body["metadata"]["name"]
        before = self._cluster.get(body["apiVersion"], kind, name)
        after = self._cluster.apply(body, dry_run=True, force=self._aks.take_over)
        diff = difference(before, after)
        return Step(Action.CHANGE if before else Action.CREATE, f"{kind} {name}", diff) if diff else None

    def _canary_steps(self, wanted: Version, percent: int) -> list[Step]:
        stable = self._stable()
        current = read_version(stable)
        if stable is None or current is None:
            raise UsageError(
                "nothing serves yet that a canary could stand beside",
                where="--canary",
                next_step="run: inv deploy --target aks",
            )
        if wanted.same_as(current):
            return []
        share, route = self._share(percent, stable), self._entrance.route
        goes = f"{share.percent:.1f} % of the traffic goes to {wanted}"
        return [
            Step(Action.START, f"{wanted} in a pod of its own, which serves nobody"),
            Step(Action.VERIFY, f"{wanted} in that pod"),
            Step(Action.CREATE, f"Deployment {track_name(self._settings, CANARY)}: {share.canary} pods of {wanted}"),
            Step(Action.CHANGE, f"{route}: {goes}")
            if route
            else Step(Action.SCALE, f"{current} to {share.stable} pods: {goes}"),
        ]

    def _share(self, percent: int, stable: Object) -> canaries.Share:
        """By weights where a route has them, else by numbers of pods."""
        if self._entrance.route:
            return canaries.weighted(percent, stable["spec"].get("replicas", 1), self._aks)
        return canaries.share(percent, self._aks)

    def _perform(self, plan: Plan, wanted: Version, verify: Verify, progress: Progress) -> None:
        """What the plan says and no more: a new Ingress, say, is no reason to replace pods."""
        stable, actions = self._stable(), [step.action for step in plan.steps]
        if "verify" in actions:
            return self._deploy(wanted, _before(wanted, stable), verify, progress)
        if not wanted.same_as(read_version(stable)):
            raise UnavailableError(
                "another deployment changed what serves since this one was planned",
                where=_HERE,
                next_step="look at inv status --target aks, and run the command again",
            )
        self._prepare()
        if "restore" in actions:
            self._restore(progress)

    def _restore(self, progress: Progress) -> None:
        """End what a killed deployment left half done, or bring back pods that are gone.

        Half a rollout that cannot be ended is taken back, as the killed deployment would have done.
        """
        before = self._stable()
        assert before is not None
        version = read_version(before)
        progress(f"waiting until all pods hold {version}")
        try:
            self._wait_for_stable(self._with_minimum(before), str(version), progress)
        except BaseException:
            if is_half_way(before):
                progress("going back to the version before")
                self._put_back(before)
            raise

    def _with_minimum(self, body: Object) -> Object:
        """The autoscaler brings no pod back where there is none, and takes its time where there are too few."""
        least = self._aks.min_replicas
        if body["spec"].get("replicas", 1) < least:
            self._cluster.scale(body["metadata"]["name"], least)
            return {**body, "spec": {**body["spec"], "replicas": least}}
        return body

    def _deploy(self, wanted: Version, previous: Version | None, verify: Verify, progress: Progress) -> None:
        """Ask ``wanted`` in a pod of its own, then replace what serves, pod by pod."""
        self._prepare()
        current = read_version(self._stable())
        try:
            self._question(wanted, verify, progress)
            self._replace_stable(wanted, previous, progress)
        finally:
            self._cluster.delete(*_APPS, track_name(self._settings, CANDIDATE))
            if current is None and read_version(self._stable()) is None:
                self._remove_surroundings()
        progress(f"{wanted} serves")

    def _prepare(self) -> None:
        """Everything around the Deployments; what is as it should be stays as it is."""
        leftovers = self._entrance.leftovers()
        for body in self._surroundings():
            self._cluster.apply(body, force=self._aks.take_over)
        self._entrance.clear(leftovers)
        with suppress(Conflict):
            if self._cluster.get("v1", "Secret", self._secret_name) is None:
                self._cluster.create(self._new_secret())

    def _question(self, wanted: Version, verify: Verify, progress: Progress) -> None:
        progress(f"starting {wanted} in a pod of its own")
        body = self._cluster.apply(deployment(self._settings, wanted, CANDIDATE), force=True)
        rollout = Rollout(self._cluster, body, self._mask())
        rollout.wait(str(wanted), self._aks.startup_timeout, progress)
        pod = rollout.pods()[0]["metadata"]["name"]
        with forwarded(self._cluster, pod, _PORT) as url:
            progress(f"{wanted} is ready; questioning pod {pod}")
            try:
                verify(Endpoint(url, self._key(wanted)), self._packages.find(wanted.package_sha256))
            except Exception as error:
                if isinstance(error, MlopsError) and not isinstance(error, UnhealthyError):
                    raise
                why = error.what if isinstance(error, MlopsError) else f"{type(error).__name__}: {error}"
                lines = "".join(f"\n  | {self._mask()(line)}" for line in last_lines(self._cluster, pod, 15))
                raise UnhealthyError(
                    f"{wanted} was up, but did not pass: {why}\nlast that it said:{lines or ' nothing'}",
                    where=_HERE,
                    next_step="what served before still serves",
                ) from error

    def _replace_stable(self, wanted: Version, previous: Version | None, progress: Progress) -> None:
        before = self._stable()
        body = deployment(self._settings, wanted.serving_now(), STABLE, previous)
        applied = self._with_minimum(self._cluster.apply(body, force=self._aks.take_over))
        progress(f"rolling {wanted} out")
        rollout = Rollout(self._cluster, applied, self._mask())
        try:
            rollout.wait(str(wanted), self._rollout_timeout(applied), progress)
            pods = _names(rollout.pods())
            self._entrance.wait(lambda led: bool(led) and all(self._is_canary(pod) for pod in led - pods))
        except BaseException:
            progress("going back to the version before")
            self._put_back(before)
            raise

    def _is_canary(self, pod: str) -> bool:
        return pod.startswith(f"{track_name(self._settings, CANARY)}-")

    def _put_back(self, before: Object | None) -> None:
        """The Deployment as it was. Its pods were never all gone, so this is quick."""
        current, previous = _held_by_all(before)
        if current is None:
            self._cluster.delete(*_APPS, track_name(self._settings, STABLE))
        else:
            self._cluster.apply(deployment(self._settings, current, STABLE, previous), force=True)

    def _rollout_timeout(self, body: Object) -> float:
        """Pods are replaced a quarter at a time."""
        replicas = int(body["spec"].get("replicas", 1))
        return self._aks.startup_timeout * min(replicas, 4) + self._aks.drain_seconds

    # The canary.

    def _start_canary(self, wanted: Version, percent: int, verify: Verify, progress: Progress) -> None:
        self._prepare()
        name = track_name(self._settings, CANARY)
        try:
            self._question(wanted, verify, progress)
            stable = self._stable()
            assert stable is not None
            share = self._share(percent, stable)
            if share.weight is None:
                self._pin_stable(share.stable, progress)
            body = deployment(self._settings, wanted.serving_now(), CANARY)
            body["metadata"]["annotations"][canaries.SHARE] = f"{share.percent:.1f}"
            body["metadata"]["annotations"][canaries.BASELINE] = canaries.baseline(
                self._cluster, self._settings, self._key(wanted)
            )
            applied = self._cluster.apply(body, force=True)
            self._cluster.scale(name, share.canary)
            rollout = Rollout(self._cluster, applied, self._mask())
            rollout.wait(str(wanted), self._rollout_timeout(applied), progress)
            pods = _names(rollout.pods())
            if share.weight is None:
                self._entrance.wait(lambda led: pods <= led)
            else:
                self._entrance.send(share.weight, pods, progress)
            body["metadata"]["annotations"][canaries.READY] = "yes"
            self._cluster.apply(body, force=True)
        except BaseException:
            self._end_canary(progress)
            raise
        finally:
            self._cluster.delete(*_APPS, track_name(self._settings, CANDIDATE))
        progress(f"{wanted} gets {share.percent:.1f} % of the traffic: {share.canary} of {share.total} pods")

    def _pin_stable(self, pods: int, progress: Progress) -> None:
        """The share holds as long as the numbers of pods do."""
        self._apply_range(pods, pods)
        self._cluster.scale(track_name(self._settings, STABLE), pods)
        if stable := self._stable():
            self._wait_for_stable(stable, "the serving version", progress)

    def _wait_for_stable(self, stable: Object, what: str, progress: Progress) -> None:
        timeout = self._rollout_timeout(stable)
        Rollout(self._cluster, stable, self._mask()).wait(what, timeout, progress)

    def _end_canary(self, progress: Progress) -> None:
        self._entrance.close()
        self._cluster.delete(*_APPS, track_name(self._settings, CANARY))
        self._apply_range(*self._replica_range())
        progress("the canary is over")

    def _apply_range(self, least: int, most: int) -> None:
        for body in self._around((least, most)):
            if body["kind"] == "HorizontalPodAutoscaler":
                self._cluster.apply(body, force=True)

    def _canary(self) -> Object | None:
        return self._cluster.get(*_APPS, track_name(self._settings, CANARY))

    def _left_canary_steps(self) -> list[Step]:
        left = self._canary()
        return (
            [Step(Action.DELETE, f"Deployment {left['metadata']['name']}: a canary that never began")] if left else []
        )

    def _refuse_during_canary(self) -> None:
        """One whose start was killed got its pods, but never its share: the next deployment removes it."""
        if _is_ready(self._canary()):
            raise UsageError(
                "a canary is running",
                where=_HERE,
                next_step="end it: inv promote --target aks, or inv rollback --target aks",
            )

    # What there is.

    def _stable(self) -> Object | None:
        return self._cluster.get(*_APPS, track_name(self._settings, STABLE))

    def _serving(self) -> Status:
        self._entrance.url(wait=self._aks.startup_timeout)
        status = self.status()
        if status is None:
            raise _nothing_deployed()
        return status

    def _state(self, stable: Object) -> str:
        if not stable.get("status", {}).get("availableReplicas", 0):
            return "down: no pod is ready; see inv logs --target aks"
        if missing := shortfall(stable, 1):
            return f"rolling out: {missing} {read_version(stable)}"
        canary = self._canary()
        version = read_version(canary)
        if canary is None or version is None:
            return "serving"
        if not _is_ready(canary):
            return f"serving; a canary of {version} starts, or was killed: the next deployment removes it"
        percent = canary["metadata"]["annotations"].get(canaries.SHARE, "?")
        return f"serving; canary: {version} gets {percent} % of the traffic"

    def _around(self, replicas: tuple[int, int]) -> list[Object]:
        """Everything but Deployments and keys, in the newest versions that the cluster serves."""
        cluster = self._cluster
        names = ["serviceaccount", "networkpolicy", "service"]
        names.append("hpa-v2" if cluster.serves("autoscaling/v2") else "hpa-v1")
        budget = next((api for api in ("policy/v1", "policy/v1beta1") if cluster.serves(api)), "")
        names += ["pdb"] if budget else []
        names += ["ingress"] if self._aks.host and not self._aks.gateway else []
        folder = self._settings.root / "scoring" / "k8s"
        values = {"min_replicas": replicas[0], "max_replicas": replicas[1]}
        found = supporting(self._settings, folder, names, values)
        for body in found:
            if body["kind"] == "PodDisruptionBudget":
                body["apiVersion"] = budget
            if body["kind"] == "Service" and self._aks.gateway:
                body["spec"]["selector"]["mlops/track"] = STABLE
        return found

    def _surroundings(self) -> list[Object]:
        """The same, and the route of a Gateway with what it needs."""
        return [*self._around(self._replica_range()), *self._entrance.objects()]

    def _replica_range(self) -> tuple[int, int]:
        return self._aks.min_replicas, self._aks.max_replicas

    def _remove_surroundings(self) -> None:
        self._entrance.remove()
        for body in self._around(self._replica_range()):
            self._cluster.delete(body["apiVersion"], body["kind"], body["metadata"]["name"])

    def _pods(self) -> Sequence[Object]:
        return self._cluster.list("v1", "Pod", labelSelector=f"app.kubernetes.io/name={self._aks.name}")

    def _wait_until_gone(self, progress: Progress) -> None:
        """Until no container runs; the cluster then clears up behind the pods at its own pace."""
        deadline = time.monotonic() + 60 + self._aks.drain_seconds
        while left := [pod for pod in self._pods() if _runs(pod)]:
            if time.monotonic() > deadline:
                return progress(f"{len(left)} pods take long to end; the cluster kills them in the end")
            time.sleep(0.5)
        progress("nothing runs any more")

    # Keys.

    @property
    def _secret_name(self) -> str:
        return f"{self._aks.name}-keys"

    def _new_secret(self) -> Object:
        labels = {"app.kubernetes.io/name": self._aks.name, "app.kubernetes.io/managed-by": "mlops-tasks"}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self._secret_name, "labels": labels},
            "stringData": {"keys.json": json.dumps(key_file.new_keys())},
        }

    def _key(self, version: Version) -> str:
        return self._read_keys().primary if requires_key(version.environment) else ""

    def _read_keys(self) -> Keys:
        secret = self._cluster.get("v1", "Secret", self._secret_name)
        data: Mapping[str, str] = (secret or {}).get("data", {})
        try:
            return Keys(**json.loads(base64.b64decode(data["keys.json"])))
        except (KeyError, ValueError, TypeError):
            raise UnavailableError(
                "holds no two keys", where=f"Secret {self._secret_name}", next_step="run: inv undeploy --target aks"
            ) from None

    def _mask(self) -> Callable[[str], str]:
        return key_file.masking(self._read_keys)

    def _forget_packages(self) -> None:
        stable = self._stable()
        used = [read_version(stable), read_version(stable, PREVIOUS), read_version(self._canary())]
        self._packages.keep_only({version.package_sha256 for version in used if version})

    @contextmanager
    def _changing(self, progress: Progress) -> Iterator[None]:
        patience = 3 * self._aks.startup_timeout
        with lease.held(self._cluster, f"{self._aks.name}-deployment", progress, patience=patience):
            yield


def _held_by_all(stable: Object | None) -> tuple[Version | None, Version | None]:
    """The version that every pod holds or held, and the one before it.

    A rollout that was killed half-way has written its version down, but what serves, and is worth going back to, is
    still the version before.
    """
    current, previous = read_version(stable), read_version(stable, PREVIOUS)
    if stable and previous and is_half_way(stable):
        return previous, None
    return current, previous


def _before(wanted: Version, stable: Object | None) -> Version | None:
    """What a rollback would bring back once ``wanted`` serves."""
    current, previous = _held_by_all(stable)
    return previous if wanted.same_as(current) else current


def _is_ready(canary: Object | None) -> bool:
    return canary is not None and canaries.READY in canary["metadata"].get("annotations", {})


def _moment(stamp: str) -> tuple[str, str]:
    """What a log's times are sorted by; their fractions have as many digits as they need."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    return seconds, fraction.ljust(9, "0")


def _names(pods: Sequence[Object]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def _runs(pod: Object) -> bool:
    return any("running" in one.get("state", {}) for one in pod.get("status", {}).get("containerStatuses", []))


def _nothing_deployed() -> UsageError:
    return UsageError("nothing is deployed", where=_HERE, next_step="run: inv deploy --target aks")
