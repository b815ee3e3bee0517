"""A server with S3's interface, in this process; it forgets everything when it ends."""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would tell of every request

KEYS = {"AWS_ACCESS_KEY_ID": "safelight", "AWS_SECRET_ACCESS_KEY": "safelight", "AWS_DEFAULT_REGION": "us-east-1"}


class S3Server:
    """One that runs. `environment` is what a process needs to reach it."""

    def __init__(self, port: int = 0) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
        self._server.start()
        host, self.port = self._server.get_host_and_port()
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{self.port}"}

    def bucket(self, url: str | None = None) -> str:
        """The URL of a new one, or of that which `url` names."""
        name = f"pictures-{uuid.uuid4().hex}" if url is None else url.split("/")[2]
        client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}/pictures"

    def stop(self) -> None:
        """End it."""
        self._server.stop()


@contextmanager
def s3() -> Iterator[S3Server]:
    """One that is there until the block ends."""
    server = S3Server()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def reachable(server: S3Server) -> Iterator[None]:
    """Processes that are started meanwhile find it."""
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
