"""The description of the server's interface, OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from detronome.deploy.serve.limits import Limits
from detronome.types import Categories

__all__ = ["openapi"]

_REFUSALS = {
    "400": "The image is damaged, the form has none, or a parameter is wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body has too many bytes, or the image too many pixels.",
    "415": "The content type, or the file, is no image.",
    "500": "The model failed on this image.",
    "503": "There is no answer in time: the queue is full, the deadline has passed, or the server starts or stops.",
}


def openapi(*, version: str, categories: Categories, limits: Limits, allows_urls: bool) -> dict[str, Any]:
    """Return the document.

    Args:
        version: of this package.
        categories: what the model's labels mean.
        limits: of the server.
        allows_urls: whether images are fetched from addresses.
    """
    bodies: dict[str, Any] = {
        "image/*": {"schema": {"type": "string", "contentMediaType": "image/*"}},
        "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "contentMediaType": "application/octet-stream"}},
                "required": ["image"],
            }
        },
    }
    if allows_urls:
        bodies["application/json"] = {
            "schema": {
                "type": "object",
                "properties": {"url": {"type": "string", "format": "uri", "maxLength": 8192}},
                "required": ["url"],
                "additionalProperties": False,
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Detronome",
            "version": version,
            "description": "Finds objects in images: " + ", ".join(categories.names[:20]) + ".",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {
            "/predict": {"post": _predict(bodies, limits)},
            "/healthz": {"get": _probe("healthz", "Whether the process works.")},
            "/readyz": {"get": _probe("readyz", "Whether predictions are answered.")},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters in Prometheus' text format.",
                    "responses": {"200": _response("Metrics.", "text/plain", {"type": "string"})},
                }
            },
        },
        "components": {"schemas": _schemas(categories)},
    }


def _predict(bodies: dict[str, Any], limits: Limits) -> dict[str, Any]:
    parameters = [
        _parameter("score", {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5}, "Least score."),
        _parameter("max_detections", {"type": "integer", "minimum": 1}, "Most detections; the best are kept."),
        _parameter(
            "format",
            {"type": "string", "enum": ["json", "jpeg", "png"]},
            "Form of the answer; by default what Accept prefers, or JSON.",
        ),
        _parameter(
            "timeout",
            {"type": "number", "exclusiveMinimum": 0, "maximum": limits.timeout_s, "default": limits.timeout_s},
            "Seconds after which the answer is not wanted any more.",
        ),
    ]
    picture = {"schema": {"type": "string", "contentMediaType": "image/*"}}
    success = _response("What was found.", "application/json", {"$ref": "#/components/schemas/Prediction"})
    success["content"] |= {"image/jpeg": picture, "image/png": picture}
    errors = {
        status: _response(what, "application/json", {"$ref": "#/components/schemas/Error"})
        for status, what in _REFUSALS.items()
    }
    errors["503"]["headers"] = {
        "Retry-After": {"description": "Seconds after which to ask again.", "schema": {"type": "integer"}}
    }
    return {
        "operationId": "predict",
        "summary": "Find objects in an image.",
        "description": f"At most {limits.max_body_bytes:,} bytes and {limits.max_pixels:,} pixels.",
        "parameters": parameters,
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": success, **errors},
    }


def _schemas(categories: Categories) -> dict[str, Any]:
    name: dict[str, Any] = {"type": "string"}
    if 0 < len(categories) <= 100:
        name["examples"] = list(categories.names[:5])
    integer, number = {"type": "integer"}, {"type": "number"}
    edges = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
    box = edges | {"description": "Left, top, right and bottom in pixels of the upright image."}
    return {
        "Prediction": _object(
            {
                "image": _object({"width": integer, "height": integer}),
                "detections": {"type": "array", "items": {"$ref": "#/components/schemas/Detection"}},
                "timing_ms": _object({"decode": number, "wait": number, "model": number}),
                "panoptic": {"$ref": "#/components/schemas/Panoptic"},
            },
            optional=("panoptic",),
        ),
        "Detection": _object({"category_id": integer, "name": name, "score": number, "box_xyxy": box}),
        "Panoptic": _object(
            {
                "segments": {
                    "type": "array",
                    "items": _object(
                        {
                            "id": integer,
                            "category_id": integer,
                            "name": name,
                            "is_thing": {"type": "boolean"},
                            "area": integer,
                            "score": number,
                        }
                    ),
                },
                "map_png": {
                    "type": "string",
                    "contentEncoding": "base64",
                    "contentMediaType": "image/png",
                    "description": "Segment ids as colours: red + 256 green + 65536 blue; 0 is void.",
                },
            }
        ),
        "Error": _object({"error": _object({"what": {"type": "string"}, "fix": {"type": "string"}})}),
    }


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _parameter(name: str, schema: dict[str, Any], what: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": what, "schema": schema}


def _response(what: str, media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": what, "content": {media_type: {"schema": schema}}}


def _probe(name: str, what: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    return {
        "operationId": name,
        "summary": what,
        "responses": {
            "200": _response("Yes.", "application/json", schema),
            "503": _response("No.", "application/json", schema),
        },
    }
