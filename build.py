#!/usr/bin/env python3
"""Set up, check, package and show MISO for QGIS. Standard library only; any Python from 3.9 on starts it.

python3 build.py            assemble the plugin and write dist/miso_qgis-<version>.zip
python3 build.py demo       run the whole path on the sample and write demo-output/
python3 build.py test       set everything up and run every check and test
python3 build.py dev        link the assembled plugin into a QGIS profile
python3 build.py lock       make the engine's locks anew from what PyPI offers today
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from development import checks, demo, locks, package, profile
from development.project import BuildError


def main(arguments: Optional[List[str]] = None) -> int:
    """Run one subcommand; returns 0 done, 1 failed, 2 something is missing that only the user can add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("package", help="assemble the plugin and write the zip (the default)")
    commands.add_parser("lock", help="make the engine's locks anew")
    show = commands.add_parser("demo", help="run the whole path on the sample")
    show.add_argument("--output", type=Path, help="folder for the results (default: demo-output)")
    test = commands.add_parser("test", help="run every check and test")
    test.add_argument("--only", action="append", choices=checks.SUITES, help="run this suite only; may be repeated")
    link = commands.add_parser("dev", help="link the plugin into a QGIS profile")
    link.add_argument("--profile", default="default", help="name or folder of the profile (default: default)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "test":
            return checks.run_suites(chosen.only or ())
        if chosen.command == "demo":
            demo.demo(chosen.output)
        elif chosen.command == "dev":
            profile.link(chosen.profile)
        elif chosen.command == "lock":
            locks.make_locks()
        else:
            package.assemble()
            package.write_zip()
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
