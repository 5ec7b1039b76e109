"""The container file: there is no engine here to build it, so it is linted, and held against the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.manifests import INFRA, ROOT

FILE = INFRA / "Containerfile"


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, line after line, comments left out and continued lines joined."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def test_the_linter_is_content() -> None:
    tool = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run(
        [tool, "--failure-threshold", "style", str(FILE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned_and_both_variants_are_of_it(instructions: list[tuple[str, str]]) -> None:
    (base,) = [rest for word, rest in instructions if word == "ARG" and rest.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm", base)
    assert {rest.split()[0] for word, rest in instructions if word == "FROM"} == {"${PYTHON_IMAGE}"}


def test_it_does_not_run_as_root(instructions: list[tuple[str, str]]) -> None:
    last = [rest for word, rest in instructions if word == "USER"][-1]
    assert last == "10001:10001"
    after = [word for word, _ in instructions][[word for word, _ in instructions].index("USER") :]
    assert "RUN" not in after


def test_what_is_copied_exists_and_reaches_the_build(instructions: list[tuple[str, str]]) -> None:
    ignore = FILE.with_name("Containerfile.dockerignore").read_text().split("\n")
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        source for word, rest in instructions if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]
    }
    assert copied == allowed, "what is let in and what is copied are the same, and nothing is let in for nothing"
    assert "*" in ignore
    assert not [name for name in copied if not (ROOT / name).exists()]
    assert not copied & {".", "tests", "benchmarks", "docs"}


def test_every_install_is_at_the_versions_that_are_tested(instructions: list[tuple[str, str]]) -> None:
    runs = " ".join(rest for word, rest in instructions if word == "RUN")
    assert runs.count("pip install") == runs.count("pip install -c constraints.txt") == 3


def test_no_secret_goes_in(instructions: list[tuple[str, str]]) -> None:
    for word, rest in instructions:
        if word in ("ARG", "ENV"):
            assert not re.search("PASSWORD|SECRET|ACCESS_KEY|AUTH_TOKEN", rest), rest
