"""The agent: runs as root in every guest, from our own bundle, and serves gRPC on the link."""

VERSION = "0.1.0"
