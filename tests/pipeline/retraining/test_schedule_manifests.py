"""The manifests under deploy/schedule: what they call exists, and they grant no more than is needed."""

import configparser
import datetime as dt
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from cronsim import CronSim
from typer.main import get_command

from pipeline.cli import app

DEPLOY = Path(__file__).parents[3] / "deploy" / "schedule"


def parses(arguments: list[str]) -> dict:
    """The parameters that the command line makes of the arguments, without calling the command."""
    context = get_command(app).make_context("biobert-cnn", list(arguments))
    group = context.command
    rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
    while hasattr(group, "resolve_command"):
        name, command, rest = group.resolve_command(context, list(rest))
        context = command.make_context(name, list(rest), parent=context)
        group = command
        rest = [*getattr(context, "_protected_args", []), *context.args]
    return {"command": context.command_path, **context.params}


@pytest.fixture
def job() -> dict:
    [document] = list(yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text()))
    return document


def test_cronjob_calls_a_command_that_exists(job: dict) -> None:
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["biobert-cnn"]
    found = parses(container["args"])
    assert found["command"] == "biobert-cnn schedule once"
    assert found["config"] == Path("/config/pipeline.toml")
    assert found["set_"] == ["paths.root=/root-volume/biobert-cnn"]
    assert found["as_json"] is True


def test_what_a_webhook_adds_to_the_cronjob_fits_it() -> None:
    """The lines of cronjob.yaml that a user uncomments."""
    text = re.sub(r"^( +)# (?=- )", r"\1", (DEPLOY / "cronjob.yaml").read_text(), flags=re.MULTILINE)
    [document] = yaml.safe_load_all(text)
    kubernetes_validate.validate(document, "1.33", strict=True)
    pod = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "notify.secret_file=/secret/webhook" in parses(container["args"])["set_"]
    assert {"name": "webhook", "mountPath": "/secret", "readOnly": True} in container["volumeMounts"]
    [secret] = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "webhook"]
    assert f"generic -n biobert-cnn {secret['secretName']} --from-file=webhook=" in text


def test_cronjob_runs_alone_and_is_not_started_again_by_kubernetes(job: dict) -> None:
    assert CronSim(job["spec"]["schedule"], dt.datetime(2026, 1, 1))
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert job["spec"]["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_cronjob_has_no_rights_that_it_does_not_need(job: dict) -> None:
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    image, _, tag = container["image"].partition(":")
    assert (image, tag) != ("", "latest")
    assert tag


def test_every_path_of_the_cronjob_lies_on_a_mounted_volume(job: dict) -> None:
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    paths = [argument.partition("=")[2] or argument for argument in container["args"] if "/" in argument]
    for path in paths:
        assert any(Path(mount) in Path(path).parents for mount in mounts), path
    assert "readOnly" not in mounts["/root-volume"]


def test_crontab_calls_a_command_that_exists() -> None:
    """As /etc/cron.d has it: five fields, a user, and a command for the shell."""
    lines = [line for line in (DEPLOY / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines[:-1])
    *fields, user, command = lines[-1].split(maxsplit=6)
    assert CronSim(" ".join(fields), dt.datetime(2026, 1, 1))
    assert user != "root"
    assert "%" not in command, "cron would make a line end of it"
    program, *arguments = shlex.split(command.partition(">>")[0])
    assert Path(program).name == "biobert-cnn"
    found = parses(arguments)
    assert (found["command"], found["as_json"]) == ("biobert-cnn schedule once", True)


def test_service_calls_a_command_that_exists() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "biobert-cnn-schedule.service")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "biobert-cnn"
    assert parses(arguments)["command"] == "biobert-cnn schedule run"
    assert unit["Service"]["User"] != "root"
    assert unit["Service"]["NoNewPrivileges"] == "true"
