"""deploy/serving: every text proto parses as its real message, every manifest is valid, and they agree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format

from serving.batching_options import BatchingOptions, read_options
from serving.client import Client
from serving.flags import parse
from serving.metrics import Metrics
from serving.protos import MonitoringConfig, SSLConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "serving"
TLS = DEPLOY.with_name("serving-tls")
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def load(name: str):
    return yaml.safe_load((DEPLOY / name).read_text())


def container() -> dict:
    return load("kubernetes/deployment.yaml")["spec"]["template"]["spec"]["containers"][0]


def docker_arguments() -> list[str]:
    command = re.search(r"^CMD (\[.*?\])", (DEPLOY / "Dockerfile").read_text(), re.DOTALL | re.MULTILINE).group(1)
    return json.loads(command.replace("\\\n", ""))


def test_the_image_is_built_by_the_name_that_compose_file_and_deployment_ask_for():
    named = re.findall(r"^#.*?(biobert-cnn-serving\S*)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert len(named) == 2, "to build and to run"
    asked = {service["image"] for service in load("compose.yaml")["services"].values()} | {container()["image"]}
    assert set(named) == {image for image in asked if image.startswith("biobert-cnn-serving")}


@pytest.mark.parametrize("name", ["models.config", "models.canary.config"])
def test_the_model_configurations_parse_and_name_one_model(name):
    from tensorflow_serving.config import model_server_config_pb2

    from serving.config import check_models

    found = text_format.Parse((DEPLOY / "config" / name).read_text(), model_server_config_pb2.ModelServerConfig())
    check_models(found)
    model = found.model_config_list.config[0]
    assert (model.name, model.base_path, model.model_platform) == (
        "biobert_cnn", "/models/biobert_cnn", "tensorflow",
    )  # fmt: skip
    if "canary" in name:
        assert dict(model.version_labels) == {"stable": 1, "canary": 2}
        assert set(model.version_labels.values()) == set(model.model_version_policy.specific.versions)


def test_the_batching_parameters_and_the_monitoring_config_parse():
    found = read_options(str(DEPLOY / "config/batching_parameters.txt"), 0)
    assert found == BatchingOptions(max_batch_size=32, timeout_s=0.001, max_enqueued_batches=2, num_threads=1)
    monitoring = text_format.Parse((DEPLOY / "config/monitoring.config").read_text(), MonitoringConfig())
    assert monitoring.prometheus_config.enable
    path = container_annotations()["prometheus.io/path"]
    assert (
        monitoring.prometheus_config.path
        == path
        == load("monitoring/prometheus.yaml")["scrape_configs"][0]["metrics_path"]
    )


def container_annotations() -> dict[str, str]:
    return load("kubernetes/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]


def test_an_ssl_config_made_of_pem_files_parses_to_them(tmp_path):
    pem = "-----BEGIN X-----\nab+/\n-----END X-----\n"
    for name in ("key", "cert", "ca"):
        (tmp_path / name).write_text(pem.replace("X", name))

    def make(*files: str) -> SSLConfig:
        script = [DEPLOY / "make_ssl_config.sh", *[tmp_path / f for f in files]]
        out = subprocess.run(script, check=True, capture_output=True, text=True).stdout
        return text_format.Parse(out, SSLConfig())

    plain = make("key", "cert")
    assert (plain.server_key, plain.server_cert) == (pem.replace("X", "key"), pem.replace("X", "cert"))
    assert (plain.custom_ca, plain.client_verify) == ("", False)
    mutual = make("key", "cert", "ca")
    assert (mutual.custom_ca, mutual.client_verify) == (pem.replace("X", "ca"), True)
    (tmp_path / "bad").write_text("nothing")
    failed = subprocess.run(
        [DEPLOY / "make_ssl_config.sh", tmp_path / "bad", tmp_path / "cert"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (failed.returncode, failed.stderr) == (1, f"{tmp_path}/bad: not a PEM file\n")


@pytest.mark.parametrize(
    ("arguments", "models"),
    [
        (container()["args"], "models.config"), (container()["args"], "models.canary.config"),
        (docker_arguments(), "models.config"),
    ],
    ids=["kubernetes", "kubernetes-canary", "docker"],
)  # fmt: skip
def test_this_project_s_server_serves_with_the_containers_arguments_and_files(
    serve, toys, tmp_path, eventually, arguments, models
):
    flags = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    mounts = {"/models/biobert_cnn": tmp_path / "models", "/etc/biobert-cnn": tmp_path / "etc"}
    for version in ("1", "2"):
        shutil.copytree(toys.text / "1", mounts["/models/biobert_cnn"] / version)
    shutil.copytree(DEPLOY / "config", mounts["/etc/biobert-cnn"])
    text = (DEPLOY / "config" / models).read_text()
    for there, here in mounts.items():
        text = text.replace(there, str(here))
        flags = {name: value.replace(there, str(here)) for name, value in flags.items()}
    (mounts["/etc/biobert-cnn"] / "models.config").write_text(text)
    assert (flags["port"], flags["rest_api_port"]) == ("8500", "8501")
    running = serve(**flags | {"port": 0, "rest_api_port": -1})
    with Client(running.target, "biobert_cnn") as client:
        eventually(lambda: client.available_versions() == [2, 1])
        assert client.predict(["a"])[0].model_version == 2
    if "canary" in models:
        for label, version in (("stable", 1), ("canary", 2)):
            with Client(running.target, "biobert_cnn", version_label=label) as client:
                assert client.predict(["a"])[0].model_version == version
    probes = [container()[p]["httpGet"]["path"] for p in ("startupProbe", "readinessProbe")]
    for path in {*probes, container_annotations()["prometheus.io/path"]}:
        with urllib.request.urlopen(running.rest + path, timeout=30) as response:
            assert response.status == 200


@pytest.mark.parametrize("path", MANIFESTS, ids=[p.stem for p in MANIFESTS])
def test_manifests_are_valid_kubernetes(path):
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_manifests_belong_together():
    kustomization = load("kustomization.yaml")
    assert sorted(kustomization["resources"]) == sorted(f"kubernetes/{p.name}" for p in MANIFESTS)
    for name in kustomization["configMapGenerator"][0]["files"]:
        assert (DEPLOY / name.partition("=")[2] if "=" in name else DEPLOY / name).is_file()
    pod = load("kubernetes/deployment.yaml")["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert load("kubernetes/deployment.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("kubernetes/service.yaml")["spec"]["selector"] == labels
    assert load("kubernetes/disruption-budget.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("kubernetes/network-policy.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    assert load("kubernetes/autoscaler.yaml")["spec"]["scaleTargetRef"]["name"] == "biobert-cnn-serving"
    ports = {p["name"]: p["containerPort"] for p in container()["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    names = {yaml.safe_load(p.read_text())["metadata"].get("namespace", "biobert-cnn") for p in MANIFESTS}
    assert names == {kustomization["namespace"]}
    volumes = {v["name"] for v in pod["spec"]["volumes"]}
    assert {m["name"] for m in container()["volumeMounts"]} == volumes
    assert load("kubernetes/claim.yaml")["metadata"]["name"] in json.dumps(pod["spec"]["volumes"])


def with_tls(file: str) -> dict:
    """A manifest as deploy/serving-tls has it."""
    manifest = load(file)
    target = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
    overlay = yaml.safe_load((TLS / "kustomization.yaml").read_text())
    (patch,) = [p for p in overlay["patches"] if p["target"] == target]
    for change in yaml.safe_load(patch["patch"]):
        place = manifest
        *path, last = change["path"].split("/")[1:]
        for key in path:
            place = place[int(key) if key.isdigit() else key]
        if change["op"] == "remove":
            del place[last]
        else:
            assert (change["op"], last) == ("add", "-")
            place.append(change["value"])
    return manifest


def test_the_port_with_tls_is_not_announced_as_clear_text():
    service = with_tls("kubernetes/service.yaml")
    kubernetes_validate.validate(service, "1.33", strict=True)
    assert [port.get("appProtocol") for port in service["spec"]["ports"]] == [None, "http"]


def test_compose_with_tls_adds_a_flag_and_the_file_that_it_names():
    served = yaml.safe_load((TLS / "compose.yaml").read_text())["services"]["serving"]
    assert served["command"][:-1] == docker_arguments()
    (volume,) = served["volumes"]
    assert parse(["--model_base_path=/m", served["command"][-1]]).ssl_config_file == volume["target"]


def test_the_overlay_for_tls_adds_a_flag_a_mount_and_a_secret_that_fit_together():
    deployment = with_tls("kubernetes/deployment.yaml")
    kubernetes_validate.validate(deployment, "1.33", strict=True)
    pod = deployment["spec"]["template"]["spec"]
    (served,) = pod["containers"]
    assert served["args"][:-1] == container()["args"]
    file = Path(parse(["--model_base_path=/m", served["args"][-1]]).ssl_config_file)
    (mount,) = [m for m in served["volumeMounts"] if m["mountPath"] == str(file.parent)]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    text = (TLS / "kustomization.yaml").read_text()
    overlay, base = yaml.safe_load(text), load("kustomization.yaml")
    assert [(TLS / path).resolve() for path in overlay["resources"]] == [DEPLOY]
    assert f"[CLIENT_AUTHORITY] > {file.name}\n" in text
    create = f"create secret generic {volume['secret']['secretName']} --from-file={file.name}\n"
    assert f"kubectl --namespace={base['namespace']} {create}" in text


def test_the_pod_has_no_privileges_and_cannot_write_to_its_image():
    pod = load("kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    grace = container()["lifecycle"]["preStop"]["exec"]["command"][1]
    assert pod["terminationGracePeriodSeconds"] > int(grace) + parse(["--model_base_path=/m"]).drain_seconds
    compose = load("compose.yaml")["services"]["serving"]
    assert (compose["read_only"], compose["cap_drop"]) == (True, ["ALL"])
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])


def test_compose_mounts_files_that_exist():
    for service in load("compose.yaml")["services"].values():
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                assert (DEPLOY / volume.split(":")[0]).is_file()


def test_rules_and_dashboard_use_metrics_that_the_server_has():
    known = {m.name for m in vars(Metrics()).values()}
    expressions = [r["expr"] for g in load("monitoring/rules.yaml")["groups"] for r in g["rules"]]
    dashboard = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())
    expressions += [t["expr"] for p in dashboard["panels"] for t in p["targets"]]
    used = {name.removesuffix("_bucket") for e in expressions for name in re.findall(r"(?<![\w:]):\w[\w:]*", e)}
    assert used
    assert used <= known
    # Stock TensorFlow Serving's metrics of batching have no model_name; a panel must find them, too.
    batching = [e for e in expressions if ":batching_session:" in e]
    assert batching
    assert all('{model_name=~"$model|"}' in e for e in batching)


def test_sigterm_reaches_a_server_that_does_not_handle_it():
    """The kernel withholds it from the first process of a container, which stock TensorFlow Serving must not be."""
    assert load("kubernetes/deployment.yaml")["spec"]["template"]["spec"]["shareProcessNamespace"] is True
    assert load("compose.yaml")["services"]["serving"]["init"] is True


def test_the_number_of_replicas_is_the_autoscaler_s_alone():
    assert "replicas" not in load("kubernetes/deployment.yaml")["spec"]
    assert load("kubernetes/autoscaler.yaml")["spec"]["minReplicas"] >= 2
