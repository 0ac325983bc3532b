"""A package is loaded only when every file is the one that was packaged, and the model fits its signature."""

from __future__ import annotations

import json
import os
import pickle
import py_compile
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scoring_service.errors import PackageError, RequestError
from scoring_service.model.package import read_package
from scoring_service.model.scorer import load
from tests.support.packages import LINEAR, MIXED, linear_graph, make_package, mixed_graph, slow_graph, write_manifest


def test_a_sound_package_answers(linear: Path, mixed: Path) -> None:
    """One tensor of numbers, and one tensor an input of every type."""
    assert load(linear, 10).score(b'{"data": [[1,2,3],[1,1,1]]}') == (b'{"result":[14.0,6.0]}', 2)
    row = {"number": 1, "count": 1, "flag": False, "word": ""}
    body = json.dumps({"data": [[1.5, None, 2**62, 1, True, "x"], row]})
    expected = [1.5 + 0.5 + 2.0**62 + 1 + 1, 1 + 0.5 + 1 + 7 + 100]
    assert {"result": expected} == load(mixed, 10).answer(body.encode())


def test_one_column_by_its_name_or_as_one_tensor(tmp_path: Path) -> None:
    """A model of one input may call its tensor as it likes."""
    one = {"inputs": LINEAR["inputs"][:1], "outputs": LINEAR["outputs"]}
    package = make_package(tmp_path / "p", linear_graph([2.0]), one, [])
    assert load(package, 10).answer(b'{"data": [[3]]}') == {"result": [6.0]}


def test_several_outputs_make_a_list_a_row(tmp_path: Path) -> None:
    """With two outputs in the signature, each row has two numbers."""
    two = {"inputs": LINEAR["inputs"], "outputs": [{"name": "a", "type": "double"}, {"name": "b", "type": "double"}]}
    package = make_package(tmp_path / "p", linear_graph(), two, [])
    assert load(package, 10).answer(b'{"data": [[1,2,3]]}') == {"result": [[14.0]]}


@pytest.mark.parametrize("name", ["model/model.onnx", "model/signature.json", "model/examples.json"])
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    """One byte is enough."""
    package = make_package(tmp_path / "p", linear_graph())
    with (package / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(PackageError, match=f"{name} was changed after packaging") as caught:
        load(package, 10)
    assert caught.value.exit_code == 8


def test_a_missing_or_added_file_is_refused(tmp_path: Path) -> None:
    """The manifest lists all there is; byte code does not count."""
    package = make_package(tmp_path / "p", linear_graph())
    (package / "model" / "__pycache__").mkdir()
    (package / "model" / "__pycache__" / "a.pyc").write_bytes(b"")
    read_package(package)
    (package / "model" / "sitecustomize.py").write_text("")
    with pytest.raises(PackageError, match=r"model/sitecustomize.py does not belong here"):
        read_package(package)
    (package / "model" / "sitecustomize.py").unlink()
    (package / "model" / "examples.json").unlink()
    with pytest.raises(PackageError, match=r"model/examples.json is missing"):
        read_package(package)


class _Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trapped"),))


def test_no_pickle_is_ever_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle in the model's place is no ONNX; what it would do does not happen."""
    monkeypatch.chdir(tmp_path)
    package = make_package(tmp_path / "p", pickle.dumps(_Trap()))
    with pytest.raises(PackageError, match="ONNX Runtime cannot load the model"):
        load(package, 10)
    assert list(tmp_path.glob("trapped")) == []


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"format": 2}', '{"format": 1, "runtime": "onnx", "model": {}, "files": {}}'],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: str) -> None:
    """Whatever is wrong with it."""
    package = make_package(tmp_path / "p", linear_graph())
    (package / "manifest.json").write_text(manifest)
    with pytest.raises(PackageError, match=r"manifest\.json"):
        load(package, 10)


def test_no_package_and_an_unknown_runtime_are_refused(tmp_path: Path) -> None:
    """With the place and the next step."""
    with pytest.raises(PackageError, match="there is no package here"):
        load(tmp_path, 10)
    package = make_package(tmp_path / "p", linear_graph())
    write_manifest(package, "pickle", "model/model.onnx")
    with pytest.raises(PackageError, match="unknown runtime"):
        load(package, 10)


