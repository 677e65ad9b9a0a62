# A small image that detects and serves; docs/packages.md says how it is used. It was never built:
# each of its commands was run by hand, on the same Debian and Python.
FROM python:3.12-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++
COPY . /src
RUN python -m venv /opt/sparsedet && /opt/sparsedet/bin/pip install --no-cache-dir "/src[serve,video]"

FROM python:3.12-slim-bookworm
COPY --from=build /opt/sparsedet /opt/sparsedet
COPY examples/beach.jpg /opt/sparsedet/share/beach.jpg
ENV PATH=/opt/sparsedet/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home sparsedet
USER sparsedet
WORKDIR /work
EXPOSE 8000
# The whole way from a JPEG to its detections, with the model that is inside.
HEALTHCHECK --interval=1m --timeout=20s --start-period=10s \
  CMD ["sparsedet", "detect", "/opt/sparsedet/share/beach.jpg", "--no-save", "--quiet"]
ENTRYPOINT ["sparsedet"]
CMD ["--help"]
