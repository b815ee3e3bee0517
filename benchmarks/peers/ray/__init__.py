"""Ray Serve: `@serve.batch`."""
