"""The web page of a service: files of this package, and what they ask about the models.

Everything comes from this service; the policy forbids the browser to load or ask anything else.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..model.sparsity import sparsity_report
from .context import ServiceContext
from .models import ServedModel
from .refusal import Refusal

WEB = Path(__file__).parent / "web"
INDEX = "index.html"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The Content-Security-Policy. Images that people bring never become addresses: they are decoded in
memory and drawn."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask each time whether it is still the same: ETag
}

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page, in memory.

    Attributes:
        tag: its ETag.
    """

    content: bytes
    type: str
    tag: str


def read_files() -> dict[str, PageFile]:
    """All files of the page by their names."""
    files = {}
    for path in sorted(WEB.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            files[path.name] = PageFile(content, _TYPES[path.suffix], tag)
    return files


def is_of_page(path: str) -> bool:
    """Whether an address is one of the page's files, which tell nothing and need no token."""
    return path == "/" or path.startswith("/page/")


def routes() -> list[Route]:
    """The page, its files, and the models that it shows."""
    files = read_files()

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", INDEX)
        if name not in files:
            raise Refusal(404, f"the page has no file {name[:64]!r}")
        file = files[name]
        headers = {**_HEADERS, "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.type, headers=headers)

    return [
        Route("/", page),
        Route("/page/{name}", page),
        Route("/models", models),
    ]


def models(request: Request) -> Response:
    """What the page and other clients want to know of the models, in their order."""
    context: ServiceContext = request.app.state.context
    return JSONResponse({"models": [describe(model) for model in context.models.values()]})


def describe(model: ServedModel) -> dict[str, Any]:
    """A model as `sparsedet info` counts it, and how it runs here.

    Parameters, zeros, GFLOPs, regions (RoIs) and layers are those of `SparsityReport`; a graph
    file, whose weights nobody counts, has none of them.
    """
    detector = model.detector
    config = detector.config
    told: dict[str, Any] = {
        "name": model.name,
        "runtime": detector.runtime,
        "classes": list(config.class_names),
        "least_score": config.score_threshold,
    }
    if detector.model.tensors:
        report = sparsity_report(config, detector.model.tensors)
        for name in ("parameters", "zeros", "gflops", "sparse_gflops"):
            told[name] = getattr(report, name)
        told["regions"] = report.rois
        told["layers"] = [asdict(layer) for layer in report.layers]
    return told
