FROM safelight-test-base
USER nobody
ENTRYPOINT ["/usr/bin/prometheus-redis-exporter"]
