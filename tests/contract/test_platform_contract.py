"""The contract of the Platform port (ml_service/ports.py), held against every rig of ``tests.support.rigs``.

A run costs seconds on a real adapter, so each rig executes one sequence of runs, and the tests read
its history.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ml_service.errors import IntegrityError, UnavailableError, UsageError
from ml_service.package import hash_files, sha256_of
from ml_service.ports import Build, ModelVersion, Platform, Run, RunStatus
from tests.support.repositories import PROJECT, definition, set_parameters, write_data
from tests.support.rigs import PLATFORM_RIGS, PlatformRig, rig_params

# A run takes seconds by itself, and many times that where other things run.
pytestmark = pytest.mark.timeout(900)

FIRST, BETTER, WORSE = Build("b1", "https://ci.example/1", "c0ffee"), Build("b2"), Build("b3")
FAILING, CANCELED, RACERS = Build("failing"), Build("canceled"), (Build("racer-1"), Build("racer-2"))


def silent(line: str) -> None:
    pass


@dataclass
class Reader:
    """Reads a build's model again and again while it is being registered."""

    platform: Platform
    seen: list[ModelVersion] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Reader:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._ended.wait(0.1):
            try:
                if found := self.platform.model_of_build("history", BETTER.id):
                    self.seen.append(found)
            except Exception as error:
                self.errors.append(error)


class RunHistory:
    """What happened on one rig, in this order."""

    def __init__(self, rig: PlatformRig) -> None:
        self.rig = rig
        self.platform = rig.open()
        self.lines: list[str] = []
        self.before = self._before()
        # These have nothing to do with each other, and a real adapter takes seconds for each.
        racing, failing, endless = self._race(), self._fail(), self._submit(CANCELED, "canceled", seconds=120)
        self.platform.cancel(endless)
        self.canceled = self.platform.wait(endless, silent)
        self.racers = [self.platform.wait(run, silent) for run in racing]
        self.failed = self.platform.wait(failing, silent)
        self.first = self._train(FIRST, shift=5.0, meddle=True)
        with Reader(rig.open()) as self.reader:
            self.better = self._train(BETTER, shift=1.0)
        self.worse = self._train(WORSE, shift=3.0)

    def _before(self) -> dict[str, object]:
        return {
            "champion": self.platform.champion("history"),
            "model": self.platform.model_of_build("history", "none"),
            "runs": list(self.platform.runs(PROJECT, "none")),
            "pipelines": list(self.platform.pipelines(PROJECT, "none")),
        }

    def _submit(self, build: Build, model_name: str, *, shift: float = 0.0, seconds: float = 0.0) -> Run:
        frozen = definition(self.rig.root, model_name, shift=shift, seconds=seconds)
        published = self.platform.publish(frozen, build)
        return self.platform.submit(published, build, self.rig.root / "data" / "mean.csv")

    def _race(self) -> list[Run]:
        return [self._submit(build, "race", shift=shift) for build, shift in zip(RACERS, (2.0, 1.0), strict=True)]

    def _fail(self) -> Run:
        write_data(self.rig.root, [1.0, "text"])
        run = self._submit(FAILING, "failing")
        write_data(self.rig.root, [1.0, 2.0, 3.0, 4.0])
        return run

    def _train(self, build: Build, *, shift: float, meddle: bool = False) -> Run:
        run = self._submit(build, "history", shift=shift)
        if meddle:
            set_parameters(self.rig.root, shift=700.0)
            write_data(self.rig.root, [9.0])
        ended = self.platform.wait(run, self.lines.append)
        write_data(self.rig.root, [1.0, 2.0, 3.0, 4.0])
        return ended

    @property
    def first_version(self) -> ModelVersion:
        return self.platform.version("history", "1")

    @property
    def better_version(self) -> ModelVersion:
        return self.platform.version("history", "2")


