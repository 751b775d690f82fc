"""MmapReadFile by the real agent."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from arcbox_agent import mmap_read
from arcboxd.errors import PreconditionError
from arcboxd.wire.pb.arcbox.v1 import agent_pb2

if TYPE_CHECKING:
    from tests.integration.agent.conftest import Client

CONTENT = bytes(range(251)) * 100
PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 10), (PAGE - 1, 2), (PAGE, PAGE), (17, 1 << 20), (len(CONTENT), 5), (1 << 63, 5), (3, 0)],
)
async def test_any_part_of_a_file(client: Client, file: Path, offset: int, length: int) -> None:
    request = agent_pb2.MmapReadFileRequest(path=str(file), offset=offset, length=length)
    answer = await client.guest.MmapReadFile(request)
    assert answer.data == CONTENT[offset : offset + length]
    assert answer.bytes_read == len(answer.data)


async def test_what_is_too_much_for_a_message_is_short(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * (4 << 20))
    request = agent_pb2.MmapReadFileRequest(path=str(path), length=4 << 20)
    assert (await client.guest.MmapReadFile(request)).bytes_read == 3 << 20


@pytest.mark.parametrize(
    ("path", "length", "code"),
    [
        ("relative", 1, grpc.StatusCode.INVALID_ARGUMENT),
        ("/", 1, grpc.StatusCode.INVALID_ARGUMENT),
        ("/dev/null", 1, grpc.StatusCode.INVALID_ARGUMENT),
        ("{folder}/fifo", 1, grpc.StatusCode.INVALID_ARGUMENT),
        ("{folder}/file", (64 << 20) + 1, grpc.StatusCode.INVALID_ARGUMENT),
        ("{folder}/missing", 1, grpc.StatusCode.NOT_FOUND),
        ("{folder}/file/below", 1, grpc.StatusCode.NOT_FOUND),
        ("{folder}/loop", 1, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_what_cannot_be_read(
    client: Client, file: Path, path: str, length: int, code: grpc.StatusCode
) -> None:
    os.mkfifo(file.parent / "fifo")
    (file.parent / "loop").symlink_to("loop")
    path = path.format(folder=file.parent)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.guest.MmapReadFile(agent_pb2.MmapReadFileRequest(path=path, length=length))
    assert caught.value.code() == code


async def test_a_file_that_is_cut_short_meanwhile(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child maps what was there, and dies of what is no more; the agent lives."""
    make = mmap.mmap

    def make_and_cut(fd: int, *args: int, **options: int) -> mmap.mmap:
        made = make(fd, *args, **options)
        if fd >= 0:
            os.truncate(file, 0)
        return made

    monkeypatch.setattr(mmap, "mmap", make_and_cut)
    request = agent_pb2.MmapReadFileRequest(path=str(file), length=len(CONTENT))
    with pytest.raises(PreconditionError, match="cut short"):
        await mmap_read.read(request)
