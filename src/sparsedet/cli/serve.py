"""`sparsedet serve`: detectors over HTTP, for other programs and machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import EXPENSIVE, Command, add, add_running, group, load_detector

SERVICE = "service"

DETAILS = """\
The address is a web page in a browser. POST /detect takes an image and answers what `detect
--format json` prints; /v2/... is KServe's protocol for tensors, /metrics is for Prometheus. --model
may be given several times, as FILE or NAME=FILE; a request that names no model gets the first.
Without --host only this machine can ask. The log is JSON, a line for each request,
on stderr. SIGTERM or Ctrl-C: what was accepted is answered, then it ends. Needs
pip install 'sparsedet[serve]'. The token may also stand in SPARSEDET_TOKEN."""


def register(command: Command) -> None:
    """Add the parser."""
    serve = command(
        "serve",
        run_serve,
        "Serve detectors over HTTP.",
        usage="[OPTIONS]",
        details=DETAILS,
        examples=(
            "sparsedet serve --model picodet-s --model mine.safetensors",
            "sparsedet serve --model street=street.safetensors --streams 2 --token-file token.txt",
        ),
    )
    service = group(serve, SERVICE)
    service.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on"
    )
    service.add_argument(
        "--port", type=int, metavar="N", default=8000, help="port; 0 takes a free one"
    )
    service.add_argument(
        "--token-file", type=Path, metavar="FILE", help="requests must carry this bearer token"
    )
    service.add_argument(
        "--queue", type=int, metavar="N", default=16, help="requests that wait; more get 429"
    )
    service.add_argument(
        "--max-body", type=float, metavar="MB", default=32, help="largest body; more gets 413"
    )
    service.add_argument(
        "--max-pixels", type=int, metavar="N", default=100_000_000, help="pixels of an image"
    )
    service.add_argument(
        "--timeout", type=float, metavar="S", default=30, help="seconds to an answer, then 503"
    )
    service.add_argument(
        "--max-gflop",
        type=float,
        metavar="N",
        default=EXPENSIVE,
        help="GFLOP of an image in a model; a larger one is not served",
    )
    add(serve, "--model", action="append", type=str)
    add(serve, "--resize")
    add_running(serve, model=False)
    add(serve, "--streams", default=1)
    add(serve, "--cache")


def run_serve(arguments: argparse.Namespace) -> int:
    from ..errors import UsageError
    from ..serve import ServiceLimits, open_service, require_packages
    from ..serve.log import log_to
    from ..serve.models import model_files
    from ..serve.token import read_token

    if not 0 < arguments.max_body <= 1024:
        raise UsageError(
            f"--max-body is {arguments.max_body}, expected more than 0 and at most 1024 MB"
        )
    body = int(arguments.max_body * 1e6)
    limits = ServiceLimits(
        queue=arguments.queue,
        body=body,
        bodies=max(8 * body, 1),
        pixels=arguments.max_pixels,
        seconds=arguments.timeout,
        gflop=arguments.max_gflop,
    )
    files = model_files(arguments.model or [])
    token = read_token(arguments.token_file)
    require_packages()
    detectors = {
        name: load_detector(arguments, path=file, streams=arguments.streams)
        for name, file in files.items()
    }
    service = open_service(
        detectors, host=arguments.host, port=arguments.port, token=token, limits=limits
    )
    log_to()
    service.run()
    return 0
