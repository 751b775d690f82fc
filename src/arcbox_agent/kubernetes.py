"""The machine's Kubernetes cluster: brings it up, says how it is, takes it down, and removes it."""

# pathlib is not imported and imports come late: start-up takes long under emulation. An API server
# that begins to answer has no event that is cheaper than a look.
# ruff: noqa: ASYNC110, PLC0415, PTH110

from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import TYPE_CHECKING

from arcbox_agent import files
from arcbox_agent.kubernetes_layout import (
    Cluster,
    Layout,
    read_address,
    read_cluster,
)
from arcbox_agent.runtime_health import READY
from arcboxd.errors import ArcboxError, PreconditionError
from arcboxd.wire.pb.arcbox.ext.v1 import guest_pb2
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    from arcbox_agent.cgroup import Cgroups
    from arcbox_agent.kubernetes_parts import Distribution
    from arcbox_agent.runtime import Runtime
    from arcbox_agent.watch import Watch

_ANSWER_S = 20.0  # clients wait about 30 s for an answer
_DISK_S = 900.0  # the host may have to fetch it
_API_POLL_S = 2.0
_NONE = "There is no cluster: none was started."

_log = logging.getLogger(__name__)


class Kubernetes:
    """The cluster of this machine, of one node."""

    def __init__(self, runtime: Runtime, watch: Watch, cgroups: Cgroups) -> None:
        """Take what it works with.

        Args:
            runtime: Whose programs, supervisor and system are used; its daemons are not.
            watch: Who is told that the disks are wanted.
            cgroups: Where services and pods live.
        """
        self.layout = Layout(runtime.layout)
        self._supervisor = runtime.supervisor
        self._system = runtime.system
        self._watch = watch
        self._cgroups = cgroups
        self._turn = asyncio.Lock()
        self._work: asyncio.Future[None] | None = None
        self._trouble = ""

    async def start(self) -> agent_pb2.KubernetesStartResponse:
        """See that the cluster runs; answer after 20 s at most, and go on. Idempotent.

        Raises:
            PreconditionError: It cannot run as things are.
            KubernetesFailedError: A step failed.
        """
        if self._work is None:
            self._trouble = ""
            self._work = asyncio.ensure_future(self._bring_up())
            self._work.add_done_callback(self._on_done)
        work = self._work
        await asyncio.wait((work,), timeout=_ANSWER_S)
        if work.done() and not work.cancelled():
            work.result()
        distribution = self._distribution()
        running = distribution is not None and distribution.is_running
        ready = distribution is not None and await distribution.api_ready()
        return agent_pb2.KubernetesStartResponse(
            running=running,
            api_ready=ready,
            endpoint=read_address(self.layout)[0],
            detail="" if ready else self._trouble or "It is being started.",
        )

    async def stop(self) -> agent_pb2.KubernetesStopResponse:
        """End processes and pods; keep the data. Idempotent."""
        distribution = await self._end()
        left = distribution is not None and distribution.is_running
        return agent_pb2.KubernetesStopResponse(
            stopped=not left, detail="The API server does not end." if left else ""
        )

    async def delete(self) -> agent_pb2.KubernetesDeleteResponse:
        """End it and remove all that it was; the next start makes a new one. Idempotent.

        Raises:
            OSError: Something cannot be removed.
        """
        from arcbox_agent.kubernetes_end import remove_files

        distribution = await self._end()
        if distribution is None:
            return agent_pb2.KubernetesDeleteResponse(detail="There was no cluster.")
        async with self._turn:
            await remove_files(distribution, read_cluster(self.layout))
        return agent_pb2.KubernetesDeleteResponse(detail="All of the cluster was removed.")

    async def status(self) -> agent_pb2.KubernetesStatusResponse:
        """Say how each part is. Takes seconds when one hangs."""
        distribution = self._distribution()
        if distribution is None:
            return agent_pb2.KubernetesStatusResponse(detail=self._trouble or _NONE)
        services = await distribution.look()
        api = next(each for each in services if each.name == distribution.api)
        ready = distribution.is_running and api.status == READY
        return agent_pb2.KubernetesStatusResponse(
            running=distribution.is_running,
            api_ready=ready,
            endpoint=read_address(self.layout)[0],
            detail=self._describe(services),
            services=services,
        )

    def kubeconfig(self) -> agent_pb2.KubernetesKubeconfigResponse:
        """Give the administrator's kubeconfig, with the address by which the host gets there.

        Raises:
            PreconditionError: There is none yet.
        """
        distribution = self._distribution()
        text = files.read(distribution.kubeconfig) if distribution is not None else ""
        endpoint, context = read_address(self.layout)
        if not text or not endpoint:
            raise PreconditionError(
                "There is no kubeconfig: the cluster has not been started, or has only just been.",
                hint="Start it, and ask again when its API server is ready.",
            )
        return agent_pb2.KubernetesKubeconfigResponse(
            kubeconfig=make_kubeconfig(text, endpoint, context),
            context_name=context,
            endpoint=endpoint,
        )

    async def shut_down(self) -> None:
        """End it for the machine's own end; the next start of the machine finds its data."""
        self._supervisor.freeze()
        if any(self._supervisor.find(name) for name in _services(self._distribution())):
            await self._end()

    # Starting

    def _on_done(self, work: asyncio.Future[None]) -> None:
        self._work = None
        if not work.cancelled() and (error := work.exception()) is not None:
            hint = f" {error.hint}" if isinstance(error, ArcboxError) and error.hint else ""
            self._trouble = f"{error}{hint}"
            _log.error("the cluster could not be brought up: %s", self._trouble)

    async def _bring_up(self) -> None:
        async with self._turn:
            await self._find_disks()
            distribution = self._distribution()
            if distribution is None:
                raise PreconditionError("The disk with Kubernetes has none in it.")
            cluster = self._take_cluster(distribution)
            await self._prepare_system()
            await distribution.start(cluster)
            while not await distribution.api_ready():
                await asyncio.sleep(_API_POLL_S)
            await distribution.complete(cluster)

    async def _find_disks(self) -> None:
        """Mount both disks, which the host has to plug in first; and learn the address."""
        self._trouble = "It waits for the disk with Kubernetes."
        try:
            await self._watch.wait_for_disk(
                guest_pb2.GuestEvent(kubernetes_wanted=guest_pb2.KubernetesWanted()),
                lambda: self._mount_disks() and read_address(self.layout)[0] != "",
                content="Kubernetes",
                timeout_s=_DISK_S,
            )
        finally:
            self._trouble = ""

    def _mount_disks(self) -> bool:
        runtime = self.layout.runtime
        return all(
            (
                runtime.has_bundle or self._system.mount_bundle("runtime", runtime.bundle),
                self.layout.has_bundle
                or self._system.mount_bundle("kubernetes", self.layout.bundle),
            )
        )

    async def _prepare_system(self) -> None:
        await self._system.wait_for_root()
        modprobe = f"{self.layout.runtime.bin}/modprobe"
        self._system.prepare(modprobe)
        await asyncio.gather(self._system.load_modules(modprobe), self._system.wait_booted())
        self._system.forward_packets()

    def _take_cluster(self, distribution: Distribution) -> Cluster:
        """Give the record of the cluster, made if there is none, or say why it cannot be started.

        Raises:
            PreconditionError: The data is another's.
        """
        root = self.layout.root
        machine_id = files.read(f"{root}/etc/machine-id").strip()
        cluster = read_cluster(self.layout)
        if cluster is None:
            found = [path for path in distribution.paths if os.path.exists(root + path)]
            if foreign := [path for path in distribution.foreign if path in found]:
                raise PreconditionError(
                    f"This machine has a Kubernetes of its own: {foreign[0]} is there.",
                    hint="Remove it, or use another machine.",
                )
            node = os.uname().nodename.lower()
            cluster = Cluster(machine_id, node, distribution.name, distribution.version, found)
        elif cluster.machine_id != machine_id:
            raise PreconditionError(
                "This machine is a copy of one that has a cluster, whose keys it must not use.",
                hint="Delete the copy's cluster; its next start makes one of its own.",
            )
        elif cluster.distribution != distribution.name:
            raise PreconditionError(
                f"The cluster was made with {cluster.distribution}, and the disk has"
                f" {distribution.name}.",
                hint="Delete the cluster, or have the former again.",
            )
        cluster.version = distribution.version
        cluster.save(self.layout)
        return cluster

    # Ending

    async def _end(self) -> Distribution | None:
        from arcbox_agent.kubernetes_end import end_cluster

        if self._work is not None:
            self._work.cancel()
            await asyncio.wait((self._work,))
        async with self._turn:
            distribution = self._distribution()
            if distribution is not None:
                await end_cluster(distribution, self._cgroups)
            self._trouble = ""
            return distribution

    # What there is

    def _distribution(self) -> Distribution | None:
        """Give what the cluster is, or what the disk would make it; None when there is neither."""
        cluster = read_cluster(self.layout)
        on_disk = self.layout.versions()
        name = "k3s" if "k3s" in on_disk else "upstream" if on_disk else ""
        if cluster is not None and (self._work is None or not name):
            name = cluster.distribution
        if not name:
            return None
        kind = _upstream() if name == "upstream" else _k3s()
        return kind(self.layout, self._supervisor, self._system)

    def _describe(self, services: list[agent_pb2.ServiceStatus]) -> str:
        if self._trouble:
            return self._trouble
        troubles = [each for each in services if each.status != READY]
        if not troubles:
            return "All parts are ready."
        if self._work is not None:
            return "It is being started."
        return "; ".join(f"{each.name}: {each.detail}" for each in troubles[:2]) + "."


