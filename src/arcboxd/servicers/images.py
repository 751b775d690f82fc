"""HostService's calls about base images."""

from __future__ import annotations

from arcboxd.domain.image import NewImage
from arcboxd.machines import images
from arcboxd.machines.service import Machines
from arcboxd.servicers.translate import Context, unary
from arcboxd.wire.pb.arcbox.ext.v1 import host_pb2


class ImageCalls:
    """A part of `arcboxd.servicers.host.HostService`."""

    _machines: Machines

    @unary
    async def PullImage(
        self,
        request: host_pb2.PullImageRequest,
        context: Context[host_pb2.PullImageRequest, host_pb2.Image],  # noqa: ARG002
    ) -> host_pb2.Image:
        found = await self._machines.pull_image(request.distro, request.version, request.arch)
        return _image(found)

    @unary
    async def ImportImage(
        self,
        request: host_pb2.ImportImageRequest,
        context: Context[host_pb2.ImportImageRequest, host_pb2.Image],  # noqa: ARG002
    ) -> host_pb2.Image:
        new = NewImage(
            path=request.path,
            name=request.name,
            version=request.version,
            arch=request.arch,
            sha256=request.sha256,
        )
        return _image(await self._machines.import_image(new))

    @unary
    async def ListImages(
        self,
        request: host_pb2.ListImagesRequest,  # noqa: ARG002
        context: Context[host_pb2.ListImagesRequest, host_pb2.ListImagesResponse],  # noqa: ARG002
    ) -> host_pb2.ListImagesResponse:
        found = await self._machines.list_images()
        return host_pb2.ListImagesResponse(images=map(_image, found))

    @unary
    async def RemoveImage(
        self,
        request: host_pb2.RemoveImageRequest,
        context: Context[host_pb2.RemoveImageRequest, host_pb2.RemoveImageResponse],  # noqa: ARG002
    ) -> host_pb2.RemoveImageResponse:
        freed = await self._machines.remove_image(request.key)
        return host_pb2.RemoveImageResponse(freed_bytes=freed)

    @unary
    async def PruneImages(
        self,
        request: host_pb2.PruneImagesRequest,  # noqa: ARG002
        context: Context[host_pb2.PruneImagesRequest, host_pb2.PruneImagesResponse],  # noqa: ARG002
    ) -> host_pb2.PruneImagesResponse:
        pruned = await self._machines.prune_images()
        return host_pb2.PruneImagesResponse(
            keys=pruned.keys, freed_bytes=pruned.freed_bytes, boot_files=pruned.boot_files
        )

    @unary
    async def UpdateBootFiles(
        self,
        request: host_pb2.UpdateBootFilesRequest,
        context: Context[  # noqa: ARG002
            host_pb2.UpdateBootFilesRequest, host_pb2.UpdateBootFilesResponse
        ],
    ) -> host_pb2.UpdateBootFilesResponse:
        version, changed = await self._machines.update_boot_files(request.arch)
        return host_pb2.UpdateBootFilesResponse(kernel_version=version, changed=changed)

    @unary
    async def VerifyImage(
        self,
        request: host_pb2.VerifyImageRequest,
        context: Context[host_pb2.VerifyImageRequest, host_pb2.VerifyImageResponse],  # noqa: ARG002
    ) -> host_pb2.VerifyImageResponse:
        damaged = await self._machines.verify_image(request.key)
        return host_pb2.VerifyImageResponse(damaged=damaged)


def _image(use: images.ImageUse) -> host_pb2.Image:
    image = use.image
    return host_pb2.Image(
        key=image.key,
        source=image.source,
        distro=image.distro,
        version=image.version,
        arch=image.arch,
        apparent_bytes=image.virtual_bytes,
        allocated_bytes=use.allocated_bytes,
        created_unix_nanos=image.created_unix_ns,
        machines=use.machines,
        templates=use.templates,
        init=image.init,
    )
