"""A base image without a registry: a Debian out of debootstrap, made once, kept outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from real.conftest import need

CACHE = Path("/var/cache/powerbench-tests")
PACKAGES = "ca-certificates,python3"
BASE = "powerbench-test-base"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# Downloads, lists, and what Debian's own images leave out.
LEFT_OUT = ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*", "dev/*", "proc/*")
LEFT_OUT += tuple(f"usr/share/{name}/*" for name in ("doc", "info", "locale", "man"))


def debian() -> Path:
    """Return a tar of a minimal Debian 12 with Python; it takes a minute, once."""
    packed = CACHE / "bookworm-python3.tar"
    if not packed.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as directory:
            tree, made = f"{directory}/tree", f"{directory}/tar"
            debootstrap = [
                need("debootstrap"),
                "--variant=minbase",
                f"--include={PACKAGES}",
                "bookworm",
                tree,
            ]
            subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL)
            excluded = [f"--exclude=./{pattern}" for pattern in LEFT_OUT]
            subprocess.run([need("tar"), "-C", tree, *excluded, "-cf", made, "."], check=True)
            Path(made).replace(packed)
    return packed


def docker(url: str, *arguments: str, **options: object) -> str:
    """Run the engine's own command; return what it prints. Raises: CalledProcessError."""
    done = subprocess.run(
        [need("docker"), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"DOCKER_HOST": url},
        **options,  # type: ignore[call-overload]
    )
    return str(done.stdout).strip()


def import_base(url: str, directory: Path) -> None:
    """Make the base image; it trusts the certificate authorities that this machine trusts."""
    docker(url, "import", str(debian()), "powerbench-test-debian")
    shutil.copy(AUTHORITIES, directory / "authorities")
    (directory / "Dockerfile").write_text(f"FROM powerbench-test-debian\nCOPY authorities {AUTHORITIES}\n")
    docker(url, "build", "--tag", BASE, str(directory))


def build(url: str, tag: str, *arguments: str) -> None:
    """Build an image on that base, by this machine's own way to its package index."""
    flags = ["--network", "host", "--build-arg", f"BASE={BASE}", "--tag", tag]
    for key in ("index-url", "extra-index-url", "trusted-host"):
        variable = "PIP_" + key.upper().replace("-", "_")
        asked = [sys.executable, "-m", "pip", "config", "get", f"global.{key}"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        urls = [word for word in os.environ.get(variable, found).split() if not word.startswith("file:")]
        if urls:
            flags += ["--build-arg", f"{variable}={' '.join(urls)}"]
    docker(url, "build", *flags, *arguments)


def megabytes(url: str, image: str) -> float:
    """Return an image's size in MB, its base included."""
    return int(docker(url, "image", "inspect", "--format", "{{.Size}}", image)) / 1e6
