"""Documents say what the code does: figures come from results, commands and codes exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.core import TyperCommand

from sbdzsl import cli, config, datasets, errors, lake, registry
from sbdzsl.cluster.serve import MEMORY, ServeArgs, build, build_memory
from sbdzsl.datasets import validation
from sbdzsl.errors import ConfigError
from sbdzsl.pipeline import PipelineSettings
from sbdzsl.registry import gate
from sbdzsl.serving.settings import ServeSettings
from tests.contracts.test_command_line import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readmes_figures_are_those_of_the_results() -> None:
    check = [sys.executable, "benchmarks/write_figures.py", "--check"]
    assert subprocess.run(check, cwd=ROOT, check=False).returncode == 0, "run python benchmarks/write_figures.py"


def shell_lines(text: str) -> list[str]:
    """The lines of a document's shell blocks, which are those that name no language."""
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [line.strip() for language, block in blocks if not language for line in block.splitlines()]


def words_of(line: str) -> list[str] | None:
    """What a line gives to `sbdzsl`, by itself or as a job of Ray; None where it calls something else."""
    found = re.match(r"sbdzsl (.*)|ray job submit .* python jobs/(\w+\.py .*)", line)
    if found is None:
        return None
    verb, *rest = shlex.split(found[1] or found[2], comments=True)
    return [verb.removesuffix(".py"), *rest]


def test_the_tool_takes_each_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is parsed by the tool itself, with all options, values and counts; only what it would do is left out.

    `tests/e2e/test_own_data.py` runs the lines of one page. What the others do needs a cluster, a service, a store or
    hours; the tests of those do it: `tests/cluster`, `tests/e2e`, `tests/serving`, `tests/infra`, `tests/registry`.
    """
    taken: set[str] = set()
    monkeypatch.setattr(
        TyperCommand, "invoke", lambda _, at: taken.add(at.command_path.removeprefix(f"{at.find_root().info_name} "))
    )
    monkeypatch.setattr(registry, "locate", lambda name: name)  # which asks a store
    lines = [(document, line) for document in DOCUMENTS for line in shell_lines(document.read_text(encoding="utf-8"))]
    for settings in (ROOT / "ray_configs").glob("*.yaml"):
        lines += [
            (settings, line) for line in re.findall(r"^#.*  (sbdzsl \w+ --.*)", settings.read_text(), re.MULTILINE)
        ]
    for document, line in lines:
        if (words := words_of(line)) is not None:
            assert cli.main(words) == 0, f"{document.name}: {line}: {capsys.readouterr().err}"
    assert taken == COMMANDS.keys() - {"datasets list", "datasets synthetic", "datasets mix"}  # named in sentences


def test_what_the_documents_call_exists() -> None:
    """Verbs with their options within a sentence, targets of `make`, scripts."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for code in re.findall(r"`sbdzsl (\w[^`]*)`", text):
            words = code.split()
            verb = next((verb for verb in (" ".join(words[:2]), words[0]) if verb in COMMANDS), words[0])
            verb = "audit run" if verb == "audit" else verb
            groups = {name.split()[0] for name in COMMANDS}
            assert verb in COMMANDS or code in groups, f"{document.name}: {code}"
            unknown = {word for word in words if word.startswith("--")} - COMMANDS.get(verb, set())
            assert not unknown, f"{document.name}: {code}: {unknown}"
        for target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
            assert target in targets, f"{document.name}: make {target}"
        for script in re.findall(r"python (\w[\w/]*\.py)", text):
            assert (ROOT / script).is_file(), f"{document.name}: {script}"


def test_each_image_code_and_adapter_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    for code in [*errors.ImageError.CODES, "not-found", "forbidden", "unreachable"]:
        assert f"`{code}`" in manual, code
    for code in validation.CODES:
        assert f"`{code}`" in manual, code
    for kind in lake.MANIFEST_VALUES["mask_kind"]:
        assert f"`{kind}`" in manual, kind
    for adapter in datasets.ADAPTERS:
        assert f"`{adapter}`" in manual, adapter


def test_each_code_that_a_camera_meets_is_in_its_manual() -> None:
    manual = (ROOT / "docs" / "cameras.md").read_text(encoding="utf-8")
    codes = errors.ServiceError.CODES | errors.ImageError.CODES
    del codes["no-candidate"]  # met by who changes bundles
    del codes["unknown-alarm"]  # met by who acknowledges alarms
    for code, status in codes.items():
        assert f"`{code}`" in manual, code
        assert str(status) in manual, status


def test_each_code_and_figure_of_a_registry_is_in_its_manual() -> None:
    manual = (ROOT / "docs" / "registry.md").read_text(encoding="utf-8")
    for word in (*errors.RegistryError.CODES, "gate-refused", *gate.FIGURES):
        assert f"`{word}`" in manual, word


def test_each_code_and_step_of_the_pipeline_is_in_its_manual() -> None:
    manual = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    for word in (*errors.PipelineError.CODES, "tune", "train", "evaluate", "gate", "promote", "report"):
        assert f"`{word}`" in manual, word


def test_the_settings_files_are_the_defaults_they_claim_to_be() -> None:
    assert config.load(config.AuditSettings, ROOT / "ray_configs" / "audit.yaml") == config.AuditSettings()
    assert set(yaml.safe_load((ROOT / "ray_configs" / "audit.yaml").read_text())) == set(
        config.AuditSettings.model_fields
    )
    assert config.load(config.ClusterSettings, ROOT / "ray_configs" / "train.yaml") == config.ClusterSettings()
    assert set(yaml.safe_load((ROOT / "ray_configs" / "train.yaml").read_text())) == set(
        config.ClusterSettings.model_fields
    )
    pipeline = ROOT / "ray_configs" / "pipeline.yaml"
    assert config.load(PipelineSettings, pipeline) == PipelineSettings()
    stated, known = yaml.safe_load(pipeline.read_text()), PipelineSettings().model_dump()
    assert stated.keys() == known.keys()
    for group in ("evaluation", "promotion", "cluster"):
        assert stated[group].keys() == known[group].keys()
    config.load(config.TrainSettings, ROOT / "examples" / "demo.yaml")
    assert config.load(ServeSettings, ROOT / "ray_configs" / "serve.yaml") == ServeSettings()
    assert yaml.safe_load((ROOT / "ray_configs" / "serve.yaml").read_text()).keys() == ServeSettings.model_fields.keys()


def test_the_configs_of_ray_serve_are_what_the_builder_takes() -> None:
    for name in ("serve_fused", "serve_routed"):
        values = yaml.safe_load((ROOT / "ray_configs" / f"{name}.yaml").read_text())
        memory, application = ServeDeploySchema.model_validate(values).applications
        assert application.import_path == f"{build.__module__}:{build.__name__}"
        args = config.parse(ServeArgs, application.args, name)
        assert args.shape == name.removeprefix("serve_")
        del application.args["service"]["keys"]
        with pytest.raises(ConfigError, match=r"found no service.keys.*open_to_all"):
            config.parse(ServeArgs, application.args, name)
        config.parse(ServeArgs, application.args | {"open_to_all": True}, name)
        assert (memory.name, memory.import_path) == (MEMORY, f"{build_memory.__module__}:{build_memory.__name__}")
        assert config.parse(ServeSettings, memory.args, name).data == args.service.data


def test_links_between_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} -> {target}"
