"""Our descriptors are the given contract's, number for number.

``data/contract.json`` is the given contract as data; ``python -m tests.contract.test_contract``
writes it anew from the contract that lies beside the repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from arcboxd.wire.pb.arcbox.v1 import agent_pb2, common_pb2, machine_pb2
from tests.contract.describe import compile_protos, describe

ROOT = Path(__file__).parents[2]
GIVEN = ROOT.parent / "shared" / "contract"
DATA = Path(__file__).parent / "data" / "contract.json"


def _given() -> dict[str, Any]:
    return describe(compile_protos(GIVEN, ["agent.proto", "machine.proto", "common.proto"]))


def _generated() -> dict[str, Any]:
    files = FileDescriptorSet()
    for module in (common_pb2, agent_pb2, machine_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.file.append(file)
    return describe(files)


def _source() -> dict[str, Any]:
    names = [f"arcbox/v1/{name}.proto" for name in ("agent", "machine", "common")]
    return describe(compile_protos(ROOT / "proto", names))


@pytest.mark.skipif(not GIVEN.exists(), reason=f"the given contract is not at {GIVEN}")
def test_the_copy_is_the_given_contract() -> None:
    assert json.loads(DATA.read_text()) == _given()


@pytest.mark.parametrize("ours", [_source, _generated], ids=["proto", "generated code"])
def test_ours_is_the_contract(ours: Callable[[], dict[str, Any]]) -> None:
    contract = json.loads(DATA.read_text())
    mine = ours()
    assert mine["services"] == contract["services"]
    assert mine["messages"] == contract["messages"]


def test_the_contract_is_whole() -> None:
    contract = json.loads(DATA.read_text())
    assert len(contract["services"]["MachineService"]) == 10
    assert len(contract["services"]["AgentService"]) == 11
    assert contract["services"]["MachineService"]["Exec"]["server_streaming"]
    assert contract["messages"]["CreateMachineRequest"]["reserved"] == [11]
    assert contract["messages"]["MachineExecRequest.EnvEntry"]["map_entry"]
    assert "MmapReadFileResponse" in contract["messages"]


if __name__ == "__main__":
    DATA.write_text(json.dumps(_given(), indent=1, sort_keys=True) + "\n")
