# The front of the docker target: proxy_container.py, common/proxy.py and their lock. The target builds it when an engine has none.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
ARG PIP_INDEX_URL
COPY requirements.txt /
RUN python -m pip install --quiet --require-hashes --no-deps --only-binary :all: --no-cache-dir --root-user-action ignore \
      --target /opt/packages -r /requirements.txt

FROM ${BASE}
COPY --from=packages /opt/packages /opt/packages
COPY ml_service /app/ml_service
RUN mkdir /state && chown 10001:10001 /state
ENV PYTHONPATH=/opt/packages:/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
EXPOSE 8080
CMD ["python", "-m", "ml_service.targets.docker.proxy_container", "serve"]
