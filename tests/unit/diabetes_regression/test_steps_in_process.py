"""The steps, called as functions: what they write, what they refuse, and the exit code of each refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

from diabetes_regression import evaluate as evaluation
from diabetes_regression import train as training
from diabetes_regression.__main__ import main
from diabetes_regression.data import FEATURES, load
from diabetes_regression.errors import DataError
from diabetes_regression.files import MANIFEST, sha256, to_json
from diabetes_regression.model import run_onnx
from diabetes_regression.parameters import Parameters

ROOT = Path(__file__).parents[3]
DATA = ROOT / "data" / "diabetes.csv"
PARAMETERS = ROOT / "diabetes_regression" / "parameters.json"
EXPECTED_MSE = 3295.714938563238

Capture = pytest.CaptureFixture[str]


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    return value


def train(output: Path, data: Path = DATA, **parameters: object) -> int:
    chosen = output.with_suffix(".json")
    chosen.parent.mkdir(parents=True, exist_ok=True)
    chosen.write_text(json.dumps(parameters))
    return main(["train", "--data", str(data), "--parameters", str(chosen), "--output", str(output)])


def evaluate(
    output: Path, candidate: Path, champion: Path | None = None, data: Path = DATA, parameters: Path = PARAMETERS
) -> int:
    arguments = ["evaluate", "--data", data, "--parameters", parameters, "--candidate", candidate, "--output", output]
    return main([str(argument) for argument in [*arguments, *(["--champion", champion] if champion else [])]])


def register(output: Path, candidate: Path, verdict: Path) -> int:
    return main(["register", "--candidate", str(candidate), "--verdict", str(verdict), "--output", str(output)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with candidates of alpha 0.1, 0.3 and 0.4, named for it; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    for alpha in (0.1, 0.3, 0.4):
        assert train(folder / str(alpha).replace(".", "_"), alpha=alpha) == 0
    return folder


@pytest.fixture
def candidate(trained: Path, tmp_path: Path) -> Path:
    """A copy of the candidate of the project's parameters, to be changed."""
    return Path(shutil.copytree(trained / "0_4", tmp_path / "candidate"))


