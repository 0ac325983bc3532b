"""Start the scoring service: ``python server.py``. docs/scoring.md lists its settings and exit codes."""

from __future__ import annotations

import sys

from scoring_service.supervisor import main

if __name__ == "__main__":
    sys.exit(main())
