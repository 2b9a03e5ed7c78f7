"""The Kubernetes manifests: sealed, whole, in step with the rest. Their schemas: tests/real/test_k8s.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from places import ROOT

from powerbench_agent.agent import __version__, listen, roster
from powerbench_agent.agent.config import load

if TYPE_CHECKING:
    from pathlib import Path

K8S = ROOT / "packaging/k8s"
KUSTOMIZATIONS = sorted(K8S.rglob("kustomization.yaml"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((K8S / name).read_text()))


DAEMONSET = documents("agent/daemonset.yaml")[0]
POD = DAEMONSET["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


def walk(node: object) -> list[tuple[str, object]]:
    """Return every key of a document with its value, however deep."""
    if isinstance(node, dict):
        return [pair for key, value in node.items() for pair in [(str(key), value), *walk(value)]]
    if isinstance(node, list):
        return [pair for value in node for pair in walk(value)]
    return []


def named_by(kustomization: Path) -> set[Path]:
    """Return the files, and the folders' own kustomizations, that a kustomization is made of."""
    said = yaml.safe_load(kustomization.read_text())
    names = [
        *said.get("resources", []),
        *(patch["path"] for patch in said.get("patches", []) if "path" in patch),
    ]
    names += [name for generator in said.get("configMapGenerator", []) for name in generator["files"]]
    paths = {(kustomization.parent / name).resolve() for name in names}
    return {path / "kustomization.yaml" if path.is_dir() else path for path in paths}


def test_what_the_kustomizations_name_is_there_and_all_that_is_there() -> None:
    """No name leads nowhere, and no file lies about that no kustomization takes."""
    named = set().union(*(named_by(kustomization) for kustomization in KUSTOMIZATIONS))
    there = {path for path in K8S.rglob("*") if path.is_file()}
    assert named <= there
    starts = {
        K8S / "base/kustomization.yaml",
        K8S / "gpu/kustomization.yaml",
        K8S / "root/kustomization.yaml",
    }
    assert there - named <= starts


def test_the_image_is_this_version() -> None:
    """The tag is the version that the sources have, and never `latest`."""
    assert CONTAINER["image"] == f"powerbench-agent:{__version__}"


def test_the_pod_has_no_privilege() -> None:
    """Not root, nothing added, nothing writable, none of the host's namespaces, no token of the cluster's."""
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert documents("base/serviceaccount.yaml")[0]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S)))
def test_no_file_opens_what_the_pod_closes(path: Path) -> None:
    """Neither the base nor what is laid over it asks for privilege, the host's namespaces or ports."""
    text = path.read_text()
    for key in ("privileged", "hostNetwork", "hostPID", "hostIPC", "hostPort", "procMount", "add:"):
        assert key not in text


def test_the_host_is_mounted_read_only() -> None:
    """Of the node's files there are /sys and /proc, and neither can be written to."""
    hosts = {volume["name"]: volume["hostPath"]["path"] for volume in POD["volumes"] if "hostPath" in volume}
    assert hosts == {"sys": "/sys", "proc": "/proc"}
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    assert all(
        mounts[name]["readOnly"] and mounts[name]["recursiveReadOnly"] == "IfPossible" for name in hosts
    )


def test_the_configuration_reads_what_is_mounted_and_serves_the_port_that_is_asked(tmp_path: Path) -> None:
    """agent.toml is good, reads the mounts, and listens where probes, services and monitors look."""
    text = (K8S / "base/agent.toml").read_text()
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    for name in ("sys", "proc"):  # as if this were the container
        assert f'"{mounts[name]}"' in text
        (tmp_path / mounts[name].lstrip("/")).mkdir(parents=True)
    (tmp_path / "agent.toml").write_text(text.replace('"/host', f'"{tmp_path}/host'))
    config = load(tmp_path / "agent.toml", roster.options_of(roster.load_modules()))
    assert mounts["config"] == "/etc/powerbench"
    port = CONTAINER["ports"][0]
    assert [address.port for address in listen.plan(config, roster.BUILT_IN, {})] == [port["containerPort"]]
    asked = [CONTAINER[probe]["httpGet"]["port"] for probe in ("readinessProbe", "livenessProbe")]
    asked += [
        entry["targetPort"]
        for service in documents("base/services.yaml")
        for entry in service["spec"]["ports"]
    ]
    asked += [entry["port"] for entry in documents("base/podmonitor.yaml")[0]["spec"]["podMetricsEndpoints"]]
    assert set(asked) == {port["name"]}


def test_all_that_selects_pods_selects_these() -> None:
    """The services, the policy and the monitor mean the pods that the DaemonSet makes."""
    labels = DAEMONSET["spec"]["template"]["metadata"]["labels"].items()
    assert DAEMONSET["spec"]["selector"]["matchLabels"].items() <= labels
    for service in documents("base/services.yaml"):
        assert service["spec"]["selector"].items() <= labels
    assert documents("base/networkpolicy.yaml")[0]["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert documents("base/podmonitor.yaml")[0]["spec"]["selector"]["matchLabels"].items() <= labels


def test_a_gpu_is_seen_and_not_taken() -> None:
    """The agent of a GPU node is given every GPU by the runtime, and requests none from the scheduler."""
    patch = documents("gpu/nodes/nvidia.yaml")[0]["spec"]["template"]["spec"]
    assert patch["runtimeClassName"] == "nvidia"
    environment = {entry["name"]: entry["value"] for entry in patch["containers"][0]["env"]}
    assert environment == {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility"}
    assert "resources" not in dict(walk(patch))
