"""``python -m benchmarks.train [--rounds N]``: ``inv train`` against the bare script, DVC, ZenML and plain MLflow."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.environments import peer_python
from benchmarks.measure import Contender, hold, rounds, summary, write_results

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = ROOT / "benchmarks" / "workloads"
DATA = ROOT / "data" / "diabetes.csv"
BARE, OURS = "bare script", "inv train"
AT_MOST = 2.0

Prepared = tuple[Sequence[str], Path, Mapping[str, str]]
_BUILD = {"BUILD_BUILDID": "benchmark", "MLOPS_PLATFORM": "local", "MLFLOW_TRACKING_URI": "", "TF_BUILD": ""}


def fresh(work: Path, name: str) -> Path:
    """An empty directory for one round."""
    directory = work / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def bare(work: Path) -> Prepared:
    """The script alone."""
    return [sys.executable, str(WORKLOADS / "bare.py"), str(DATA), str(fresh(work, "bare"))], work, {}


def ours(work: Path) -> Callable[[], Prepared]:
    """Return a published pipeline on a store without a champion: trains, evaluates and registers in each round."""
    template = fresh(work, "template")
    env = {**_BUILD, "MLOPS_HOME": str(template)}
    for arguments in (["publish"], ["check-model"]):
        # check-model finds no training yet; it is here to make the store before the clock runs.
        subprocess.run(
            [sys.executable, "-m", "invoke", *arguments], cwd=ROOT, env={**os.environ, **env}, capture_output=True
        )

    def prepare() -> Prepared:
        home = fresh(work, "ours") / "home"
        shutil.copytree(template, home)
        return [sys.executable, "-m", "invoke", "train"], ROOT, {**_BUILD, "MLOPS_HOME": str(home)}

    return prepare


def dvc(work: Path) -> Callable[[], Prepared]:
    """``dvc repro --force`` of three stages."""
    python = peer_python("dvc")
    directory = fresh(work, "dvc")
    run = [str(python.parent / "dvc")]
    env = {"DVC_NO_ANALYTICS": "1", "DVC_NO_UPDATE": "1", "DVC_SITE_CACHE_DIR": str(work / "dvc-site")}
    stage = f"{python} {WORKLOADS / 'dvc_stage.py'}"
    (directory / "dvc.yaml").write_text(
        f"""stages:
  train: {{cmd: "{stage} train {DATA}", outs: [model.pkl]}}
  evaluate: {{cmd: "{stage} evaluate {DATA}", deps: [model.pkl], metrics: [metrics.json]}}
  register: {{cmd: "{stage} register {DATA}", deps: [model.pkl, metrics.json], outs: [registered.pkl]}}
"""
    )
    subprocess.run([*run, "init", "--no-scm", "-q"], cwd=directory, env={**os.environ, **env}, check=True)
    return lambda: ([*run, "repro", "--force", "--no-run-cache"], directory, env)


def zenml(work: Path) -> Callable[[], Prepared]:
    """Three ZenML steps, cache off, on its default local stack."""
    python = peer_python("zenml")
    directory = fresh(work, "zenml")
    env = {
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_CONFIG_PATH": str(work / "zenml-config"),
        "AUTO_OPEN_DASHBOARD": "false",
    }
    command = [str(python), str(WORKLOADS / "zenml_pipeline.py"), str(DATA), str(directory)]
    return lambda: (command, directory, env)


def mlflow(work: Path) -> Callable[[], Prepared]:
    """MLflow as its guide shows; the store exists before the clock runs."""
    python = peer_python("mlflow")
    directory = fresh(work, "mlflow")
    command = [str(python), str(WORKLOADS / "mlflow_guide.py"), str(DATA), str(directory)]
    return lambda: (command, directory, {"MLFLOW_DISABLE_TELEMETRY": "true"})


def main() -> None:
    """Time all, write the results, hold our ratio to its promise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="only ours and the bare script")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        work = Path(directory)
        contenders = [Contender(BARE, lambda: bare(work)), Contender(OURS, ours(work))]
        if not args.no_peers:
            contenders += [
                Contender("dvc repro", dvc(work)),
                Contender("ZenML", zenml(work)),
                Contender("MLflow, by its guide", mlflow(work)),
            ]
        rows = summary(rounds(contenders, args.rounds), BARE)
    for row in rows:
        print(f"{row['name']:<24} {row['seconds']:7.2f} s  {row['ratio']:5.2f}")
    if not args.no_peers:
        write_results("train", {"rounds": args.rounds, "promise": AT_MOST, "rows": rows})
    hold(rows, OURS, AT_MOST)


if __name__ == "__main__":
    main()
