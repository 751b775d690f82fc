"""HostService's calls about templates and about what machines use."""

from __future__ import annotations

from arcboxd.domain.machine import NewMachine
from arcboxd.machines import template
from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2


class TemplateCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def PrepareTemplate(
        self,
        request: host_pb2.PrepareTemplateRequest,
        context: Context[host_pb2.PrepareTemplateRequest, host_pb2.Template],  # noqa: ARG002
    ) -> host_pb2.Template:
        new = NewMachine(
            name="template",
            cpus=request.cpus,
            memory_bytes=request.memory,
            disk_bytes=request.disk_size,
            distro=request.distro,
            version=request.version,
            arch=request.arch,
        )
        return _template(await self._machines.prepare_template(new, runtime=request.runtime))

    @unary
    async def ListTemplates(
        self,
        request: host_pb2.ListTemplatesRequest,  # noqa: ARG002
        context: Context[  # noqa: ARG002
            host_pb2.ListTemplatesRequest, host_pb2.ListTemplatesResponse
        ],
    ) -> host_pb2.ListTemplatesResponse:
        found = await self._machines.templates()
        return host_pb2.ListTemplatesResponse(templates=map(_template, found))

    @unary
    async def RemoveTemplate(
        self,
        request: host_pb2.RemoveTemplateRequest,
        context: Context[  # noqa: ARG002
            host_pb2.RemoveTemplateRequest, host_pb2.RemoveTemplateResponse
        ],
    ) -> host_pb2.RemoveTemplateResponse:
        await self._machines.remove_template(request.key)
        return host_pb2.RemoveTemplateResponse()

    @unary
    async def PruneTemplates(
        self,
        request: host_pb2.PruneTemplatesRequest,  # noqa: ARG002
        context: Context[  # noqa: ARG002
            host_pb2.PruneTemplatesRequest, host_pb2.PruneTemplatesResponse
        ],
    ) -> host_pb2.PruneTemplatesResponse:
        keys, freed = await self._machines.prune_templates()
        return host_pb2.PruneTemplatesResponse(keys=keys, freed_bytes=freed)

    @unary
    async def GetUsage(
        self,
        request: host_pb2.GetUsageRequest,
        context: Context[host_pb2.GetUsageRequest, host_pb2.GetUsageResponse],  # noqa: ARG002
    ) -> host_pb2.GetUsageResponse:
        found = await self._machines.usage(request.ids)
        return host_pb2.GetUsageResponse(
            machines=[
                host_pb2.MachineUsage(
                    id=m.id,
                    name=m.name,
                    own_bytes=m.own_bytes,
                    shared_bytes=m.shared_bytes,
                    swapped_bytes=m.swapped_bytes,
                    memory_bytes=m.memory_bytes,
                    guest_used_bytes=m.guest_used_bytes,
                    cpu_seconds=m.cpu_seconds,
                )
                for m in found.machines
            ],
            host_memory_bytes=found.host_memory_bytes,
            host_available_bytes=found.host_available_bytes,
        )


def _template(use: template.TemplateUse) -> host_pb2.Template:
    t = use.template
    return host_pb2.Template(
        key=t.key,
        distro=t.distro,
        version=t.version,
        arch=t.arch,
        cpus=t.cpus,
        memory=t.memory_bytes,
        disk_size=t.shape.disk_bytes,
        allocated_bytes=use.allocated_bytes,
        machines=use.machines,
        staged=use.staged,
        created_unix_nanos=t.created_unix_ns,
        current=use.current,
        runtime=t.runtime_disk is not None,
    )
