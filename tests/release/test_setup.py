"""Set-up finds the Debian mirror in whatever form a machine names it, and says what only root can do."""

import subprocess

import pytest

from development import debian, environments
from development.project import BuildError

ONE_LINE = """
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/keys/other.gpg] https://packages.example/apt bookworm main
deb [signed-by=/usr/share/keyrings/debian.gpg] http://mirror.example/debian/ bookworm main contrib # the mirror
deb http://mirror.example/debian/ bookworm-updates main
deb-src http://mirror.example/debian/ bookworm main
deb http://security.example/debian-security bookworm-security main
"""
STANZAS = """
Types: deb
# a comment between
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc=
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: https://packages.example/apt
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""


def test_the_mirror_is_the_archive_that_has_the_updates():
    sources = list(debian.parse_list(ONE_LINE))
    assert [source.uri for source in sources].count("http://mirror.example/debian/") == 2
    mirror = debian.debian_mirror(sources)
    assert mirror.uri == "http://mirror.example/debian/"
    assert mirror.signed_by == "/usr/share/keyrings/debian.gpg"


def test_stanzas_keep_a_key_of_many_lines_and_leave_out_what_is_off():
    sources = list(debian.parse_sources(STANZAS))
    assert [source.uri for source in sources] == ["http://mirror.example/debian", "https://packages.example/apt"]
    mirror = debian.debian_mirror(sources)
    assert mirror.uri == "http://mirror.example/debian"
    assert mirror.signed_by.splitlines()[1:] == [
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
        " abc=",
        " -----END PGP PUBLIC KEY BLOCK-----",
    ]


def test_a_machine_without_debian_is_told_so():
    with pytest.raises(BuildError, match="no Debian mirror for bookworm"):
        debian.debian_mirror(list(debian.parse_list("deb http://archive.example/ubuntu noble main\n")))


def test_without_root_the_line_to_run_is_said(monkeypatch):
    monkeypatch.setattr(debian.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(debian.shutil, "which", lambda name: None if name == "sudo" else f"/usr/bin/{name}")
    monkeypatch.setattr(debian, "missing_packages", lambda packages: ["qgis", "saga"])
    with pytest.raises(BuildError, match="sudo apt-get install --no-install-recommends qgis saga") as raised:
        debian.ensure_packages(["qgis", "saga", "xvfb"])
    assert raised.value.exit_code == 2


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(debian, "missing_packages", lambda packages: [])
    monkeypatch.setattr(debian, "run", lambda *words, **options: pytest.fail(f"ran {words}"))
    debian.ensure_packages(["qgis"])


def test_an_environment_is_made_anew_only_when_its_stamp_differs(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(environments, "run", lambda command, **options: made(command))
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    requirements = tmp_path / "requirements.txt"

    def made(command):
        ran.append(command)
        (tmp_path / "some").mkdir(exist_ok=True)

    for wanted, commands in (("a", 2), ("a", 2), ("b", 4)):
        environments._ensure("some", "python3", [], requirements, wanted)
        assert len(ran) == commands


def test_an_environment_whose_packages_failed_is_not_taken_for_a_finished_one(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)

    def fail(command, **options):
        (tmp_path / "some").mkdir(exist_ok=True)
        if "pip" in command:
            raise BuildError("no network")

    monkeypatch.setattr(environments, "run", fail)
    for _ in range(2):
        with pytest.raises(BuildError, match="no network"):
            environments._ensure("some", "python3", [], tmp_path / "requirements.txt", "a")


def test_the_help_names_every_command():
    from development.project import ROOT

    done = subprocess.run(["python3", "build.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("package", "demo", "test", "dev", "lock"):
        assert f"\n    {command} " in done.stdout


def test_dev_links_the_assembled_folder_and_keeps_what_is_not_its_own(tmp_path):
    from development import profile
    from development.project import BUILD

    link = profile.link(str(tmp_path))
    assert link.resolve() == (BUILD / "miso_qgis").resolve()
    assert profile.link(str(tmp_path)) == link
    link.unlink()
    link.mkdir()
    with pytest.raises(BuildError, match="installed plugin"):
        profile.link(str(tmp_path))
    assert link.is_dir()