def test_a_model_that_does_not_fit_its_signature_is_refused(tmp_path: Path) -> None:
    """Other inputs, text where numbers are wanted, another width: said at the start."""
    with pytest.raises(PackageError, match="the model's inputs are"):
        load(make_package(tmp_path / "names", mixed_graph(), LINEAR), 10)
    words = {"inputs": [{**c, "type": "string"} for c in LINEAR["inputs"]], "outputs": LINEAR["outputs"]}
    with pytest.raises(PackageError, match="input AGE is a string in the signature only"):
        load(make_package(tmp_path / "types", linear_graph(), words), 10)
    example = [{"request": {"data": [[1.0, 1.0]]}, "response": {"result": [1.0]}}]
    narrow = {"inputs": LINEAR["inputs"][:2], "outputs": LINEAR["outputs"]}
    with pytest.raises(PackageError, match="the model cannot answer the package's own example"):
        load(make_package(tmp_path / "width", linear_graph(), narrow, example), 10)


SCRIPT = """
import json
def init():
    global factor
    factor = 2
def run(raw):
    return {ANSWER}
"""


@pytest.mark.parametrize(
    "answer",
    [
        "{'result': [row[0] * factor for row in json.loads(raw)['data']]}",
        "[row[0] * factor for row in json.loads(raw)['data']]",
        "json.dumps({'result': [row[0] * factor for row in json.loads(raw)['data']]})",
        "__import__('numpy').array([row[0] * factor for row in json.loads(raw)['data']])",
    ],
)
def test_a_script_answers_with_its_own_code(tmp_path: Path, answer: str) -> None:
    """The four forms in which scripts for Azure ML return results."""
    package = make_package(tmp_path / "p", SCRIPT.replace("{ANSWER}", answer))
    assert load(package, 10).answer(b'{"data": [[1,2,3],{"BP":1,"BMI":1,"AGE":4}]}') == {"result": [2.0, 8.0]}


def test_a_script_gets_rows_in_the_order_of_the_signature_with_defaults(tmp_path: Path) -> None:
    """Whatever form the request had; NaN, which JSON has not, arrives as null."""
    package = make_package(tmp_path / "p", SCRIPT.replace("{ANSWER}", "json.loads(raw)['data']"), MIXED, [])
    scorer = load(package, 10)
    assert scorer.answer(b'{"data": [{"flag":true,"count":2,"number":1}]}') == {"result": [[1, 0.5, 2, 7, True, ""]]}
    with pytest.raises(RequestError):
        scorer.answer(b'{"data": [[1]]}')


@pytest.mark.parametrize("module", ["helper", "shipped.helper"])
def test_byte_code_beside_a_script_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """It has no hash; Python by itself takes it when the time of the source is the one noted in it.

    Also in a package of the script's, and if the directory is relative and Python has listed it before.
    """
    script = f"import {module} as helper\ndef init(): pass\ndef run(raw): return [helper.VALUE]"
    package = make_package(tmp_path / "p", script)
    helper = package / "model" / f"{module.replace('.', '/')}.py"
    helper.parent.mkdir(exist_ok=True)
    helper.write_text("VALUE = 'planted'")
    byte_code = Path(py_compile.compile(str(helper), doraise=True) or "")
    status = helper.stat()
    helper.write_text("VALUE = 'checked'")
    os.utime(helper, ns=(status.st_atime_ns, status.st_mtime_ns))
    write_manifest(package, "script", "model/score.py")
    assert byte_code.parent == helper.parent / "__pycache__"
    monkeypatch.chdir(tmp_path)
    for folder in {helper.parent, package / "model"}:
        sys.path_importer_cache[str(folder)] = FileFinder(str(folder), (SourceFileLoader, SOURCE_SUFFIXES))
    try:
        assert load(Path("p"), 10).answer(b'{"data": [[1,2,3]]}') == {"result": ["checked"]}
    finally:
        for name in ("helper", "shipped", "shipped.helper"):
            sys.modules.pop(name, None)


def test_a_graph_with_a_loop_may_take_any_time(tmp_path: Path, linear: Path) -> None:
    """The size of the body tells nothing about it, so it never runs in the event loop."""
    assert load(linear, 10).is_steady
    one = {"inputs": [{"name": "X", "type": "double", "required": True}], "outputs": LINEAR["outputs"]}
    assert not load(make_package(tmp_path / "slow", slow_graph(2), one, []), 10).is_steady


def test_predictions_equal_numpy_on_many_rows(linear: Path) -> None:
    """A thousand rows, one tensor, no row lost or moved."""
    rows = np.random.default_rng(1).normal(size=(1000, 3))
    answer = load(linear, 1000).answer(json.dumps({"data": rows.tolist()}).encode())
    np.testing.assert_allclose(answer["result"], rows @ [1.0, 2.0, 3.0], rtol=1e-12)
