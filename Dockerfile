# Build: a venv with the project's wheel and its dependencies. Nothing of this stage but that venv gets into the image.
FROM python:3.13-slim AS build

WORKDIR /src
RUN python -m venv --without-pip /opt/llmproxy \
 && mkdir -m 700 /opt/state

# The dependencies first, and alone: with no package in sight this installs an empty llmproxy and all that it requires, in a
# layer that stays cached until the requirements change.
COPY pyproject.toml setup.cfg ./
RUN pip --python /opt/llmproxy/bin/python install --no-cache-dir .

COPY LICENSE README.md ./
COPY llmproxy llmproxy
COPY twisted twisted
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist . \
 && pip --python /opt/llmproxy/bin/python install --no-cache-dir --no-deps --force-reinstall /dist/*.whl


FROM python:3.13-slim

LABEL org.opencontainers.image.title="llmproxy" \
      org.opencontainers.image.description="A transparent, streaming reverse proxy for LLM APIs" \
      org.opencontainers.image.licenses="MIT"

COPY --from=build /opt/llmproxy /opt/llmproxy
# Empty, and the user's own: so is then a new volume that is mounted there.
COPY --from=build --chown=10001:10001 /opt/state /var/lib/llmproxy
ENV PATH=/opt/llmproxy/bin:$PATH

# Twisted's plugin cache, which twistd could not write later. It counts only when newer than every plugin, and an image keeps
# whole seconds: hence the wait.
RUN sleep 1 \
 && python -c "from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))"

# A number, for orchestrators that require a user who is provably not root. It writes nothing but a ledger, where one is asked
# for, so the root file system may be read-only.
USER 10001:10001

# A ledger in the container itself would go with it. On a volume, it is sqlite:///var/lib/llmproxy/ledger.sqlite3. A file that
# LLMPROXY_LEDGER_FILE names, for a URL with a password in it, counts before this.
ENV LLMPROXY_LEDGER=none

ENV PORT=33000
EXPOSE 33000
STOPSIGNAL SIGTERM

# Set PORT rather than --port or a configuration file's `listen`, and the health check follows. It must not go through a proxy
# that HTTP_PROXY names.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:%s/healthz' % os.environ['PORT'], timeout=4)"]

# In exec form twistd is process 1 and gets the signals. Arguments of `docker run` are appended: `--demo`, `--drain 60`. The
# `llmproxy` command is there by `--entrypoint llmproxy`.
ENTRYPOINT ["twistd", "-n", "--pidfile=", "llmproxy"]
