"""The tables, and how they come to be in a database."""

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    text,
)

PREPARING = 7_245_331  # of an advisory lock: any number that nobody else takes

metadata = MetaData()

# A blob is the folder of one computation's pictures. Jobs and cached responses point at it; it is deleted when
# none does, and the foreign keys refuse a pointer to one that has just been deleted.
blobs = Table(
    "blobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("bytes", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)
jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("source", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float, index=True),
    Column("params", Text, nullable=False),
    Column("revision", String(64), nullable=False),
    Column("cache_key", String(64)),
    Column("reason", String(32), nullable=False),
    Column("detail", Text),
    Column("blob", ForeignKey("blobs.id"), index=True),
    Column("cached", Boolean, nullable=False),
    Column("prompt_truncated", Boolean, nullable=False),
    Column("timings", Text, nullable=False),
    Column("traceparent", String(64)),
    Column("flight", String(64)),
    Index("jobs_by_age", "created_at", "id"),
    Index("jobs_by_state", "state", "created_at"),
    Index("jobs_by_flight", "flight"),
    Index("jobs_by_cache_key", "cache_key"),
)
# In a fleet, a computation that unfinished jobs wait for: the worker that has it, how many have had it, and of those
# how many were lost over it, and how many failed without its being to blame.
flights = Table(
    "flights",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("priority", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("worker", String(64)),
    Column("runs", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("failed", Integer),
)
idempotency = Table(
    "idempotency_keys",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
)
responses = Table(
    "cached_responses",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("prompt_key", String(64), nullable=False, index=True),
    Column("seed", String(24), nullable=False),
    Column("prompt_truncated", Boolean, nullable=False),
    Column("blob", ForeignKey("blobs.id"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float, nullable=False, index=True),
)


def prepare(engine: Engine) -> None:
    """Create what is missing: tables, and what an earlier version did not have: columns, all nullable, and indexes.

    Processes that start at the same time do it one after the other.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({PREPARING})"))
        metadata.create_all(connection)
        found = inspect(connection)
        for table in metadata.sorted_tables:
            known = {column["name"] for column in found.get_columns(table.name)}
            for column in table.columns:
                if column.name not in known:
                    kind = column.type.compile(engine.dialect)
                    connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
            for index in table.indexes:
                index.create(connection, checkfirst=True)