@pytest.fixture(scope="module", params=rig_params(PLATFORM_RIGS))
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformRig]:
    rig = PLATFORM_RIGS[request.param](tmp_path_factory.mktemp(f"rig-{request.param}"))
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def history(rig: PlatformRig) -> RunHistory:
    return RunHistory(rig)


@pytest.fixture
def platform(rig: PlatformRig) -> Platform:
    return rig.open()


# 1. publish


def test_1_the_same_content_under_the_same_build_is_the_same_pipeline(rig: PlatformRig, platform: Platform) -> None:
    """Publishing twice for a build gives the same id; another view of the store finds it, too."""
    published = platform.publish(definition(rig.root, shift=1.0), Build("twice"))
    again = rig.open().publish(definition(rig.root, shift=1.0), Build("twice"))
    assert again == published
    assert list(rig.open().pipelines(PROJECT, "twice")) == [published]


def test_1_other_content_under_the_same_build_is_refused(rig: PlatformRig, platform: Platform) -> None:
    """What was published stays; the error is one of usage."""
    published = platform.publish(definition(rig.root, shift=1.0), Build("changed"))
    with pytest.raises(UsageError, match="changed"):
        platform.publish(definition(rig.root, shift=2.0), Build("changed"))
    assert platform.pipeline(published.id) == published


def test_1_the_parameters_of_publication_are_content(rig: PlatformRig, platform: Platform) -> None:
    """Publishing the same files with another ALLOW_RUN_CANCEL is other content."""
    platform.publish(definition(rig.root), Build("parameters"))
    with pytest.raises(UsageError):
        platform.publish(definition(rig.root, allow_run_cancel=False), Build("parameters"))


def test_1_two_builds_publish_the_same_content_as_two_pipelines(rig: PlatformRig, platform: Platform) -> None:
    """The id belongs to the build; the content hash does not."""
    one, two = (platform.publish(definition(rig.root), Build(build)) for build in ("one", "two"))
    assert one.id != two.id
    assert one.content_sha256 == two.content_sha256


