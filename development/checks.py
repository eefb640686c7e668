"""Run every check and every test, and say at the end what ran, on which QGIS, and what was left out and why."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Sequence

from .debian import RUN_PACKAGES, TEST_PACKAGES, ensure_packages
from .environments import ensure_engine, ensure_test, ensure_training
from .package import assemble
from .project import BUILD, CACHE, ROOT, BuildError, environment, run, say, step
from .qgis import Qgis, find_installations, not_exercised

REPORTS = CACHE / "reports"
SUITES = ("gate", "engine", "training", "plugin", "release")
# A suite that hangs must not hang the machine that waits for it.
SUITE_LIMIT_S = 1200.0
PYTHON_FILES = ("build.py", "development", "miso_qgis", "training", "tests", "benchmarks")


@dataclass
class Outcome:
    """What one suite came to.

    Attributes:
        title: "plugin tests on QGIS 3.40.6".
        seconds: How long it took.
        passed: Number of tests, or of checks of the gate.
        failed: Likewise; errors are counted here.
        skipped: Reason -> number of tests.
        note: Why it could not be run as it should, if so.
    """

    title: str
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: Dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """Everything that the tests run on."""

    installations: List[Qgis]
    engine: Path
    training: Path
    test: Path


def set_up() -> Setup:
    """Make everything that the tests need, or find it made."""
    ensure_packages([*RUN_PACKAGES, *TEST_PACKAGES])
    installations = find_installations(beside=True)
    assemble()
    engine = ensure_engine(installations[0])
    return Setup(installations, engine, ensure_training(), ensure_test(installations[0]))


def run_suites(only: Sequence[str] = ()) -> int:
    """Set up, run the suites (all, or those named), print the summary; 0 if all passed."""
    started = time.monotonic()
    wanted = list(only) or list(SUITES)
    with step("set-up"):
        setup = set_up()
    outcomes: List[Outcome] = []
    tests = {suite: ROOT / "tests" / suite for suite in SUITES}
    if "gate" in wanted:
        outcomes += _gate(setup)
    for suite in ("engine", "training"):
        if suite in wanted:
            outcomes.append(_pytest(f"{suite} tests", setup.training, tests[suite], _plain_environment()))
    if "plugin" in wanted:
        for qgis in setup.installations:
            title = f"plugin tests on QGIS {qgis.version}"
            outcomes.append(_pytest(title, setup.test, tests["plugin"], _plugin_environment(setup, qgis)))
    if "release" in wanted:
        outcomes.append(_pytest("release tests", setup.test, tests["release"], _plain_environment()))
    return _summary(outcomes, setup, wanted, time.monotonic() - started)


def _plain_environment() -> Dict[str, str]:
    """The built plugin before the checkout on the path, so that what is tested is what is shipped."""
    return environment(
        PYTHONPATH=f"{BUILD}:{ROOT}",
        PYTHONDONTWRITEBYTECODE="1",
        QT_QPA_PLATFORM="offscreen",
    )


def _plugin_environment(setup: Setup, qgis: Qgis) -> Dict[str, str]:
    variables = qgis.environment(CACHE / f"test-profile-{qgis.version}")
    path = [str(BUILD), *([qgis.variables["PYTHONPATH"]] if "PYTHONPATH" in qgis.variables else []), str(ROOT)]
    variables["PYTHONPATH"] = ":".join(path)
    return variables


def _gate(setup: Setup) -> List[Outcome]:
    python = setup.training
    present = [name for name in PYTHON_FILES if (ROOT / name).exists()]
    cache = ["--cache-dir", CACHE / "ruff"]
    checks: Dict[str, Sequence[object]] = {
        "ruff check": [python, "-m", "ruff", "check", "--quiet", *cache, *present],
        "ruff format": [python, "-m", "ruff", "format", "--quiet", "--check", *cache, *present],
        "mypy": [python, "-m", "mypy", "--cache-dir", CACHE / "mypy"],
    }
    return [_checked(name, command) for name, command in checks.items()]


def _checked(title: str, command: Sequence[object]) -> Outcome:
    outcome = Outcome(title)
    started = time.monotonic()
    say(f"== {title}")
    try:
        run(command, timeout_s=SUITE_LIMIT_S)
        outcome.passed = 1
    except BuildError as error:
        say(str(error))
        outcome.failed = 1
    outcome.seconds = time.monotonic() - started
    return outcome


def _pytest(title: str, python: Path, folder: Path, variables: Mapping[str, str]) -> Outcome:
    outcome = Outcome(title)
    started = time.monotonic()
    say(f"== {title}")
    if not folder.is_dir():
        outcome.note = f"{folder.relative_to(ROOT)} is not there"
        outcome.failed = 1
        return outcome
    report = REPORTS / f"{title.replace(' ', '-')}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    # The program rather than "python -m pytest": that would put the checkout before the built plugin on the path.
    command = [python.with_name("pytest"), folder, "--durations=5", f"--junitxml={report}"]
    command += ["-o", f"cache_dir={CACHE / 'pytest' / report.stem}"]
    try:
        done = run(command, env=variables, check=False, timeout_s=SUITE_LIMIT_S)
        if done.returncode not in (0, 1):
            outcome.note = f"pytest ended with code {done.returncode}"
    except BuildError as error:
        outcome.note = str(error)
    outcome.seconds = time.monotonic() - started
    _count(report, outcome)
    if outcome.note:
        outcome.failed += 1
    return outcome


def _count(report: Path, outcome: Outcome) -> None:
    if not report.is_file():
        outcome.note = outcome.note or "it ended before it reported anything (a crash, or no screen)"
        return
    reasons: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
        elif skipped is not None:
            reasons[" ".join((skipped.get("message") or "no reason given").split())] += 1
        else:
            outcome.passed += 1
    outcome.skipped = dict(reasons)


def _summary(outcomes: Sequence[Outcome], setup: Setup, wanted: Sequence[str], seconds: float) -> int:
    say("\n== summary")
    for outcome in outcomes:
        skipped = sum(outcome.skipped.values())
        counts = f"{outcome.passed} passed, {outcome.failed} failed, {skipped} skipped"
        say(f"   {outcome.title:<34} {counts}, {outcome.seconds:.0f} s{'; ' + outcome.note if outcome.note else ''}")
        for reason, number in outcome.skipped.items():
            say(f"      skipped {number}: {reason}")
    for name in SUITES:
        if name not in wanted:
            say(f"   not asked for: {name}")
    missing = not_exercised(setup.installations)
    if missing:
        say(f"   not exercised: QGIS {', '.join(missing)} (Debian 12 runs both 3.22 and 3.40)")
    say("   not exercised: Windows, macOS, Qt 6 (checked statically only)")
    failed = sum(outcome.failed for outcome in outcomes)
    total = f"{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed, "
    total += f"{sum(sum(outcome.skipped.values()) for outcome in outcomes)} skipped"
    versions = " and ".join(qgis.version for qgis in setup.installations)
    say(f"total: {total} in {seconds:.0f} s, QGIS {versions}")
    return 1 if failed else 0
