"""The server's requests: what is accepted, how it is answered, and a page that describes both."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from distil_jax import __version__
from distil_jax.config import ServeArguments
from distil_jax.data.rows import BadRowError
from distil_jax.errors import UserError, one_line
from distil_jax.serving.batcher import Batcher, BusyError
from distil_jax.serving.engine import Engine
from distil_jax.serving.metrics import Metrics

_BATCH = 32  # inputs of several requests that are computed together
_PATHS = ("/predict", "/embed")
_CLIENT_GONE = 499  # as nginx counts a client that left; it is not sent


def make_app(engine: Engine, given: ServeArguments) -> Starlette:
    """The ASGI application around an engine."""
    metrics = Metrics()
    batcher = Batcher(engine.compute, most=_BATCH, most_waiting=given.max_waiting, on_batch=metrics.batches.add)
    schema = openapi(engine, given)

    async def answer(request: Request) -> Response:
        started = time.monotonic()
        try:
            response = await _answered(request, engine, batcher, given, metrics)
        except Exception:  # `_failed` answers it
            metrics.requests[request.url.path, 500] += 1
            raise
        metrics.requests[request.url.path, response.status_code] += 1
        if response.status_code == 200:
            metrics.seconds.add(time.monotonic() - started)
        return response

    async def other(request: Request) -> Response:
        return _error(404, f"this model answers {engine.path}, not {request.url.path}")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "model": given.model, "runtime": engine.runtime, "answers": engine.path})

    async def numbers(_: Request) -> Response:
        return PlainTextResponse(metrics.text(batcher.waiting), media_type="text/plain; version=0.0.4")

    async def description(_: Request) -> Response:
        return JSONResponse(schema)

    async def page(_: Request) -> Response:
        return HTMLResponse(_page(schema))

    @contextlib.asynccontextmanager
    async def computing(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    routes = [Route(path, answer if path == engine.path else other, methods=["POST"]) for path in _PATHS]
    for path, function in (("/health", health), ("/metrics", numbers), ("/openapi.json", description), ("/", page)):
        routes.append(Route(path, function))
    handlers: Any = {HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, lifespan=computing, exception_handlers=handlers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail))


async def _failed(_: Request, __: Exception) -> Response:
    return _error(500, "the server failed; its log says why")  # uvicorn logs the exception


def _error(status: int, message: str) -> Response:
    headers = {"connection": "close"}  # what is left of the request is not read
    if status == 503:
        headers["retry-after"] = "1"
    return JSONResponse({"error": message}, status, headers)


async def _answered(
    request: Request, engine: Engine, batcher: Batcher, given: ServeArguments, metrics: Metrics
) -> Response:
    """The answer to a request for predictions or vectors; a refusal says what to change."""
    try:
        async with asyncio.timeout(given.timeout):
            body = await _body(request, given.max_bytes)
    except TimeoutError:
        return _error(408, f"the request did not come in within {given.timeout:g} s")
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)
    if body is None:
        return _error(413, f"a request of more than {given.max_bytes} bytes; send fewer inputs")
    try:
        items = _items(_read(body), engine, given)
        async with asyncio.timeout(given.timeout):
            results = await batcher.submit(items)
    except _RefusedError as refused:
        return _error(refused.status, str(refused))
    except BusyError:
        return _error(503, f"{batcher.waiting} inputs wait already; try again soon")
    except TimeoutError:
        return _error(504, f"no answer within {given.timeout:g} s; send fewer inputs, or try again")
    except UserError as error:
        return _error(500, str(error))
    metrics.texts += len(items)
    return JSONResponse({engine.answers: list(results)})


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _body(request: Request, limit: int) -> bytes | None:
    """The body of a request, None for one that is too long."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def _read(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _RefusedError(400, f"not readable as JSON ({one_line(error, 100)})") from error
    if not isinstance(found, dict) or "inputs" not in found:
        raise _RefusedError(422, 'a JSON object with the field "inputs" is wanted')
    return found


