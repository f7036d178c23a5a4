"""Reckon what a number of cores does: ``python -m benchmarks.capacity`` writes docs/capacity.md from measured figures.

``python -m benchmarks.capacity measure`` measures them first, which takes some minutes on two idle cores.
``python -m benchmarks.capacity check`` compares the simulation with what was measured, and fails if they are too far
apart. It needs simpy (requirements-bench.txt).
"""

import argparse
import sys

from benchmarks.capacity import figures, page


def main() -> int:
    """Do what the command line says; return 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["page", "measure", "check"], default="page")
    command = parser.parse_args().command
    if command == "measure":
        figures.write(figures.measure())
    found = figures.read()
    if command != "check":
        page.PATH.write_text(page.write_page(found))
    n_failed = 0
    for check in found.checks:
        is_far = abs(check.deviation) > page.TOLERANCE
        n_failed += is_far
        verdict = "too far" if is_far else "ok"
        print(f"{check.what}: measured {check.measured:.2f}, simulated {check.simulated:.2f}, {verdict}")
    return int(command == "check" and n_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
