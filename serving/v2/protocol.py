"""The infer request and answer of the Open Inference Protocol for one signature.

What clients really send decides: `tritonclient[http]` states no content type for JSON, asks with
`binary_data_output` for everything in binary, leaves null fields out, and reads errors from `{"error": …}`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson

from serving.arrays import Array
from serving.errors import BadRequest
from serving.spec import ModelFile
from serving.v2.tensors import InputTensor, to_binary


class TensorHead(msgspec.Struct):
    """An entry of `inputs`."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.Raw()


class OutputHead(msgspec.Struct):
    """An entry of `outputs`."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    inputs: list[TensorHead]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[OutputHead] | None = None


class Wanted:
    """What the answer has to contain: output names, each in binary or not."""

    __slots__ = ("id", "outputs")

    def __init__(self, request_id: str | None, outputs: list[tuple[str, bool]]) -> None:
        self.id = request_id
        self.outputs = outputs


_DECODER = msgspec.json.Decoder(InferRequest)


class Protocol:
    """Parses and writes infer messages; knows nothing of HTTP beyond the header's length."""

    def __init__(self, model: ModelFile, version: str) -> None:
        self._model = model
        self._version = version
        self._inputs = {
            column.name: InputTensor(column, model.datatype(column)) for column in model.signature.inputs
        }
        self._outputs = {column.name: model.datatype(column) for column in model.signature.outputs}
        self._max_rows = model.serving.limits.max_rows

    def metadata(self) -> dict[str, Any]:
        """The answer of `/v2/models/{name}`."""
        signature = self._model.signature
        return {
            "name": self._model.name,
            "versions": [self._version],
            "platform": f"{self._model.serving.runtime.kind}_modelserve",
            "inputs": [
                {"name": c.name, "datatype": self._model.datatype(c), "shape": [-1, *c.shape]}
                for c in signature.inputs
            ],
            "outputs": [
                {"name": c.name, "datatype": self._model.datatype(c), "shape": [-1, *c.shape]}
                for c in signature.outputs
            ],
        }

    def parse(self, body: bytes, head_length: int | None) -> tuple[dict[str, Array], Wanted]:
        """Checked columns (rows, *shape) by input name, and what to answer. BadRequest names the tensor."""
        head = body if head_length is None else body[:head_length]
        try:
            request = _DECODER.decode(head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the inference request: {str(error).replace('`', '')}") from None
        wanted = self._wanted(request)
        binary = memoryview(body)[len(head) :]
        columns: dict[str, Array] = {}
        rows = 0
        position = 0
        for tensor in request.inputs:
            reader = self._inputs.get(tensor.name)
            if reader is None:
                raise BadRequest(f"unknown input {tensor.name}; the model takes {', '.join(self._inputs)}")
            if tensor.name in columns:
                raise BadRequest(f"input {tensor.name} stands twice")
            if tensor.datatype != reader.datatype:
                raise BadRequest(f"input {tensor.name}: datatype {tensor.datatype} is not {reader.datatype}")
            count = reader.rows(tensor.shape)
            if count > self._max_rows:
                raise BadRequest(f"{count} rows are more than the {self._max_rows} that a request may have")
            if rows and count != rows:
                raise BadRequest(f"input {tensor.name}: {count} rows, the inputs before it have {rows}")
            rows = count
            size = _binary_size(tensor)
            if size is None:
                if not bytes(tensor.data):
                    raise BadRequest(f"input {tensor.name}: neither data nor binary_data_size")
                columns[tensor.name] = reader.from_json(tensor.data, tensor.shape)
                continue
            if bytes(tensor.data):
                raise BadRequest(f"input {tensor.name}: both data and binary_data_size")
            if position + size > len(binary):
                raise BadRequest(
                    f"input {tensor.name}: binary_data_size {size}, but {len(binary) - position} bytes follow"
                )
            columns[tensor.name] = reader.from_binary(binary[position : position + size], tensor.shape)
            position += size
        if position != len(binary):
            raise BadRequest(f"{len(binary) - position} bytes of binary data belong to no input")
        for name, reader in self._inputs.items():
            if name not in columns:
                if not rows or not reader.column.nullable:
                    raise BadRequest(f"input {name} is missing")
                columns[name] = reader.nulls(rows)
        return columns, wanted

    def answer(self, outputs: dict[str, Array], wanted: Wanted) -> tuple[bytes, int | None]:
        """The body, and the length of its JSON head when binary data follows."""
        tensors: list[dict[str, Any]] = []
        parts: list[bytes] = []
        for name, binary in wanted.outputs:
            array, datatype = outputs[name], self._outputs[name]
            tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
            if binary:
                part = to_binary(array, datatype)
                tensor["parameters"] = {"binary_data_size": len(part)}
                parts.append(part)
            elif array.dtype == object:
                tensor["data"] = array.reshape(-1).tolist()
            else:
                tensor["data"] = np.ascontiguousarray(array).reshape(-1)
            tensors.append(tensor)
        content: dict[str, Any] = {"model_name": self._model.name, "model_version": self._version}
        if wanted.id is not None:
            content["id"] = wanted.id
        content["outputs"] = tensors
        head = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        if not parts:
            return head, None
        return b"".join((head, *parts)), len(head)

    def _wanted(self, request: InferRequest) -> Wanted:
        binary = _flag(request.parameters, "binary_data_output", False)
        if not request.outputs:
            return Wanted(request.id, [(name, binary) for name in self._outputs])
        chosen: list[tuple[str, bool]] = []
        for output in request.outputs:
            if output.name not in self._outputs:
                raise BadRequest(f"unknown output {output.name}; the model gives {', '.join(self._outputs)}")
            for unsupported in ("classification", "shared_memory_region"):
                if output.parameters and output.parameters.get(unsupported):
                    raise BadRequest(f"output {output.name}: {unsupported} is not supported")
            if any(name == output.name for name, _ in chosen):
                raise BadRequest(f"output {output.name} stands twice")
            chosen.append((output.name, _flag(output.parameters, "binary_data", binary)))
        return Wanted(request.id, chosen)


def _flag(parameters: dict[str, Any] | None, name: str, default: bool) -> bool:
    value = (parameters or {}).get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter {name} must be true or false")
    return value


def _binary_size(tensor: TensorHead) -> int | None:
    parameters = tensor.parameters or {}
    if "shared_memory_region" in parameters:
        raise BadRequest(f"input {tensor.name}: shared memory is not supported")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadRequest(f"input {tensor.name}: binary_data_size must be a whole number of bytes")
    return size
