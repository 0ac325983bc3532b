"""A script may have modules of any name beside it: they do not shadow ours, and ours do not shadow them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scoring_service.errors import ConfigurationError, PackageError, import_failure
from scoring_service.model.scorer import load
from tests.scoring.conftest import Serve
from tests.support.packages import LINEAR, linear_graph, make_package, write_manifest
from tests.support.scoring_server import KEY, SCORE, refused_start

SERVICE = Path(__file__).resolve().parents[2] / "scoring" / "scoring_service"
OURS = {path.stem for path in SERVICE.rglob("*.py") if path.stem != "__init__"}
AZUREML_SERVER = {"aml_blueprint", "config", "create_app", "exceptions", "routes", "swagger", "user_script", "utils"}
"""Files of azureml-inference-server-http, which puts their folder on ``sys.path``."""
NAMES = sorted({"server", "service", "model", "schema", "connection"} | OURS | AZUREML_SERVER)


def project(directory: Path) -> Path:
    """Return a package whose script answers with the values of modules of all these names, which lie beside it."""
    imports = "\n".join(f"import {name}" for name in NAMES)
    values = ", ".join(f"{name}.VALUE" for name in NAMES)
    script = f"""
import json, queue
{imports}
import score
VALUE = "score"
def init():
    global values
    import pickle, shipped.late
    values = [{values}, score.VALUE, shipped.late.VALUE, type(pickle.loads({_PICKLE!r})).__module__]
def run(raw):
    return [",".join(values) for row in json.loads(raw)["data"]]
"""
    package = make_package(directory, script, LINEAR, [])
    for name in NAMES:
        (package / "model" / f"{name}.py").write_text(f"VALUE = {name!r}\nclass Thing: pass\n")
    for name in ("queue", "msgspec", "numpy", "uvloop", "scoring_service", "asyncio"):
        (package / "model" / f"{name}.py").write_text("raise RuntimeError('a file of the project shadows a library')")
    (package / "model" / "shipped").mkdir()
    (package / "model" / "shipped" / "__init__.py").write_text("")
    (package / "model" / "shipped" / "late.py").write_text("VALUE = 'late'")
    write_manifest(package, "script", "model/score.py")
    return package


_PICKLE = b"cschema\nThing\n)\x81."
EXPECTED = ",".join([*NAMES, "score", "late", "schema"])


@pytest.mark.slow
def test_a_project_with_modules_of_our_names_is_served(tmp_path: Path, serve: Serve) -> None:
    """Also if another folder on the path has files of these names. The service itself works as ever."""
    installed = tmp_path / "installed"
    installed.mkdir()
    for name in NAMES:
        (installed / f"{name}.py").write_text("raise RuntimeError('an installed file shadows the project')")
    server = serve(project(tmp_path / "p"), PYTHONPATH=str(installed))
    assert {"result": [EXPECTED]} == server.score([[1, 2, 3]]).json
    assert server.score([["x", 2, 3]]).status == 400
    assert server.ask("GET", "/model").json["runtime"] == "script"
    assert server.metric("scoring_rows_total") == 1


def test_a_project_with_modules_of_our_names_is_loaded_by_path(tmp_path: Path) -> None:
    """As Azure ML's server loads score.py. The folder of ours does not stay on the path."""
    code = f"""
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("entry_module", {str(SCORE)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
os.environ["AZUREML_MODEL_DIR"] = {str(project(tmp_path / "p"))!r}
module.init()
print(json.dumps([module.run('{{"data": [[1, 2, 3]]}}'), {str(SCORE.parent)!r} in sys.path]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert [{"result": [EXPECTED]}, False] == json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "place", "module"),
    [
        ("import not_there_at_all", "score.py:1", "not_there_at_all"),
        ("import json\nfrom not_there.at_all import x", "score.py:2", "not_there"),
        ("import helper", "helper.py:3", "not_in_helper"),
        ("from helper_two import missing", "score.py:1", "helper_two"),
        ("def init():\n    import uvloop_two", "score.py:2", "uvloop_two"),
        ("import helper_of_msgspec", "helper_of_msgspec.py:1", "msgspec"),
    ],
)
def test_a_failed_import_of_a_script_names_the_script_and_the_module(
    tmp_path: Path, script: str, place: str, module: str
) -> None:
    """The line, too. The service's own requirements are not the reason, so nobody is told to install them."""
    package = make_package(tmp_path / "p", script, LINEAR, [])
    (package / "model" / "helper.py").write_text("import json\n\nimport not_in_helper\n")
    (package / "model" / "helper_two.py").write_text("")
    (package / "model" / "helper_of_msgspec.py").write_text("from msgspec import not_there\n")
    write_manifest(package, "script", "model/score.py")
    code, text = refused_start({"AZUREML_MODEL_DIR": str(package), "SCORING_PRIMARY_KEY": KEY})
    (event,) = [json.loads(line) for line in text.splitlines() if '"start_failed"' in line]
    assert (8, str(package / "model" / "score.py")) == (code, event["where"])
    assert event["text"].startswith(f"the script does not start at {place} (")
    assert module in event["text"] and module in event["next"]
    assert "install requirements.txt" not in text and "Traceback" not in text


def test_only_a_missing_library_of_ours_tells_to_install_requirements() -> None:
    """A module of another name, or a library that is there but broken, is reported as it is."""
    missing = import_failure(ModuleNotFoundError("No module named 'uvloop'", name="uvloop"))
    assert "install requirements.txt" in missing.next_step and "uvloop" in missing.what
    others = [
        ModuleNotFoundError("No module named 'metrics'", name="metrics"),
        ImportError("cannot import name 'Lane'", name="scoring_service.executor"),
        ImportError("numpy: wrong ELF class", name="numpy.core"),
        ImportError("unknown"),
    ]
    assert {"install requirements.txt" in import_failure(error).next_step for error in others} == {False}
    assert "metrics" in import_failure(others[0]).what


def test_a_missing_onnx_runtime_is_not_taken_for_a_bad_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 and what to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigurationError, match="a library is missing .*onnxruntime") as caught:
        load(make_package(tmp_path / "p", linear_graph()), 10)
    assert (caught.value.exit_code, "install requirements.txt" in caught.value.next_step) == (4, True)


def test_a_script_that_cannot_be_compiled_is_named(tmp_path: Path) -> None:
    """A syntax error has no line of a traceback, and says its own."""
    package = make_package(tmp_path / "p", "def init(:", LINEAR, [])
    with pytest.raises(PackageError, match=r"the script does not start \(SyntaxError: .*score.py, line 1") as caught:
        load(package, 10)
    assert str(package / "model" / "score.py") == caught.value.where
