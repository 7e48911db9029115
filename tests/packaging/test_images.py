"""The pipeline's images and the manifests that run them: pinned, non-root, read-only, and of files that there are."""

import fnmatch
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "pipeline" / "Dockerfile", DEPLOY / "serving" / "Dockerfile"]
MANIFESTS = [
    DEPLOY / "beam" / "flink.yaml", DEPLOY / "schedule" / "claims.yaml", DEPLOY / "schedule" / "cronjob.yaml",
]  # fmt: skip


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, its text) of every stage, comments and line ends taken out."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines())]


def stages(dockerfile: Path) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name; ones without a name by number."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            name = rest.partition(" AS ")[2] or str(len(found))
            found[name] = []
        if found:
            found[name].append((word, rest))
    return found


def documents(manifest: Path) -> list[dict]:
    return [document for document in yaml.safe_load_all(manifest.read_text()) if document]


def pods(manifest: Path) -> list[dict]:
    found = []
    for document in documents(manifest):
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found.append(spec["template"]["spec"])
    return found


def pins(lock: Path) -> dict[str, set[str]]:
    """Versions by package; several where they differ between Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    assert found
    return found


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_every_base_image_is_pinned(dockerfile: Path) -> None:
    values = dict(re.findall(r"^ARG (\w+)=(\S+)", dockerfile.read_text(), re.MULTILINE))
    names = set(stages(dockerfile))
    images = [rest.partition(" AS ")[0] for word, rest in instructions(dockerfile) if word == "FROM"]
    images += re.findall(r"--from=(\S+)", dockerfile.read_text())
    assert images
    for image in images:
        image = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], image)
        if image not in names:
            assert re.search(r":\d+\.\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$", image), image


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_every_base_image_can_be_given_by_digest(dockerfile: Path) -> None:
    names, found = set(stages(dockerfile)), instructions(dockerfile)
    before = [word for word, _ in found[: [word for word, _ in found].index("FROM")]]
    bases = {rest.partition(" AS ")[0] for word, rest in found if word == "FROM"} - names
    assert len(before) == len(bases)
    assert all(re.fullmatch(r"\$\{[A-Z_]+\}", base) for base in bases), bases
    assert set(re.findall(r"--from=(\S+)", dockerfile.read_text())) <= names


@pytest.mark.parametrize("folder", ["beam", "schedule", "serving"])
def test_every_image_of_a_cluster_can_be_given_by_digest(folder: str) -> None:
    """By the kustomization, which says the same tags as the manifests."""
    (kustomization,) = documents(DEPLOY / folder / "kustomization.yaml")
    used = {
        container["image"]
        for name in kustomization["resources"]
        for pod in pods(DEPLOY / folder / name)
        for container in pod["containers"]
    }
    assert used == {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]}


def test_a_step_of_a_build_that_fails_ends_the_build() -> None:
    """What may fail stands in braces of its own: `a && b || true` would let a fail, too."""
    steps = [rest for word, rest in instructions(DOCKERFILES[0]) if word == "RUN"]
    assert steps
    for step in steps:
        outside = re.sub(r"\{ .*? \}", "", step)
        assert "||" not in outside, step
        assert ";" not in outside, step


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_no_image_runs_as_root(dockerfile: Path) -> None:
    found = stages(dockerfile)
    final = list(found)[-1]
    runs = {name for name in found if name in ("pipeline", "worker", final)}
    for name in runs:
        steps = found[name]
        base = steps[0][1].partition(" AS ")[0]
        users = [rest for word, rest in [*found.get(base, []), *steps] if word == "USER"]
        assert users, name
        assert all(int(user.partition(":")[0]) > 0 for user in users), name


def test_every_file_that_is_copied_exists_and_is_in_the_context() -> None:
    dockerfile = DOCKERFILES[0]
    rules = [
        line for line in (dockerfile.parent / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] != "#"
    ]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [rest for word, rest in instructions(dockerfile) if word == "COPY" and "--from=" not in rest]
    assert copied
    for line in copied:
        for source in line.split()[:-1]:
            files = list(ROOT.glob(source.rstrip("/")))
            assert files, source
            for file in files:
                name = file.relative_to(ROOT).as_posix()
                assert any(fnmatch.fnmatch(name, rule) for rule in allowed), name
    serving = DOCKERFILES[1]
    for line in (rest for word, rest in instructions(serving) if word == "COPY"):
        assert (serving.parent / line.split()[0]).exists(), line


def test_images_hold_the_packages_that_were_tested() -> None:
    tested, cpu = pins(DEPLOY / "bootstrap" / "requirements.txt"), pins(DEPLOY / "pipeline" / "requirements.txt")
    assert [name for name, versions in cpu.items() if not versions <= tested.get(name, set())] == []
    assert "pytest" not in cpu
    gpu = pins(DEPLOY / "pipeline" / "requirements-gpu.txt")
    more = {name for name in gpu if name not in cpu}
    assert {name: gpu[name] for name in cpu} == cpu
    assert more
    assert all(name.startswith("nvidia-") for name in more)
    lines = [line for extra in ("pipeline", "kfp", "tracing") for line in declared(extra)]
    names = {Requirement(line).name.lower() for line in lines if "biobert-cnn" not in line}
    assert names <= set(cpu)


def declared(extra: str) -> list[str]:
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]


@pytest.mark.parametrize(
    "lock",
    [
        "bootstrap/requirements.txt", "pipeline/requirements.txt", "pipeline/requirements-gpu.txt",
        "airflow/requirements.txt",
    ],
)  # fmt: skip
def test_every_locked_package_has_hashes_and_no_address(lock: str) -> None:
    text = (DEPLOY / lock).read_text()
    for block in re.split(r"\n(?=[\w.-]+(?:\[[\w,-]+\])?==)", text):
        assert "--hash=sha256:" in block, block[:100]
    assert "://" not in text
    assert "index-url" not in text


def test_entry_points_are_programs_that_there_are() -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found = stages(DOCKERFILES[0])
    (entry,) = [json.loads(rest) for word, rest in found["pipeline"] if word == "ENTRYPOINT"]
    assert entry[0] in scripts
    (worker,) = [json.loads(rest) for word, rest in found["worker"] if word == "ENTRYPOINT"]
    (boot,) = [rest.split()[-1] for word, rest in found["worker"] if word == "COPY"]
    assert worker == [f"{boot}/boot"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_valid_kubernetes(manifest: Path) -> None:
    for document in documents(manifest):
        kubernetes_validate.validate(document, "1.33", strict=True)


def test_cronjob_needs_nothing_that_is_neither_applied_with_it_nor_named_in_its_header() -> None:
    folder = DEPLOY / "schedule"
    (kustomization,) = documents(folder / "kustomization.yaml")
    made = {
        (document["kind"], document["metadata"]["name"])
        for name in kustomization["resources"]
        for document in documents(folder / name)
    }
    (pod,) = pods(folder / "cronjob.yaml")
    header = (folder / "cronjob.yaml").read_text().partition("apiVersion")[0]
    for volume in pod["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in made
        elif config := volume.get("configMap"):
            assert f"create configmap -n {kustomization['namespace']} {config['name']} " in header
        else:
            assert volume["emptyDir"] == {}
    assert f"create namespace {kustomization['namespace']}" in header


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_every_container_is_pinned_unprivileged_and_read_only(manifest: Path) -> None:
    for pod in pods(manifest):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = set()
        for container in pod["containers"]:
            assert re.search(r":v?\d+\.\d+[\w.-]*$", container["image"]), container["image"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            mounted |= {mount["name"] for mount in container["volumeMounts"]}
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == volumes


def test_services_of_flink_reach_the_pods_and_ports_that_they_name() -> None:
    found = documents(MANIFESTS[0])
    templates = [item["spec"]["template"] for item in found if item["kind"] == "Deployment"]
    services = [item for item in found if item["kind"] == "Service"]
    assert {item["metadata"]["name"] for item in services} == {"flink-jobmanager", "beam-job-server"}
    for service in services:
        selected = [
            template["spec"] for template in templates
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]  # fmt: skip
        (pod,) = selected
        there = {port["containerPort"] for container in pod["containers"] for port in container["ports"]}
        assert {port["port"] for port in service["spec"]["ports"]} == there
    config = yaml.safe_load(found[0]["data"]["config.yaml"])
    assert config["jobmanager"]["rpc"]["address"] == config["rest"]["address"] == "flink-jobmanager"


def test_beams_and_flinks_versions_fit_together() -> None:
    (version,) = pins(DEPLOY / "bootstrap" / "requirements.txt")["apache-beam"]
    text = DOCKERFILES[0].read_text() + MANIFESTS[0].read_text()
    assert set(re.findall(r"apache/beam_[\w.]+:([\d.]+)", text)) == {version}
    from apache_beam.options.pipeline_options import FlinkRunnerOptions

    flink = set(re.findall(r"flink:(\d+\.\d+)\.", text)) | set(re.findall(r"beam_flink([\d.]+)_job_server", text))
    assert len(flink) == 1
    assert flink <= set(FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS)


def test_flags_that_the_flink_manifest_names_are_taken_by_the_pipeline() -> None:
    from components.config import BeamConfig
    from pipeline.beam import beam_arguments, runs_here

    text = re.sub(r"^#", "", MANIFESTS[0].read_text(), flags=re.MULTILINE)
    flags = json.loads(re.search(r"pipeline_args = (\[.*?\])", text, re.DOTALL)[1])
    assert beam_arguments(BeamConfig(pipeline_args=flags)) == flags
    assert not runs_here(flags)
    service = {item["metadata"]["name"]: item for item in documents(MANIFESTS[0]) if item["kind"] == "Service"}
    endpoint = dict(flag[2:].split("=", 1) for flag in flags)
    assert endpoint["job_endpoint"] == "beam-job-server:8099"
    assert 8099 in {port["port"] for port in service["beam-job-server"]["spec"]["ports"]}
    (pod,) = [pod for pod in pods(MANIFESTS[0]) if len(pod["containers"]) == 2]
    (worker,) = [container for container in pod["containers"] if container["name"] == "worker"]
    assert endpoint["environment_config"] == f"localhost:{worker['ports'][0]['containerPort']}"
    assert endpoint["sdk_container_image"] == worker["image"]
