"""Real certificates and keys, made once by openssl."""

from __future__ import annotations

import base64
import functools
import subprocess
import tempfile
from pathlib import Path


@functools.cache
def pair(name: str = "user") -> tuple[str, str]:
    """Give a self-signed certificate and its key, as a kubeconfig has them."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        argv = ["openssl", "req", "-x509", *curve, *files, "-subj", f"/CN={name}"]
        subprocess.run(argv, check=True, capture_output=True)
        return encoded(certificate.read_text()), encoded(key.read_text())


def encoded(text: str) -> str:
    """Give the base64 of a text."""
    return base64.b64encode(text.encode()).decode()
