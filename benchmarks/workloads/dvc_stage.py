"""One stage of the DVC pipeline: ``python dvc_stage.py train|evaluate|register DATA``, in the pipeline's directory."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from ridge import dump, error, fit, load, split

STAGES = ("train", "evaluate", "register")


def main(stage: str, data: Path) -> None:
    """Run one stage; files carry the results from one to the next."""
    if stage == "train":
        train_x, _, train_y, _ = split(data)
        dump(fit(train_x, train_y), Path("model.pkl"))
    elif stage == "evaluate":
        _, test_x, _, test_y = split(data)
        Path("metrics.json").write_text(json.dumps({"mse": error(load(Path("model.pkl")), test_x, test_y)}))
    else:
        shutil.copyfile("model.pkl", "registered.pkl")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
