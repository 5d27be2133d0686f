"""A hospital's privacy budgets as figures, worked out by a process of their own.

    python -m fedward.client.budget_figures --state FOLDER

Prints ``{data set: {spent, planned, total, suspended}}``. The accountant's libraries are too heavy for the
supervisor that shows the figures, which stays up for months.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fedward.client.registry import Registry
from fedward.client.state_folder import BUDGETS
from fedward.common.errors import Refusal


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """What is spent, planned and allowed, of each data set.

    Raises:
        LedgerRefused: a ledger does not verify.
    """
    if not (folder / BUDGETS).is_dir():
        return {}
    return {
        budget.state.names[0]: {
            "spent": budget.spent(),
            "planned": budget.planned(),
            "total": budget.terms.total_epsilon,
            "suspended": bool(budget.state.suspended),
        }
        for budget in Registry(folder / BUDGETS).budgets()
    }


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.client.budget_figures", description="A site's budgets.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    try:
        print(json.dumps(figures(parser.parse_args().state)))
    except Refusal as refusal:
        print(refusal.name, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
