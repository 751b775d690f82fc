"""A protocol as plain data: what of it is on the wire, and nothing of its wording."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet

PACKAGE = "arcbox.v1"


def compile_protos(folder: Path, names: list[str]) -> FileDescriptorSet:
    """Compile .proto files with the protoc that we generate our own code with."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set"
        argv = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(folder)]
        subprocess.run(
            [*argv, "--include_imports", f"--descriptor_set_out={out}", *names], check=True
        )
        return FileDescriptorSet.FromString(out.read_bytes())


def describe(files: FileDescriptorSet) -> dict[str, Any]:
    """Give the services and messages of the package, whichever file they are in."""
    services: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for file in files.file:
        if file.package != PACKAGE:
            continue
        assert file.syntax == "proto3"
        for service in file.service:
            services[service.name] = {
                method.name: {
                    "input": method.input_type,
                    "output": method.output_type,
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
                for method in service.method
            }
        for message in file.message_type:
            _message(message, "", messages)
        assert not file.enum_type
    return {"package": PACKAGE, "services": services, "messages": messages}


def _message(message: DescriptorProto, outer: str, into: dict[str, Any]) -> None:
    name = f"{outer}{message.name}"
    into[name] = {
        "fields": {field.name: _field(field) for field in message.field},
        "reserved": sorted(
            [number for r in message.reserved_range for number in range(r.start, r.end)]
        ),
        "reserved_names": sorted(message.reserved_name),
        "map_entry": message.options.map_entry,
        "oneofs": [oneof.name for oneof in message.oneof_decl],
    }
    for nested in message.nested_type:
        _message(nested, f"{name}.", into)


def _field(field: FieldDescriptorProto) -> dict[str, Any]:
    return {
        "number": field.number,
        "type": FieldDescriptorProto.Type.Name(field.type),
        "type_name": field.type_name,
        "label": FieldDescriptorProto.Label.Name(field.label),
        "optional": field.proto3_optional,
    }
