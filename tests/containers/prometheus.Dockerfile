# What the public image of Prometheus does, with Debian's: it runs as nobody, in its data's directory.
FROM python:3.11-slim
RUN mkdir -p /prometheus && chown nobody:nogroup /prometheus
USER nobody
VOLUME /prometheus
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