def _services(distribution: Distribution | None) -> tuple[str, ...]:
    return () if distribution is None else distribution.services


def _upstream() -> type[Distribution]:
    from arcbox_agent.kubernetes_upstream import Upstream

    return Upstream


def _k3s() -> type[Distribution]:
    from arcbox_agent.kubernetes_k3s import K3s

    return K3s


def make_kubeconfig(text: str, endpoint: str, context: str) -> str:
    """Make a kubeconfig of the keys in another's text.

    Raises:
        PreconditionError: It has none.

    Source: kubernetes.io/docs/reference/config-api/kubeconfig.v1.
    """
    fields = {}
    for name in ("certificate-authority-data", "client-certificate-data", "client-key-data"):
        match = re.search(rf"^\s*(?:- )?{name}: ([A-Za-z0-9+/=]+)\s*$", text, re.MULTILINE)
        if match is None:
            raise PreconditionError(f"The cluster's kubeconfig has no {name}.")
        fields[name] = match[1]
    return "\n".join(
        [
            "apiVersion: v1",
            "kind: Config",
            f"current-context: {context}",
            "clusters:",
            f"- name: {context}",
            "  cluster:",
            f"    server: {endpoint}",
            f"    certificate-authority-data: {fields['certificate-authority-data']}",
            "users:",
            f"- name: {context}",
            "  user:",
            f"    client-certificate-data: {fields['client-certificate-data']}",
            f"    client-key-data: {fields['client-key-data']}",
            "contexts:",
            f"- name: {context}",
            "  context:",
            f"    cluster: {context}",
            f"    user: {context}",
            "",
        ]
    )
