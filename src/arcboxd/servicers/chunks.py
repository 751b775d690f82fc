"""The outputs of a process on their way to a client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager

from arcboxd.domain.guest import ExecData, ExecOutput
from arcboxd.wire.convert import CHUNK_BYTES


@asynccontextmanager
async def closing(outputs: AsyncIterator[ExecOutput]) -> AsyncIterator[AsyncIterator[ExecOutput]]:
    """Close the iterator at the end, which kills the process if it runs still."""
    try:
        yield outputs
    finally:
        if isinstance(outputs, AsyncGenerator):
            await outputs.aclose()


def pieces(output: ExecOutput) -> Iterator[ExecOutput]:
    """Split an output that is larger than a message should be."""
    if isinstance(output, ExecData) and len(output.data) > CHUNK_BYTES:
        for begin in range(0, len(output.data), CHUNK_BYTES):
            yield ExecData(output.stream, output.data[begin : begin + CHUNK_BYTES])
    else:
        yield output