def test_1_two_who_publish_one_build_at_once_get_one_pipeline(rig: PlatformRig) -> None:
    """Both are given the same id, and one pipeline is listed."""
    frozen, found = definition(rig.root), list[str]()
    threads = [
        threading.Thread(target=lambda: found.append(rig.open().publish(frozen, Build("at-once")).id)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [rig.open().pipelines(PROJECT, "at-once")[0].id] * 4
    assert len(rig.open().pipelines(PROJECT, "at-once")) == 1


# 2. pipelines


def test_2_an_unknown_pipeline_is_an_error_of_usage(platform: Platform) -> None:
    """``pipeline`` names what is not there."""
    with pytest.raises(UsageError, match="no-such"):
        platform.pipeline("no-such")


def test_2_an_empty_store_lists_nothing(history: RunHistory) -> None:
    """An unknown build has no pipeline, no run and no model; there is no champion."""
    assert history.before == {"champion": None, "model": None, "runs": [], "pipelines": []}


def test_2_pipelines_are_listed_for_their_project_only(rig: PlatformRig, platform: Platform) -> None:
    """A build may publish several projects."""
    platform.publish(definition(rig.root), Build("projects"))
    assert list(platform.pipelines("another", "projects")) == []


# 3. submit, wait, cancel


def test_3_a_run_is_what_was_published_on_the_data_of_its_submission(history: RunHistory) -> None:
    """Parameters and data that change after the submission do not reach the run."""
    assert history.first.status is RunStatus.COMPLETED, history.first
    assert history.first_version.metrics["mse"] == pytest.approx(1.25 + 5.0**2)


def test_3_waiting_shows_what_the_steps_say(history: RunHistory) -> None:
    """The project's lines on standard output are progress."""
    assert "trained" in history.lines


def test_3_a_run_that_failed_is_returned_with_its_reason(history: RunHistory) -> None:
    """``wait`` raises nothing; the run has the error and the exit code of its kind."""
    assert (history.failed.status, history.failed.exit_code, history.failed.registered) == (RunStatus.FAILED, 3, "")
    assert "not a number in column Y" in history.failed.error


def test_3_a_canceled_run_has_ended_and_registered_nothing(history: RunHistory) -> None:
    """``cancel`` returns when the run has ended, long before it would have by itself."""
    assert history.canceled.status in (RunStatus.FAILED, RunStatus.CANCELED)
    assert history.canceled.registered == ""
    assert history.platform.model_of_build("canceled", CANCELED.id) is None


def test_3_canceling_what_has_ended_changes_nothing(history: RunHistory) -> None:
    """A run that has registered stays as it is."""
    history.platform.cancel(history.first)
    assert history.platform.wait(history.first, silent) == history.first


def test_3_waiting_for_an_unknown_run_is_an_error_of_usage(history: RunHistory) -> None:
    """The error names the run."""
    with pytest.raises(UsageError, match="no-such"):
        history.platform.wait(replace(history.first, id="no-such"), silent)


def test_3_missing_data_is_refused_by_name(rig: PlatformRig, platform: Platform, tmp_path: Path) -> None:
    """Nothing is started, and no run is listed."""
    published = platform.publish(definition(rig.root), Build("no-data"))
    with pytest.raises(Exception, match="nowhere.csv"):
        platform.submit(published, published.build, tmp_path / "nowhere.csv")
    assert list(platform.runs(PROJECT, "no-data")) == []


# 4. whole versions


def test_4_a_version_carries_everything_from_the_call_that_creates_it(history: RunHistory) -> None:
    """Where it came from: run, build, commit, pipeline, data, lock, rows; the files and metrics are there."""
    version = history.first_version
    pipeline = history.platform.pipelines(PROJECT, FIRST.id)[0]
    expected = {
        "run_id": history.first.id,
        "build_id": "b1",
        "build_uri": "https://ci.example/1",
        "git_commit": "c0ffee",
        "pipeline_id": pipeline.id,
        "data_sha256": sha256_of(history.rig.root / "data" / "mean.csv"),
        "lock_sha256": sha256_of(history.rig.root / "requirements" / "all.txt"),
        "training_rows_sha256": version.files["training-rows.json"],
        "runtime": "script",
    }
    assert {name: version.tags[name] for name in expected} == expected
    assert (version.name, version.version, version.reference) == ("history", "1", "history:1")
    assert version.withdrawn == ""
    assert {"model/mean.json", "model/signature.json", "metrics.json"} <= version.files.keys()


def test_4_a_reader_sees_whole_versions_only(history: RunHistory) -> None:
    """While a version is being registered another task sees none of it, or all of it."""
    final = history.platform.model_of_build("history", BETTER.id)
    assert history.reader.errors == []
    assert [seen for seen in history.reader.seen if seen != final] == []


def test_4_a_run_registers_one_version_at_most(history: RunHistory) -> None:
    """Three runs for this model, two accepted: the third number does not exist."""
    assert history.first.registered == "history:1"
    assert history.better.registered == "history:2"
    with pytest.raises(UsageError, match="history:3"):
        history.platform.version("history", "3")


def test_4_a_run_that_failed_registered_nothing(history: RunHistory) -> None:
    """Neither a version nor a champion."""
    assert history.platform.model_of_build("failing", FAILING.id) is None
    assert history.platform.champion("failing") is None


# 5. runs and models of a build


def test_5_runs_are_listed_by_build(history: RunHistory) -> None:
    """Each with how it ended, seen from another view, too."""
    assert list(history.rig.open().runs(PROJECT, FIRST.id)) == [history.first]
    assert list(history.rig.open().runs("another", FIRST.id)) == []


def test_5_a_build_whose_run_was_rejected_has_no_model(history: RunHistory) -> None:
    """The run ends as canceled, with its verdict."""
    assert history.worse.status is RunStatus.CANCELED
    assert history.worse.verdict["accept"] is False
    assert history.platform.model_of_build("history", WORSE.id) is None


def test_5_a_builds_model_is_its_own(history: RunHistory) -> None:
    """Not the newest of all."""
    assert history.platform.model_of_build("history", FIRST.id) == history.first_version


# 6. one gate at a time


def test_6_two_runs_at_once_both_end(history: RunHistory) -> None:
    """On a store that was empty; the champion is the better of the two, whichever came first."""
    assert [run.status for run in history.racers] in (
        [RunStatus.COMPLETED, RunStatus.COMPLETED],
        [RunStatus.CANCELED, RunStatus.COMPLETED],
    )
    champion = history.platform.champion("race")
    assert champion is not None
    assert champion.tags["build_id"] == RACERS[1].id


# 7. the champion


def test_7_the_champion_is_what_the_gate_registered_last(history: RunHistory, tmp_path: Path) -> None:
    """The rejected candidate after it changed nothing."""
    assert history.better_version == history.platform.champion("history")
    assert history.worse.verdict["champion"] == pytest.approx(1.25 + 1.0**2)


# 8. download


def test_8_a_download_is_the_version_byte_for_byte(history: RunHistory, tmp_path: Path) -> None:
    """The directory holds the version's files and no other."""
    history.platform.download(history.better_version, tmp_path)
    assert hash_files(tmp_path) == dict(history.better_version.files)


# 11. plots


def test_11_a_run_keeps_the_plots_of_its_steps(history: RunHistory) -> None:
    """Also one whose candidate was rejected, for that is when people look; a run that failed at once drew none."""
    for run in (history.better, history.worse):
        plots = history.rig.open().plots(run)
        assert "mean.svg" in plots
        assert all(svg.startswith("<svg") for svg in plots.values())
    assert history.platform.plots(history.failed) == {}


# 9. withdraw; 8 and 10 for what is broken. From here on the order counts: each test says what it leaves.


def test_9_an_unknown_version_cannot_be_withdrawn(history: RunHistory) -> None:
    """It is an error of usage that names it."""
    with pytest.raises(UsageError, match="history:99"):
        history.platform.withdraw(replace(history.better_version, version="99"), "unknown")


def test_9_after_a_withdrawal_the_champion_before_takes_over(history: RunHistory) -> None:
    """Twice is as once; the first reason stays; leaves version 1 as champion."""
    withdrawn = history.better_version
    assert history.platform.withdraw(withdrawn, "bad data") == history.first_version
    assert history.platform.withdraw(withdrawn, "again") == history.first_version
    assert history.rig.open().champion("history") == history.first_version
    assert history.better_version.withdrawn == "bad data"
    assert history.platform.model_of_build("history", BETTER.id) is None


def test_8_a_damaged_version_is_refused(history: RunHistory, tmp_path: Path) -> None:
    """The error names the file; leaves version 1 damaged."""
    history.rig.damage(history.first_version)
    with pytest.raises(IntegrityError, match=r"model/mean\.json"):
        history.platform.download(history.first_version, tmp_path)


def test_9_when_all_are_withdrawn_there_is_no_champion(history: RunHistory) -> None:
    """The alias falls back to none."""
    assert history.platform.withdraw(history.first_version, "damaged") is None
    assert history.rig.open().champion("history") is None


# 10. errors


def test_10_what_cannot_be_reached_is_named(rig: PlatformRig) -> None:
    """With its address, as unavailable, in bounded time."""
    platform = rig.unreachable()
    if platform is None:
        pytest.skip("this adapter has no service")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        platform.champion("history")


def test_10_doctor_finds_nothing_wrong_with_a_store_that_works(history: RunHistory) -> None:
    """Each finding says what was looked at."""
    findings = history.platform.diagnose()
    assert [finding for finding in findings if not finding.ok] == []
    assert all(finding.subject and finding.detail for finding in findings)
