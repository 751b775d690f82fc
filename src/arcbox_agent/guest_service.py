"""GuestService: what the daemon needs of the agent beyond the published contract."""

# Imports come late: start-up takes long under emulation.
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import TYPE_CHECKING

from arcbox_agent import exec as exec_call
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2

if TYPE_CHECKING:
    from arcbox_agent.calls import MessageStream
    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.clone import Clone
    from arcbox_agent.kernel import Kernel
    from arcbox_agent.watch import Watch
    from arcboxd.wire.pb.arcbox.v1 import agent_pb2


class GuestService:
    """Serves arcbox.ext.v1.GuestService, one method an RPC. See guest.proto for what each means."""

    def __init__(
        self, kernel: Kernel, cgroups: Cgroups, clone: Clone, root: str, watch: Watch
    ) -> None:
        """Serve for the system whose files lie below `root`."""
        self._watch = watch
        self._kernel = kernel
        self._cgroups = cgroups
        self._clone = clone
        self._root = root

    async def Configure(self, request: guest_pb2.ConfigureRequest) -> guest_pb2.ConfigureResponse:
        """Make this machine the one that the host says it is."""
        from arcbox_agent import configure

        return await configure.configure(request, self._kernel, self._clone, self._root)

    async def Exec(self, stream: MessageStream[guest_pb2.ExecInput, guest_pb2.ExecOutput]) -> None:
        """Run a process."""
        self._clone.calls += 1
        try:
            await exec_call.run(stream, self._cgroups, self._root)
        finally:
            self._clone.calls -= 1

    async def Settle(self, request: guest_pb2.SettleRequest) -> guest_pb2.SettleResponse:
        """Bring the system to rest, for clones of it to go on."""
        from arcbox_agent import settle

        timeout_s = request.timeout_millis / 1000
        system = self._kernel.system(self._cgroups)
        return await settle.settle(system, self._kernel, self._clone, self._root, timeout_s)

    async def Begin(self, _request: guest_pb2.BeginRequest) -> guest_pb2.BeginResponse:
        """Let a clone begin what it has held back."""
        self._clone.begin_soon()
        return guest_pb2.BeginResponse()

    async def WaitForPort(
        self, request: guest_pb2.WaitForPortRequest
    ) -> guest_pb2.WaitForPortResponse:
        """Wait for a listener."""
        from arcbox_agent.ports import wait_for_port

        self._clone.begin()  # it may be the SSH server that is waited for
        await wait_for_port(request.port, request.timeout_millis / 1000)
        return guest_pb2.WaitForPortResponse()

    async def WaitBooted(
        self, request: guest_pb2.WaitBootedRequest
    ) -> guest_pb2.WaitBootedResponse:
        """Wait for init, and for what a clone has held back."""
        from arcbox_agent.booted import wait_booted

        self._clone.begin()
        failed = await wait_booted(self._cgroups, request.timeout_millis / 1000)
        return guest_pb2.WaitBootedResponse(failed=failed)

    async def Watch(
        self, stream: MessageStream[guest_pb2.WatchGuestRequest, guest_pb2.GuestEvent]
    ) -> None:
        """Tell what the daemon has to act on."""
        await self._watch.serve(stream, f"{self._root}/var/run/docker.sock")

    async def MmapReadFile(
        self, request: agent_pb2.MmapReadFileRequest
    ) -> agent_pb2.MmapReadFileResponse:
        """Read a file through a shared mapping."""
        from arcbox_agent import mmap_read

        return await mmap_read.read(request)

    async def SetKubernetesAddress(
        self, request: guest_pb2.SetKubernetesAddressRequest
    ) -> guest_pb2.SetKubernetesAddressResponse:
        """Keep where the host reaches the cluster."""
        from arcbox_agent.kubernetes_layout import Layout, write_address
        from arcbox_agent.runtime_config import Layout as RuntimeLayout

        layout = Layout(RuntimeLayout(self._root))
        write_address(layout, request.endpoint, request.context)
        return guest_pb2.SetKubernetesAddressResponse()

    async def Mount(self, request: guest_pb2.MountRequest) -> guest_pb2.MountResponse:
        """Mount a directory of the host."""
        await self._kernel.mount_share(request, self._cgroups)
        return guest_pb2.MountResponse()

    async def Unmount(self, request: guest_pb2.UnmountRequest) -> guest_pb2.UnmountResponse:
        """Unmount a directory of the host."""
        await self._kernel.unmount_share(request)
        return guest_pb2.UnmountResponse()
