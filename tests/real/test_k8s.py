"""The manifests against the schemas of Kubernetes, and rendered by kubectl where that is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

K8S = Path(__file__).parents[2] / "packaging/k8s"
OLDEST = "1.30"  # the first that knows recursiveReadOnly
VERSIONS = [OLDEST, kubernetes_validate.latest_version()]
CUSTOM = ("PodMonitor",)  # the operator's own kind, of which Kubernetes has no schema


def whole_documents() -> list[dict[str, Any]]:
    """Return the manifests that are whole, which patches and kustomizations are not."""
    files = [path for folder in ("agent", "base") for path in sorted((K8S / folder).glob("*.yaml"))]
    found = [document for path in files for document in yaml.safe_load_all(path.read_text())]
    return [document for document in found if document["kind"] not in (*CUSTOM, "Kustomization")]


def render(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (Debian 12 has one that is too old)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def by_name(documents: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "document", whole_documents(), ids=lambda it: f"{it['kind']}-{it['metadata']['name']}"
)
def test_a_manifest_is_what_kubernetes_takes(document: dict[str, Any], version: str) -> None:
    """Each manifest fits its schema, and has no key that the schema does not know."""
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_what_is_rendered_is_what_kubernetes_takes(folder: str, version: str) -> None:
    """What kubectl makes of the base and of the overlay fits the schemas as well."""
    documents = [document for document in render(K8S / folder) if document["kind"] not in CUSTOM]
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    assert {"DaemonSet", "ConfigMap", "Service", "ServiceAccount"} <= {
        document["kind"] for document in documents
    }


def test_every_node_has_one_agent() -> None:
    """Of two DaemonSets one takes the GPU nodes, the other leaves them, and they share no pods."""
    rendered = by_name(render(K8S / "gpu"))
    plain = rendered["DaemonSet", "powerbench-agent"]["spec"]
    gpu = rendered["DaemonSet", "powerbench-agent-gpu"]["spec"]
    assert gpu["template"]["spec"]["nodeSelector"]["nvidia.com/gpu.present"] == "true"
    assert "affinity" not in gpu["template"]["spec"]
    affinity = plain["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "nvidia.com/gpu.present", "operator": "NotIn", "values": ["true"]}
    ]
    assert plain["selector"] != gpu["selector"]


def test_the_guides_overlay_is_good(tmp_path: Path) -> None:
    """The overlay in docs/packages.md: its image and configuration everywhere, root without a capability."""
    guide = (K8S.parents[1] / "docs/packages.md").read_text()
    (overlay,) = re.findall(r"```yaml\n(# kustomization.yaml\n.*?)```", guide, re.DOTALL)
    (monitor,) = re.findall(r"```yaml\n(patches:\n.*?delete.*?)```", guide, re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(overlay + monitor)
    (tmp_path / "agent.toml").write_text("# mine")
    shutil.copytree(K8S, tmp_path / "powerbench/packaging/k8s")
    rendered = render(tmp_path)
    (configuration,) = [document for document in rendered if document["kind"] == "ConfigMap"]
    assert configuration["data"] == {"agent.toml": "# mine"}
    assert "PodMonitor" not in {document["kind"] for document in rendered}
    sets = [document for document in rendered if document["kind"] == "DaemonSet"]
    assert len(sets) == 2
    for one in sets:
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsUser"] == 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["containers"][0]["image"].startswith("registry.example/")
        named = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        assert named == [configuration["metadata"]["name"]]
