"""The stub daemon's base images."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

import time

from arcboxd.errors import CorruptError, PreconditionError
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2
from tests.integration.cli.stub_saved import CREATED, KEYS, NS, Context, fail

DEBIAN = host_pb2.Image(
    key=KEYS[0],
    source="debian",
    distro="debian",
    version="bookworm",
    arch="x86_64",
    init="systemd",
    apparent_bytes=3 << 30,
    allocated_bytes=200 << 20,
    created_unix_nanos=CREATED * NS,
    machines=["db", "web"],
    templates=1,
)


class ImageHost:
    """These RPCs of the host."""

    requests: list[object]

    def _imported(self, distro: str) -> host_pb2.Image:
        return host_pb2.Image(
            key=KEYS[1],
            source="file",
            distro=distro,
            version="3.23",
            arch="x86_64",
            init="openrc",
            apparent_bytes=1 << 30,
            allocated_bytes=85 << 20,
            created_unix_nanos=(int(time.time()) - 7300) * NS,
        )

    def ListImages(
        self, request: host_pb2.ListImagesRequest, context: Context
    ) -> host_pb2.ListImagesResponse:
        return host_pb2.ListImagesResponse(images=[DEBIAN, self._imported("alpine")])

    def PullImage(self, request: host_pb2.PullImageRequest, context: Context) -> host_pb2.Image:
        self.requests.append(request)
        time.sleep(0.2)
        return self._imported(request.distro)

    def ImportImage(self, request: host_pb2.ImportImageRequest, context: Context) -> host_pb2.Image:
        self.requests.append(request)
        time.sleep(0.2)
        if request.sha256:
            fail(context, CorruptError("the SHA-256 digest is another", hint="get it again"))
        return self._imported(request.name)

    def RemoveImage(
        self, request: host_pb2.RemoveImageRequest, context: Context
    ) -> host_pb2.RemoveImageResponse:
        if request.key == "debian:bookworm":
            fail(context, PreconditionError("machines rest on the image: db, web", hint="rm them"))
        self.requests.append(request)
        return host_pb2.RemoveImageResponse(freed_bytes=85 << 20)

    def PruneImages(
        self, request: host_pb2.PruneImagesRequest, context: Context
    ) -> host_pb2.PruneImagesResponse:
        return host_pb2.PruneImagesResponse(
            keys=[KEYS[1]], freed_bytes=85 << 20, boot_files=["agent-" + "0123456789abcdef" * 2]
        )

    def UpdateBootFiles(
        self, request: host_pb2.UpdateBootFilesRequest, context: Context
    ) -> host_pb2.UpdateBootFilesResponse:
        return host_pb2.UpdateBootFilesResponse(
            kernel_version="6.1.0-99-amd64", changed=request.arch == "arm64"
        )

    def VerifyImage(
        self, request: host_pb2.VerifyImageRequest, context: Context
    ) -> host_pb2.VerifyImageResponse:
        damaged = ["root.img"] if request.key == "alpine:3.23" else []
        return host_pb2.VerifyImageResponse(damaged=damaged)
