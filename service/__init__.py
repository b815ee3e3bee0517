"""The generation service: API, jobs, engine and storage."""
