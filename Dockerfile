# A small image that detects objects; docs/packages.md says how it is used. It has not been built.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++
COPY . /src
RUN python -m venv /opt/sparsedet && /opt/sparsedet/bin/pip install --no-cache-dir "/src[video]"

FROM python:3.12-slim
COPY --from=build /opt/sparsedet /opt/sparsedet
COPY examples/beach.jpg /opt/sparsedet/share/beach.jpg
ENV PATH=/opt/sparsedet/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home sparsedet
USER sparsedet
WORKDIR /work
# The whole way from a JPEG to its detections, with the model that is inside.
HEALTHCHECK --interval=1m --timeout=20s --start-period=10s \
  CMD ["sparsedet", "detect", "/opt/sparsedet/share/beach.jpg", "--no-save", "--quiet"]
ENTRYPOINT ["sparsedet"]
CMD ["--help"]
