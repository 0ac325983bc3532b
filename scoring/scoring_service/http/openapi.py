"""The service's OpenAPI description, made from the signature of the model that it serves."""

from __future__ import annotations

from typing import Any

from scoring_service.model.package import Package
from scoring_service.model.signature import LARGEST_FLOAT, Column

_TYPES: dict[str, dict[str, Any]] = {
    "double": {"type": "number", "format": "double"},
    "float": {"type": "number", "format": "float", "minimum": -LARGEST_FLOAT, "maximum": LARGEST_FLOAT},
    "long": {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1},
    "integer": {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
}


def describe(package: Package, auth: bool) -> dict[str, Any]:
    """OpenAPI 3.1 for ``package``. With ``auth``, the routes that need a key say so."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": package.name, "version": package.version},
        "paths": {
            "/score": {"post": _score(package)},
            "/": {"get": _get("Whether the service is up", key=False)},
            "/health/live": {"get": _get("Whether this process is alive", key=False)},
            "/health/ready": {"get": _get("Whether requests are welcome", key=False, statuses=("503",))},
            "/swagger.json": {"get": _get("This document")},
            "/model": {"get": _get("Which model answers")},
            "/metrics": {"get": _get("Prometheus metrics", media="text/plain")},
        },
        "components": {
            "schemas": {
                "Request": _request(package.signature.inputs),
                "Response": _response(package.signature.outputs),
                "Error": _ERROR,
            }
        },
    }
    if auth:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _score(package: Package) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Request"}}
    answer: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Response"}}
    if package.examples:
        content["examples"] = {f"example{i}": {"value": e["request"]} for i, e in enumerate(package.examples, start=1)}
        answer["examples"] = {f"example{i}": {"value": e["response"]} for i, e in enumerate(package.examples, start=1)}
    return {
        "operationId": "score",
        "summary": "Predictions, one a row",
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {"description": "The predictions", "content": {"application/json": answer}},
            **_errors("400", "401", "413", "415", "431", "500", "503"),
        },
    }


def _get(
    summary: str, *, key: bool = True, media: str = "application/json", statuses: tuple[str, ...] = ()
) -> dict[str, Any]:
    schema = {"type": "string" if media == "text/plain" else "object"}
    answer = {"description": summary, "content": {media: {"schema": schema}}}
    operation: dict[str, Any] = {"summary": summary, "responses": {"200": answer}}
    if key:
        statuses = (*statuses, "401")
    else:
        operation["security"] = []
    operation["responses"].update(_errors(*statuses, "400", "431"))
    return operation


def _errors(*statuses: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": _DESCRIPTIONS[status], "content": content} for status in statuses}


_DESCRIPTIONS = {
    "400": "The request is wrong; the place says where",
    "401": "No valid key",
    "413": "Too large a body, or too many rows",
    "415": "The body is not JSON",
    "431": "Too large a header",
    "500": "The model failed",
    "503": "Too busy, too slow, or stopping; try again after Retry-After",
}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "place", "request_id"],
            "properties": {name: {"type": "string"} for name in ("code", "message", "place", "request_id")},
        }
    },
}


def _request(inputs: tuple[Column, ...]) -> dict[str, Any]:
    schemas = {column.name: _value(column) for column in inputs}
    array = {
        "type": "array",
        "description": ", ".join(schemas),
        "prefixItems": list(schemas.values()),
        "items": False,
        "minItems": len(inputs),
        "maxItems": len(inputs),
    }
    keyed = {
        "type": "object",
        "properties": schemas,
        "required": [column.name for column in inputs if column.required],
        "additionalProperties": False,
    }
    rows = {"type": "array", "minItems": 1, "items": {"anyOf": [array, keyed]}}
    return {"type": "object", "required": ["data"], "properties": {"data": rows}}


def _value(column: Column) -> dict[str, Any]:
    kind = _TYPES[column.type]
    return kind if column.required else {**kind, "type": [kind["type"], "null"]}


def _response(outputs: tuple[Column, ...]) -> dict[str, Any]:
    kinds = [{**_TYPES[column.type], "type": [_TYPES[column.type]["type"], "null"]} for column in outputs]
    row: dict[str, Any] = kinds[0] if len(kinds) == 1 else {"type": "array", "prefixItems": kinds, "items": False}
    return {"type": "object", "required": ["result"], "properties": {"result": {"type": "array", "items": row}}}
