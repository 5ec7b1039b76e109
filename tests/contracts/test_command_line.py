"""The commands that others script against. Growing this list is a decision; changing it breaks somebody."""

from typing import get_args

import typer

from sbdzsl.cli import app
from sbdzsl.config import Policy, ThresholdRule

COMMANDS = {
    "serve": {
        "--bundle",
        "--host",
        "--port",
        "--shape",
        "--proxy",
        "--data",
        "--keys",
        "--policy",
        "--promise",
        "--runtime",
        "--config",
    },
    "registry push": {"--registry", "--bundle"},
    "registry list": {"--registry"},
    "registry show": {"--registry", "name"},
    "registry promote": {
        "--registry",
        "--alias",
        "--bundle",
        "--version",
        "--manifest",
        "--margin",
        "--policy",
        "--by",
        "--reason",
        "--force",
        "--device",
    },
    "registry rollback": {"--registry", "--alias", "--reason", "--by"},
    "registry sign": {"--registry", "name", "--key"},
    "registry verify": {"--registry", "--public-key"},
    "registry gc": {"--registry", "--keep-days", "--keep-last", "--dry-run"},
    "keys create": {"--file", "--name", "--scope", "--days"},
    "keys list": {"--file"},
    "keys revoke": {"--file", "number"},
    "ingest": {"--adapter", "--source", "--out", "--surface", "--fold", "--folds", "--seed"},
    "train": {
        "--manifest",
        "--bundle",
        "--backbone",
        "--unseen",
        "--config",
        "--seed",
        "--device",
        "--cluster",
        "--cluster-config",
        "--allow-missing",
        "--address",
        "--submit",
    },
    "pipeline": {
        "--config",
        "--manifest",
        "--evaluate-on",
        "--out",
        "--unseen",
        "--seed",
        "--registry",
        "--alias",
        "--margin",
        "--by",
        "--reason",
        "--device",
        "--cluster",
        "--address",
        "--submit",
    },
    "tune": {
        "--manifest",
        "--out",
        "--config",
        "--search",
        "--stage",
        "--trials",
        "--storage",
        "--study",
        "--seed",
        "--unseen",
        "--address",
        "--submit",
    },
    "evaluate": {
        "--bundle",
        "--manifest",
        "--out",
        "--verdicts",
        "--report",
        "--robustness",
        "--policy",
        "--promise",
        "--device",
        "--runtime",
        "--max-memory-mb",
    },
    "reproduce": {"table", "--data", "--out", "--seeds", "--config", "--device"},
    "inspect": {
        "images",
        "--bundle",
        "--json",
        "--overlay",
        "--policy",
        "--promise",
        "--device",
        "--runtime",
        "--max-memory-mb",
    },
    "audit run": {
        "--bundle",
        "--out",
        "--lake",
        "--manifest",
        "--only-new",
        "--include",
        "--exclude",
        "--sample",
        "--limit",
        "--newest-first",
        "--policy",
        "--surface-policy",
        "--promise",
        "--max-errors",
        "--max-minutes",
        "--dry-run",
        "--config",
        "--runtime",
        "--address",
        "--submit",
        "--delta",
    },
    "audit diff": {"first", "second", "--out"},
    "list": {"--lake", "--inventory", "--out", "--include", "--exclude", "--partition", "--workers"},
    "export": {"--bundle", "--out", "--format", "--images", "--manifest", "--int8", "--surface", "--tolerance"},
    "enrol": {"--bundle", "--surface", "--out", "--images", "--manifest", "--attributes", "--seed", "--device"},
    "extend": {"--bundle", "--surface", "--out", "--images", "--manifest", "--device"},
    "retire": {"--bundle", "--surface", "--out"},
    "groups": {"--bundle", "--out", "--audit", "--images", "--max-images", "--device"},
    "log query": {
        "--log",
        "--since",
        "--until",
        "--verdict",
        "--surface",
        "--camera",
        "--limit",
        "--out",
        "--json",
    },
    "reviews export": {"--data", "--out", "--images", "--seed"},
    "reviews recalibrate": {
        "--bundle",
        "--data",
        "--log",
        "--surface",
        "--policy",
        "--out",
        "--approve",
        "--reason",
        "--to",
    },
    "watch": {
        "folder",
        "--endpoint",
        "--api-key-file",
        "--ca-file",
        "--out",
        "--done",
        "--pattern",
        "--names",
        "--camera",
        "--surface",
        "--policy",
        "--bit-depth",
        "--settle",
        "--interval",
        "--parallel",
        "--timeout",
        "--once",
    },
    "datasets list": set(),
    "datasets synthetic": {"--out", "--images", "--size", "--seed"},
    "datasets validate": {"--manifest", "--out", "--suspects", "--config", "--seed"},
    "datasets mix": {"--manifest", "--out", "--unseen", "--seed"},
}


def test_the_command_line_is_the_one_promised() -> None:
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for full, leaf in (
            {f"{name} {sub}": leaf for sub, leaf in command.commands.items()}.items()
            if hasattr(command, "commands")
            else [(name, command)]
        ):
            found[full] = {parameter.opts[0] for parameter in leaf.params} - {"--help"}
            assert leaf.help, f"{full} has no help"
            undescribed = [p.opts[0] for p in leaf.params if not getattr(p, "help", None)]
            assert not undescribed, f"{full}: no help for {undescribed}"
    assert found == COMMANDS


POLICIES = {
    "false-alarm-rate",
    "false-alarm-rate:0.01",
    "max-f1",
    "zero-misses",
    "cost:20@0.01",
    "fixed:3.2",
}


def test_threshold_policies_are_the_words_promised() -> None:
    assert {str(ThresholdRule.parse(word)) for word in POLICIES} == POLICIES
    assert {word.partition(":")[0] for word in POLICIES} == set(get_args(Policy))