class TestTrain:
    def test_the_error_is_the_one_known(self, trained: Path) -> None:
        """Ridge with alpha 0.4 on the split of seed 0."""
        assert read(trained / "0_4" / "metrics.json")["mse"] == pytest.approx(EXPECTED_MSE, abs=1e-6)

    def test_the_onnx_model_answers_as_scikit_learn_does(self, trained: Path) -> None:
        """In double precision, one row at a time or all at once."""
        rows = load(DATA)
        fit_on, _, target, _ = train_test_split(rows.features, rows.target, test_size=0.2, random_state=0)
        expected = Ridge(alpha=0.4).fit(fit_on, target).predict(rows.features)
        content = (trained / "0_4" / "model" / "model.onnx").read_bytes()
        assert np.max(np.abs(run_onnx(content, rows.features) - expected)) < 1e-9
        assert run_onnx(content, rows.features[:1])[0] == pytest.approx(expected[0], abs=1e-9)

    def test_the_onnx_model_takes_and_gives_doubles(self, trained: Path) -> None:
        """A valid graph whose input has the columns of the signature."""
        model = onnx.load(trained / "0_4" / "model" / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        types = [value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]]
        assert types == [TensorProto.DOUBLE, TensorProto.DOUBLE]
        assert [entry["name"] for entry in read(trained / "0_4/model/signature.json")["inputs"]] == list(FEATURES)

    def test_the_model_folder_holds_the_model_and_nothing_else(self, trained: Path) -> None:
        """No pickle leaves training."""
        expected = {"model.onnx", "signature.json", "examples.json"}
        assert {path.name for path in (trained / "0_4" / "model").iterdir()} == expected

    def test_the_examples_are_answered_by_the_model(self, trained: Path) -> None:
        """One with one row and one with several; none of the rows is a person's."""
        content = read(trained / "0_4" / "model" / "examples.json")
        model = (trained / "0_4" / "model" / "model.onnx").read_bytes()
        people = {tuple(row) for row in load(DATA).features.tolist()}
        sizes = []
        for example in content["examples"]:
            rows = example["request"]["data"]
            assert run_onnx(model, np.array(rows)).tolist() == pytest.approx(
                example["response"]["result"], rel=content["tolerance"]
            )
            assert not people & {tuple(row) for row in rows}
            sizes.append(len(rows))
        assert sizes == [1, 5]

    def test_the_rows_that_trained_the_model_are_listed(self, trained: Path) -> None:
        """353 hashes, none of a held-out row, and the hash of the file they come from."""
        listed = read(trained / "0_4" / "training-rows.json")
        held_out = evaluation.held_out_rows(load(DATA), Parameters())
        assert (len(listed["sha256"]), len(set(listed["sha256"]) & set(held_out.hashes))) == (353, 0)
        assert listed["data_sha256"] == sha256(DATA.read_bytes())

    def test_the_same_recipe_on_the_same_data_gives_the_same_bytes(self, trained: Path, tmp_path: Path) -> None:
        """Training is repeatable, so every hash is."""
        assert train(tmp_path / "again", alpha=0.4) == 0
        assert read(tmp_path / "again" / MANIFEST) == read(trained / "0_4" / MANIFEST)

    def test_the_residuals_are_drawn(self, trained: Path) -> None:
        """An SVG with a point for every held-out row."""
        assert (trained / "0_4/plots/residuals.svg").read_text().count("<circle") == 89

    def test_a_candidate_that_stands_is_replaced_file_by_file(self, candidate: Path) -> None:
        """What else lies in the folder stays."""
        (candidate / "notes.txt").write_text("mine")
        assert train(candidate, alpha=0.3) == 0
        assert (candidate / "notes.txt").read_text() == "mine"
        assert read(candidate / "metrics.json")["mse"] == pytest.approx(3302.64484, abs=1e-4)

    def test_a_model_that_differs_in_onnx_does_not_leave_training(self) -> None:
        """Single precision is far enough off to be seen."""
        features = load(DATA).features
        model = Ridge(alpha=0.4).fit(features, load(DATA).target)
        exported = onnx.load_from_string(training.export(model))
        coefficients = np.asarray(model.coef_, dtype=np.float32).astype(np.float64)
        exported.graph.initializer[0].CopyFrom(
            helper.make_tensor("coefficients", TensorProto.DOUBLE, coefficients.shape, coefficients)
        )
        with pytest.raises(DataError, match="ONNX differs from the trained model by"):
            training.check_export(exported.SerializeToString(), model, features)

    def test_a_model_that_does_not_run_does_not_leave_training(self) -> None:
        """Nor one that ONNX Runtime refuses."""
        model = Ridge(alpha=0.4).fit(load(DATA).features, load(DATA).target)
        with pytest.raises(DataError, match="the exported model cannot be run"):
            training.check_export(b"junk", model, load(DATA).features)

    def test_bad_data_and_bad_parameters_are_refused(self, tmp_path: Path, capsys: Capture) -> None:
        """Exit code 3, one line, and nothing written."""
        data = tmp_path / "rows.csv"
        data.write_text(DATA.read_text().replace("151.0", "many", 1))
        assert train(tmp_path / "a", data=data) == 3
        assert capsys.readouterr().err.startswith(f"{data}, row 2, column Y: 'many' is not a number; next: ")
        assert train(tmp_path / "b", alpha=-1) == 3
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


