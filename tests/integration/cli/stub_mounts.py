"""The stub daemon's mounts, and a guest whose files `arcbox cp` copies: those of the host."""
# ruff: noqa: N802 - the methods have the names of their RPCs

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import cached_property

from arcboxd.errors import MountNotFoundError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2, host_pb2, host_pb2_grpc
from tests.integration.cli.stub_saved import Context, fail


class MountHost(host_pb2_grpc.HostServiceServicer):
    """These RPCs of the host; the others are the stub's own."""

    @cached_property
    def mounts(self) -> dict[str, host_pb2.Mount]:
        return {}

    def AddMount(self, request: host_pb2.AddMountRequest, context: Context) -> host_pb2.Mount:
        wanted = request.mount
        mount = host_pb2.Mount(
            host_path=wanted.host_path,
            guest_path=wanted.guest_path,
            readonly=wanted.readonly,
            filesystem="9p",
            state="mounted",
        )
        if wanted.guest_path == "/broken":
            mount.filesystem, mount.state, mount.detail = "", "failed", "the host path is gone"
        self.mounts[wanted.guest_path] = mount
        return mount

    def RemoveMount(
        self, request: host_pb2.RemoveMountRequest, context: Context
    ) -> host_pb2.RemoveMountResponse:
        if self.mounts.pop(request.guest_path, None) is None:
            fail(context, MountNotFoundError("machine 'web' has no mount there", hint="look"))
        return host_pb2.RemoveMountResponse()

    def ListMounts(
        self, request: host_pb2.ListMountsRequest, context: Context
    ) -> host_pb2.ListMountsResponse:
        return host_pb2.ListMountsResponse(mounts=self.mounts.values())

    def _busybox(
        self, start: guest_pb2.ExecStart, inputs: Iterator[guest_pb2.ExecInput]
    ) -> Iterator[guest_pb2.ExecOutput]:
        """Run what `arcbox cp` asks of the guest's busybox by the host's own programs."""
        argv = [word.replace(start.argv[0], "") for word in start.argv[1:]]
        stdin = b""
        if start.stdin:
            for item in inputs:
                if item.HasField("close_stdin"):
                    break
                stdin += item.stdin
        done = subprocess.run(argv, input=stdin, capture_output=True, check=False)
        for begin in range(0, len(done.stdout), 60_000):
            yield guest_pb2.ExecOutput(stdout=done.stdout[begin : begin + 60_000])
        yield guest_pb2.ExecOutput(stderr=done.stderr)
        yield guest_pb2.ExecOutput(exit=guest_pb2.ExecExit(code=done.returncode))


setattr(MountHost, "_/run/arcbox/bundle/bin/busybox", MountHost._busybox)
