"""``python bare.py DATA DIRECTORY``: trains, evaluates and dumps in one process, with no tool at all."""

from __future__ import annotations

import sys
from pathlib import Path

from ridge import dump, error, fit, split

if __name__ == "__main__":
    data, directory = map(Path, sys.argv[1:3])
    train_x, test_x, train_y, test_y = split(data)
    model = fit(train_x, train_y)
    print(error(model, test_x, test_y))
    dump(model, directory / "model.pkl")