def _items(found: dict[str, Any], engine: Engine, given: ServeArguments) -> list[Any]:
    inputs = found["inputs"] if isinstance(found["inputs"], list) else [found["inputs"]]
    if not inputs:
        raise _RefusedError(422, "inputs is empty")
    if len(inputs) > given.max_texts:
        raise _RefusedError(413, f"{len(inputs)} inputs, at most {given.max_texts} are taken; send several requests")
    items = []
    for number, value in enumerate(inputs):
        if _characters(value) > given.max_characters:
            raise _RefusedError(413, f"inputs[{number}]: more than {given.max_characters} characters; shorten it")
        try:
            items.append(engine.check(value, found))
        except BadRowError as error:
            raise _RefusedError(422, f"inputs[{number}]: {error}") from error
    return items


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict | list):
        return sum(map(_characters, value.values() if isinstance(value, dict) else value))
    return 1


def openapi(engine: Engine, given: ServeArguments) -> dict[str, Any]:
    """What the server answers, as OpenAPI 3.1 has it."""
    text = {"type": "string", "maxLength": given.max_characters}
    bare: list[dict[str, Any]] = [text, {"type": "object"}, {"type": "array", "items": text}]
    inputs = {"type": "array", "items": {"anyOf": bare}, "minItems": 1, "maxItems": given.max_texts}
    properties: dict[str, Any] = {"inputs": {**inputs, "description": f"{engine.row} each"}}
    answer: dict[str, Any] = {"type": "object"}
    if engine.path == "/embed":
        inputs["items"] = text
        properties["prompt"] = {"type": "string", "description": "name of a prompt that is put before each text"}
        answer = {"type": "array", "items": {"type": "number"}}

    def holding(schema: dict[str, Any]) -> dict[str, Any]:
        return {"application/json": {"schema": schema}}

    def response(text: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"description": text, **({} if content is None else {"content": content})}

    error = holding({"type": "object", "properties": {"error": {"type": "string"}}})
    refusals = {
        "400": "not JSON",
        "408": f"did not come in within {given.timeout:g} s",
        "413": f"too large: {given.max_bytes} bytes, {given.max_texts} inputs of {given.max_characters} characters",
        "422": "not what is wanted; names the input",
        "500": "the computation failed",
        "503": "too many inputs wait",
        "504": f"not computed within {given.timeout:g} s",
    }
    answers = {"type": "object", "properties": {engine.answers: {"type": "array", "items": answer}}}
    asked = {
        "summary": f"{engine.answers} for inputs, in their order",
        "requestBody": {
            "required": True,
            "content": holding({"type": "object", "properties": properties, "required": ["inputs"]}),
        },
        "responses": {
            "200": response("answered", holding(answers)),
            **{status: response(text, error) for status, text in refusals.items()},
        },
    }
    others = {"/health": "whether the server answers", "/metrics": "counts and times, for Prometheus"}
    plain = {path: {"get": {"summary": text, "responses": {"200": response(text)}}} for path, text in others.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"distil_jax: {given.model}", "version": __version__},
        "paths": {engine.path: {"post": asked}, **plain},
    }


def _page(schema: dict[str, Any]) -> str:
    """The description as a page that needs nothing from elsewhere."""
    parts = [f"<h1>{html.escape(schema['info']['title'])}</h1>"]
    for path, methods in schema["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2>{method.upper()} {path}</h2><p>{html.escape(about['summary'])}</p>")
            if "requestBody" in about:
                content = about["requestBody"]["content"]["application/json"]["schema"]
                parts.append(f"<pre>{html.escape(json.dumps(content, indent=2))}</pre>")
            rows = (
                f"<tr><td>{status}<td>{html.escape(one['description'])}" for status, one in about["responses"].items()
            )
            parts.append(f"<table>{''.join(rows)}</table>")
    title = html.escape(schema["info"]["title"])
    return (
        f'<!doctype html><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font-family:sans-serif;max-width:50em;margin:2em auto}td{padding-right:1em}</style>"
        + "\n".join(parts)
        + '<p><a href="/openapi.json">openapi.json</a>'
    )
