FROM safelight-test-base
USER nobody
ENTRYPOINT ["/usr/bin/prometheus-postgres-exporter"]
