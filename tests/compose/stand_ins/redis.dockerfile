FROM safelight-test-base
RUN install -d -o 999 -g 1000 /data
WORKDIR /data
# As the official image does: whoever is in the network is let in.
ENTRYPOINT ["/bin/sh", "-c", "exec \"$@\" --protected-mode no", "-"]