class TestEvaluate:
    @pytest.mark.parametrize(
        ("candidate_name", "champion_name", "accept", "improvement"),
        [("0_4", "0_1", True, 76.8973), ("0_3", "0_4", False, -6.9299), ("0_4", "0_4", False, 0.0)],
    )
    def test_the_better_recipe_wins(
        self, trained: Path, tmp_path: Path, candidate_name: str, champion_name: str, accept: bool, improvement: float
    ) -> None:
        """0.4 beats 0.1; 0.3 does not beat 0.4; the same recipe on the same data does not beat itself."""
        assert evaluate(tmp_path, trained / candidate_name, trained / champion_name) == 0
        verdict = read(tmp_path / "verdict.json")
        assert verdict["accept"] is accept
        assert verdict["improvement"] == pytest.approx(improvement, abs=1e-3)
        assert verdict["champion"] - verdict["candidate"] == pytest.approx(improvement, abs=1e-3)
        assert (verdict["rows"], verdict["rows_left_out"], verdict["bootstrap"]["draws"]) == (89, 0, 2000)
        assert (verdict["metric"], verdict["direction"]) == ("mse", "lower")
        assert (tmp_path / "plots/candidate-against-champion.svg").read_text().count("<circle") == 89

    def test_the_first_of_its_name_is_accepted(self, trained: Path, tmp_path: Path) -> None:
        """Its score is the one that training measured."""
        assert evaluate(tmp_path, trained / "0_4") == 0
        verdict = read(tmp_path / "verdict.json")
        assert (verdict["accept"], verdict["reason"], verdict["champion"]) == (True, "first of its name", None)
        assert verdict["candidate"] == pytest.approx(EXPECTED_MSE, abs=1e-6)

    def test_chance_is_asked_where_the_parameters_say_so(self, trained: Path, tmp_path: Path) -> None:
        """0.4 beats 0.1 on 89 rows, but not significantly."""
        strict = tmp_path / "strict.json"
        strict.write_text('{"require_significant": true}')
        assert evaluate(tmp_path, trained / "0_4", trained / "0_1", parameters=strict) == 0
        assert read(tmp_path / "verdict.json")["accept"] is False

    def test_scores_come_from_the_rows_and_not_from_stored_numbers(self, trained: Path, tmp_path: Path) -> None:
        """A champion whose metrics.json boasts is no better for it."""
        champion = Path(shutil.copytree(trained / "0_1", tmp_path / "champion"))
        (champion / "metrics.json").write_text('{"mse": 0.0}')
        assert evaluate(tmp_path, trained / "0_4", champion) == 0
        assert read(tmp_path / "verdict.json")["accept"] is True

    def test_a_champion_is_what_the_registry_holds(self, trained: Path, tmp_path: Path) -> None:
        """model/, training-rows.json and metrics.json: neither plots nor the manifest of training come back from it."""
        champion = Path(shutil.copytree(trained / "0_1", tmp_path / "champion"))
        (champion / MANIFEST).unlink()
        shutil.rmtree(champion / "plots")
        assert evaluate(tmp_path, trained / "0_4", champion) == 0
        assert read(tmp_path / "verdict.json")["accept"] is True

    def test_rows_that_trained_the_champion_are_left_out(self, trained: Path, tmp_path: Path) -> None:
        """430 people grow to 442 and are split anew: 40 of the 89 held-out rows had trained the champion."""
        earlier = tmp_path / "earlier.csv"
        earlier.write_text("".join(DATA.read_text().splitlines(keepends=True)[:431]))
        assert train(tmp_path / "champion", data=earlier) == 0
        assert evaluate(tmp_path, trained / "0_4", tmp_path / "champion") == 0
        verdict = read(tmp_path / "verdict.json")
        assert (verdict["rows"], verdict["rows_left_out"]) == (49, 40)

    def test_under_thirty_new_rows_is_an_error(self, trained: Path, tmp_path: Path, capsys: Capture) -> None:
        """No verdict is written, and an older one is gone."""
        (tmp_path / "verdict.json").write_text("{}")
        champion = Path(shutil.copytree(trained / "0_1", tmp_path / "champion"))
        every = load(DATA).hashes
        (champion / "training-rows.json").write_bytes(to_json({"sha256": list(every)[20:]}))
        assert evaluate(tmp_path, trained / "0_4", champion) == 3
        assert "held-out rows are new to both models" in capsys.readouterr().err
        assert not (tmp_path / "verdict.json").exists()

    def test_a_candidate_that_saw_every_row_cannot_be_scored(
        self, candidate: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """Data or parameters are not those of training."""
        small = tmp_path / "seed.json"
        small.write_text('{"random_state": 0, "test_size": 0.05}')
        rows = load(DATA)
        (candidate / "training-rows.json").write_bytes(to_json({"sha256": list(rows.hashes)}))
        reseal(candidate)
        assert evaluate(tmp_path / "e", candidate, parameters=small) == 3
        assert "no held-out row is new to the candidate" in capsys.readouterr().err

    def test_a_candidate_changed_after_training_is_refused(
        self, candidate: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """Exit code 8, with the file's name."""
        with (candidate / "model" / "model.onnx").open("ab") as file:
            file.write(b" ")
        assert evaluate(tmp_path / "e", candidate) == 8
        assert "model.onnx: was changed after training" in capsys.readouterr().err


def reseal(candidate: Path) -> None:
    """Make the manifest agree with the files again."""
    names = read(candidate / MANIFEST)
    (candidate / MANIFEST).write_bytes(to_json({name: sha256((candidate / name).read_bytes()) for name in names}))


def constant(value: float, shape: list[str | int | None], kind: int = TensorProto.DOUBLE) -> bytes:
    """An ONNX model that reads ten columns and answers with one constant of the given shape."""
    size = [dimension for dimension in shape if isinstance(dimension, int)]
    tensor = helper.make_tensor("value", TensorProto.DOUBLE, size, [value] * int(np.prod(size)))
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["Y"], value=tensor)],
        "constant",
        [helper.make_tensor_value_info("X", kind, ["rows", 10])],
        [helper.make_tensor_value_info("Y", TensorProto.DOUBLE, shape)],
    )
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def replace(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(champion: Path) -> None:
        (champion / name).write_bytes(content)

    return apply


BROKEN_CHAMPIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (lambda champion: shutil.rmtree(champion), "cannot be read"),
    "no model": (lambda champion: (champion / "model" / "model.onnx").unlink(), "cannot be read"),
    "junk for a model": (
        replace("model/model.onnx", b"junk"),
        "the champion cannot be scored: ONNX Runtime refuses it",
    ),
    "an empty model": (replace("model/model.onnx", b""), "the champion cannot be scored: ONNX Runtime refuses it"),
    "answers of a wrong shape": (replace("model/model.onnx", constant(1, [3])), "values of shape [3]"),
    "answers that are not finite": (replace("model/model.onnx", constant(float("nan"), [89])), "are not finite"),
    "another input type": (
        replace("model/model.onnx", constant(1, [89], TensorProto.STRING)),
        "ONNX Runtime refuses it",
    ),
    "no signature": (lambda champion: (champion / "model" / "signature.json").unlink(), "cannot be read"),
    "a signature of nothing": (replace("model/signature.json", b"{}"), "signature names no inputs"),
    "a strange signature": (replace("model/signature.json", b'{"inputs": [1]}'), "signature is not one"),
    "a column of long ago": (
        replace("model/signature.json", b'{"inputs": [{"name": "HEIGHT"}]}'),
        "the champion needs the column 'HEIGHT', which is not in the data",
    ),
    "fewer columns": (replace("model/signature.json", b'{"inputs": [{"name": "AGE"}]}'), "ONNX Runtime refuses it"),
    "no training rows": (lambda champion: (champion / "training-rows.json").unlink(), "cannot be read"),
    "an empty list of rows": (
        replace("training-rows.json", b'{"sha256": []}'),
        "does not list the rows that trained the champion",
    ),
    "half a list of rows": (replace("training-rows.json", b'{"sha256": ["ab'), "is not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN_CHAMPIONS)
def test_a_champion_that_cannot_be_scored_is_an_error(
    trained: Path, tmp_path: Path, capsys: Capture, case: str
) -> None:
    """Exit code 3 and the champion's file by name: never a silent pass, never a verdict."""
    break_it, message = BROKEN_CHAMPIONS[case]
    champion = Path(shutil.copytree(trained / "0_1", tmp_path / "champion"))
    break_it(champion)
    assert evaluate(tmp_path / "e", trained / "0_4", champion) == 3
    error = capsys.readouterr().err
    assert message in error and str(champion) in error and "; next: withdraw that version" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "e" / "verdict.json").exists()


def test_a_champion_in_single_precision_is_scored(trained: Path, tmp_path: Path) -> None:
    """Versions exported otherwise can be compared too."""
    champion = Path(shutil.copytree(trained / "0_1", tmp_path / "champion"))
    (champion / "model" / "model.onnx").write_bytes(constant(150.0, [89, 1], TensorProto.FLOAT))
    assert evaluate(tmp_path / "e", trained / "0_4", champion) == 0
    assert read(tmp_path / "e" / "verdict.json")["accept"] is True


@pytest.mark.parametrize(
    "metric", [{"name": "auc", "direction": "higher"}, {"name": "mse", "direction": "down"}, "mse", None]
)
def test_a_metric_that_the_gate_does_not_know_is_refused(tmp_path: Path, metric: object) -> None:
    """In project.json, by its name."""
    project = tmp_path / "project.json"
    project.write_text(json.dumps({"metric": metric}))
    with pytest.raises(DataError, match=r"project\.json: the gate does not know the metric"):
        evaluation.read_rule(project, Parameters())


class TestRegister:
    @pytest.fixture
    def verdict(self, candidate: Path, tmp_path: Path) -> Path:
        assert evaluate(tmp_path / "evaluation", candidate) == 0
        return tmp_path / "evaluation" / "verdict.json"

    def test_an_accepted_candidate_is_written_down(self, candidate: Path, verdict: Path, tmp_path: Path) -> None:
        """With the hash of every file that the platform stores, byte for byte; plots are not among them."""
        assert register(tmp_path / "r", candidate, verdict) == 0
        registration = read(tmp_path / "r" / "registration.json")
        names = {
            "model/model.onnx",
            "model/signature.json",
            "model/examples.json",
            "training-rows.json",
            "metrics.json",
        }
        expected = {name: hashlib.sha256((candidate / name).read_bytes()).hexdigest() for name in names}
        assert registration["files"] == expected
        assert registration["metrics"] == read(candidate / "metrics.json")
        assert registration["data_sha256"] == sha256(DATA.read_bytes())
        assert registration["training_rows_sha256"] == expected["training-rows.json"]
        assert (registration["model_name"], registration["runtime"]) == ("diabetes_regression", "onnx")

    @pytest.mark.parametrize("accept", ["false", "null", '"true"', "1"])
    def test_only_true_accepts(
        self, candidate: Path, verdict: Path, tmp_path: Path, capsys: Capture, accept: str
    ) -> None:
        """Anything else is refused with the verdict's reason, and an older registration is gone."""
        (tmp_path / "registration.json").write_text("{}")
        verdict.write_text(f'{{"accept": {accept}, "reason": "not better"}}')
        assert register(tmp_path, candidate, verdict) == 3
        assert "the verdict does not accept the candidate (not better)" in capsys.readouterr().err
        assert not (tmp_path / "registration.json").exists()

    def test_a_verdict_given_without_comparing_is_enough(self, candidate: Path, verdict: Path, tmp_path: Path) -> None:
        """RUN_EVALUATION=false: the platform writes the verdict, which names no candidate."""
        verdict.write_text('{"accept": true, "reason": "evaluation is switched off"}')
        assert register(tmp_path, candidate, verdict) == 0

    def test_a_verdict_about_another_candidate_is_refused(self, trained: Path, verdict: Path, tmp_path: Path) -> None:
        """What is registered is what was compared."""
        assert register(tmp_path, trained / "0_1", verdict) == 8

    @pytest.mark.parametrize("name", ["model/model.onnx", "metrics.json", "training-rows.json", "model/examples.json"])
    def test_a_changed_file_is_refused(
        self, candidate: Path, verdict: Path, tmp_path: Path, capsys: Capture, name: str
    ) -> None:
        """Exit code 8, and nothing is written down."""
        with (candidate / name).open("ab") as file:
            file.write(b"\n")
        assert register(tmp_path / "r", candidate, verdict) == 8
        assert f"{candidate / name}: was changed after training" in capsys.readouterr().err
        assert not (tmp_path / "r").exists()

    def test_an_added_or_missing_file_is_refused(
        self, candidate: Path, verdict: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """The model folder holds what train wrote, no more and no less."""
        (candidate / "model" / "extra.pkl").write_bytes(b"")
        assert register(tmp_path, candidate, verdict) == 8
        (candidate / "model" / "extra.pkl").unlink()
        (candidate / "metrics.json").unlink()
        assert register(tmp_path, candidate, verdict) == 8
        assert "metrics.json: is gone since training" in capsys.readouterr().err

    def test_half_a_candidate_is_no_candidate(
        self, candidate: Path, verdict: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """train writes the manifest last: without it, it did not end."""
        (candidate / MANIFEST).unlink()
        assert register(tmp_path, candidate, verdict) == 3
        assert "run train again: it did not end" in capsys.readouterr().err
