# One image for every service: `python -m substation`, `balancer`, `gateway` or `fleet`.

FROM python:3.11-slim AS build
WORKDIR /gridmesh
COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
    --require-hashes --only-binary :all: --target /gridmesh/packages -r requirements.txt
COPY pyproject.toml .
COPY mesh mesh
COPY generated generated
COPY substation substation
COPY balancer balancer
COPY gateway gateway
COPY fleet fleet
COPY benchmarks/data benchmarks/data
# Compiled here, as nothing can be written later; readable by all, whatever the checkout's umask was.
RUN python -m compileall -q mesh generated substation balancer gateway fleet && chmod -R a+rX,go-w .

FROM python:3.11-slim
# A new volume takes over the owner of the folder where it is mounted.
RUN install -d -o 10001 -g 10001 /data
COPY --from=build /gridmesh /gridmesh
ENV PYTHONPATH=/gridmesh:/gridmesh/generated:/gridmesh/packages PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /gridmesh
USER 10001:10001
ENTRYPOINT ["python", "-m"]
