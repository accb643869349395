"""What is deployed: files that Kubernetes, KubeRay, Ray and EC2 take, of one version, closed by default and without secrets."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from jsonschema import Draft202012Validator
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

import cdiff
from actors.resources import needs, roles
from cdiff.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
DEPLOY = ROOT / "deploy"
CLUSTER = ROOT / "cluster.yaml"
DOCKERFILE = DEPLOY / "Dockerfile"
MANIFESTS = ("network-policy.yaml", "rayjob.yaml", "rayservice.yaml")
PIN = dict(
    line.split("==")
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if "==" in line
)
IMAGE = f"registry.example.com/cdiff:{cdiff.__version__}-ray{PIN['ray']}"
Manifest = dict[str, Any]


def _read(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def _definitions() -> Manifest:
    kubernetes = json.loads((HERE / "kubernetes.json").read_text(encoding="utf-8"))["$defs"]
    kuberay = yaml.safe_load(
        (HERE / "kuberay.yaml").read_text(encoding="utf-8").replace("kubernetes.json#", "#")
    )
    return kubernetes | kuberay["$defs"]


DEFINITIONS = _definitions()
ALL = [(name, manifest) for name in MANIFESTS for manifest in _read(name)]
RAY = {manifest["kind"]: manifest for _, manifest in ALL if manifest["kind"].startswith("Ray")}
POLICIES = {
    manifest["metadata"]["name"]: manifest["spec"]
    for _, manifest in ALL
    if manifest["kind"] == "NetworkPolicy"
}


def _wrong(manifest: Manifest) -> list[str]:
    """What the schema of its kind has against a manifest."""
    kind = manifest["kind"]
    (name,) = [name for name in DEFINITIONS if name.rpartition(".")[2] == kind]
    validator = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": DEFINITIONS})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def _cluster_specs() -> dict[str, Manifest]:
    return {
        "RayJob": RAY["RayJob"]["spec"]["rayClusterSpec"],
        "RayService": RAY["RayService"]["spec"]["rayClusterConfig"],
    }


def _groups(spec: Manifest) -> dict[str, Manifest]:
    return {
        "head": spec["headGroupSpec"],
        **{group["groupName"]: group for group in spec["workerGroupSpecs"]},
    }


def _templates() -> dict[str, Manifest]:
    """Every pod template, by kind and group."""
    found = {"RayJob submitter": RAY["RayJob"]["spec"]["submitterPodTemplate"]}
    for kind, spec in _cluster_specs().items():
        found |= {f"{kind} {name}": group["template"] for name, group in _groups(spec).items()}
    return found


TEMPLATES = _templates()


@pytest.mark.parametrize(
    ("name", "manifest"), ALL, ids=[f"{m['kind']} {m['metadata']['name']}" for _, m in ALL]
)
def test_kubernetes_takes_every_manifest(name: str, manifest: Manifest) -> None:
    assert not _wrong(manifest), name


def _misspell(spec: Manifest) -> None:
    spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}


def _mistype(spec: Manifest) -> None:
    spec["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] = "eight"


def _displace(spec: Manifest) -> None:
    spec["rayClusterSpec"]["terminationGracePeriodSeconds"] = 60


def _forget(spec: Manifest) -> None:
    del spec["rayClusterSpec"]["workerGroupSpecs"][1]["template"]


def _unknown_mode(spec: Manifest) -> None:
    spec["rayClusterSpec"]["authOptions"]["mode"] = "tokens"


def _unchecked(spec: Manifest) -> None:
    """A field that Kubernetes has and the trimmed schema does not describe."""
    spec["submitterPodTemplate"]["spec"]["affinity"] = {"nodeAfinity": {}}


@pytest.mark.parametrize("mistake", [_misspell, _mistype, _displace, _forget, _unknown_mode, _unchecked])
def test_a_manifest_with_a_mistake_is_refused(mistake: Callable[[Manifest], None]) -> None:
    # its YAML anchors tie equal parts together: one place is enough to break
    manifest = copy.deepcopy(RAY["RayJob"])
    mistake(manifest["spec"])
    assert _wrong(manifest)


def test_a_policy_with_a_mistake_is_refused() -> None:
    policy = copy.deepcopy(next(m for _, m in ALL if m["metadata"]["name"] == "storage"))
    policy["spec"]["egress"][0]["port"] = policy["spec"]["egress"][0].pop("ports")
    assert _wrong(policy)


def test_every_quantity_is_one() -> None:
    amount = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
    for place, template in TEMPLATES.items():
        for container in template["spec"]["containers"]:
            for kind in ("requests", "limits"):
                for name, value in container["resources"][kind].items():
                    assert amount.fullmatch(str(value)), f"{place}: {kind}.{name}={value}"
        for volume in template["spec"]["volumes"]:
            assert amount.fullmatch(volume["emptyDir"]["sizeLimit"]), place


def test_versions_equal_the_lock_file_everywhere() -> None:
    for kind, spec in _cluster_specs().items():
        assert spec["rayVersion"] == PIN["ray"], kind
    images = {c["image"] for template in TEMPLATES.values() for c in template["spec"]["containers"]}
    images.add(yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))["docker"]["image"])
    assert images == {IMAGE}
    assert f"-t {IMAGE} " in DOCKERFILE.read_text(encoding="utf-8")
    told = re.compile(r"\b(ray|torch|diffusers|numpy|mlflow)==?(\d+(?:\.\d+)+)")
    named = {
        (path.name, name, version)
        for path in (CLUSTER, *DEPLOY.iterdir())
        for name, version in told.findall(path.read_text(encoding="utf-8"))
    }
    assert ("Dockerfile", "torch", PIN["torch"]) in named
    assert all(version == PIN[name] for _, name, version in named), named


def test_the_image_has_the_python_that_the_checks_run_on() -> None:
    python = re.search(r'^python_version = "([\d.]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert python is not None
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(stages) == 2
    assert all(re.fullmatch(rf"python:{re.escape(python[1])}\.\d+-slim-bookworm", stage) for stage in stages)


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_special() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    kept = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.split("/")[0] in kept, f"{source} is not sent to the builder"
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users == ["1000:1000"], "by number, so that runAsNonRoot can be checked"
    assert "RAY_AUTH_MODE=token" in text
    assert "HF_HUB_OFFLINE=1" in text


def test_hadolint_has_nothing_to_say() -> None:
    program = str(Path(sys.executable).parent / "hadolint")
    told = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_the_service_on_kuberay_is_that_of_the_config_file_but_for_its_host() -> None:
    served = yaml.safe_load(RAY["RayService"]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(served)
    alone = yaml.safe_load((DEPLOY / "serve.yaml").read_text(encoding="utf-8"))
    assert served["http_options"].pop("host") == "0.0.0.0"
    assert alone["http_options"].pop("host") == "127.0.0.1"
    assert served == alone


@pytest.mark.parametrize(("place", "template"), TEMPLATES.items(), ids=TEMPLATES)
def test_no_pod_has_more_rights_than_it_needs(place: str, template: Manifest) -> None:
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is place.endswith("head"), (
        "the autoscaler alone asks the API server"
    )
    for container in pod["containers"]:
        rights = container["securityContext"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert not rights["allowPrivilegeEscalation"]
        assert rights["readOnlyRootFilesystem"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted >= {"/tmp", "/home/cdiff"}, "Ray and the mirror write there"
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] or (
            "submitter" in place
        ), "a node that is out of memory kills whoever is above its request"


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_ray_asks_for_a_token_its_head_works_not_and_spot_has_a_floor(kind: str) -> None:
    spec = _cluster_specs()[kind]
    groups = _groups(spec)
    assert spec["authOptions"] == {"mode": "token"}
    assert groups["head"]["rayStartParams"]["num-cpus"] == "0"
    floor, spot = groups["gpu-on-demand"], groups["gpu-spot"]
    assert floor["minReplicas"] >= 1
    assert spot["minReplicas"] == 0 < spot["maxReplicas"]
    kinds = {
        name: group["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"]
        for name, group in groups.items()
    }
    assert kinds == {"head": "on-demand", "gpu-on-demand": "on-demand", "gpu-spot": "spot"}
    tolerated = {toleration["key"] for toleration in spot["template"]["spec"]["tolerations"]}
    assert tolerated == {"nvidia.com/gpu", "karpenter.sh/capacity-type"}
    for group in groups.values():
        (container,) = group["template"]["spec"]["containers"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


def test_a_stopped_loop_is_started_again_by_the_same_command() -> None:
    job = RAY["RayJob"]["spec"]
    assert job["backoffLimit"] > 0
    assert re.search(r" --run \S+ ", job["entrypoint"]), (
        "a run that is named, so that the next cluster finds it"
    )
    assert " --home s3://" in job["entrypoint"], "no disk of a pod"


@pytest.mark.parametrize("told", [CLUSTER.read_text(encoding="utf-8"), RAY["RayJob"]["spec"]["entrypoint"]])
def test_what_must_be_alive_fits_the_one_card_that_nobody_takes_away(told: str) -> None:
    config = load_config(ROOT / "configs" / "mvtec.yaml", re.findall(r"resources\.\w+=[\w.]+", told))
    assert config.resources.least_generators < config.resources.generators, "spot has something to do"
    assert sum(needs(config, role).get("GPU", 0) * count for role, count in roles(config).items()) <= 1
    cards = _cluster()["available_node_types"]["gpu-spot"]["max_workers"]
    assert needs(config, "generator")["GPU"] * config.resources.generators <= cards + 1


def test_requests_that_have_begun_may_end_before_a_pod_does() -> None:
    for group in _groups(_cluster_specs()["RayService"]).values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 60, (
            "Serve's graceful_shutdown_timeout_s"
        )


def test_nobody_talks_to_a_pod_unless_a_policy_says_so() -> None:
    assert POLICIES["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    doors = {name: policy["ingress"] for name, policy in POLICIES.items() if "ingress" in policy}
    assert set(doors) == {"within-ray", "operator-to-head", "clients-to-service"}
    for rules in doors.values():
        assert all(rule["from"] for rule in rules), "an empty `from` means everybody"
    (rule,) = doors["clients-to-service"]
    assert [port["port"] for port in rule["ports"]] == [8000]
    assert rule["from"][0]["namespaceSelector"]["matchLabels"]


@pytest.mark.parametrize(("place", "template"), TEMPLATES.items(), ids=TEMPLATES)
def test_policies_reach_every_pod(place: str, template: Manifest) -> None:
    labels = template["metadata"]["labels"]
    reached = {
        name
        for name, policy in POLICIES.items()
        if policy["podSelector"].get("matchLabels", {}).items() <= labels.items()
    }
    assert reached >= {"deny-all", "within-ray", "names", "storage"}
    assert ("operator-to-head" in reached) is place.endswith("head")
    assert ("clients-to-service" in reached) is ("gpu" in place)


def _environment(value: Any) -> Iterator[Manifest]:
    if isinstance(value, dict):
        yield from value.get("env", [])
        for inner in value.values():
            yield from _environment(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _environment(inner)


def test_no_file_holds_a_secret() -> None:
    likely = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|//[^/@\s]+:[^/@\s]+@|\b[0-9a-f]{32,}\b|\beyJ[\w-]{10,}")
    for path in (CLUSTER, *DEPLOY.iterdir()):
        text = path.read_text(encoding="utf-8")
        assert not likely.findall(text), path.name
        assert "kind: Secret" not in text, path.name
    named = [variable for _, manifest in ALL for variable in _environment(manifest)]
    assert named
    for variable in named:
        if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]):
            assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def _cluster() -> Manifest:
    return dict(yaml.safe_load(CLUSTER.read_text(encoding="utf-8")))


def test_ray_up_takes_the_cluster_file_and_not_one_with_a_mistake() -> None:
    validate_config(prepare_config(_cluster()))
    for mistake in (
        {"idle_timeout_minuets": 5},
        {"max_workers": "nine"},
        {"head_node_type": "haed"},
        {"max_workers": 0},
    ):
        with pytest.raises(Exception, match=str(next(iter(mistake)))):
            validate_config(prepare_config(_cluster() | mistake))


def test_ec2_takes_every_node() -> None:
    """Ray hands these on as they are, and nobody looks at them before the first node is started."""
    request = (
        botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    )
    validator = ParamValidator()
    nodes = _cluster()["available_node_types"]
    for name, node in nodes.items():
        count = {"MinCount": 1, "MaxCount": 1}
        assert not validator.validate(node["node_config"] | count, request).has_errors(), name
    assert validator.validate(
        {**nodes["head"]["node_config"], "InstanceTyp": "x", **count}, request
    ).has_errors()
    assert "spot" in str(nodes["gpu-spot"]["node_config"]["InstanceMarketOptions"])
    assert "InstanceMarketOptions" not in nodes["gpu-on-demand"]["node_config"]


def test_the_cluster_is_closed_its_head_works_not_and_spot_has_a_floor() -> None:
    cluster = _cluster()
    nodes = cluster["available_node_types"]
    head = nodes[cluster["head_node_type"]]
    (start,) = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert head["resources"]["CPU"] == 0
    assert "--num-cpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert nodes["gpu-on-demand"]["min_workers"] == 1
    assert nodes["gpu-spot"]["min_workers"] == 0 < nodes["gpu-spot"]["max_workers"]
    options = " ".join(cluster["docker"]["run_options"])
    token = re.search(r"-e RAY_AUTH_TOKEN_PATH=(\S+)", options)
    assert "-e RAY_AUTH_MODE=token" in options
    assert token is not None
    assert str(Path(token[1]).parent) in cluster["file_mounts"], "on every node, from the user's own file"
    assert f"chmod 600 {token[1]}" in cluster["setup_commands"]
    assert all(node["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for node in nodes.values())
