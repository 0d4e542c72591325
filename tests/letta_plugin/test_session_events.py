"""What a session writes is begun before its COMMIT, and has ended when the session has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import ForeignKey, create_engine, delete, event, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from sqlalchemy.util import await_only, greenlet_spawn

from letta_redis.plugin import delivery
from letta_redis.plugin.delivery import Deliveries
from letta_redis.plugin.session_events import SessionEvents
from tests.support.wait import eventually

pytestmark = pytest.mark.integration


class Base(DeclarativeBase):
    pass


class Agent(Base):
    __tablename__ = "agents"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")


class Variable(Base):
    __tablename__ = "agent_environment_variables"
    id: Mapped[str] = mapped_column(primary_key=True)
    agent_id: Mapped[str] = mapped_column(ForeignKey("agents.id"))
    key: Mapped[str] = mapped_column(default="k")


class Run(Base):
    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(primary_key=True)


class Recorder:
    """An invalidator that records what it is told, and where it is open."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.loop = asyncio.get_running_loop()

    async def opened(self) -> Any:
        return self

    async def until(self, told: Any) -> None:
        async def is_told() -> bool:
            return told in self.told

        await eventually(is_told, deadline_s=30)

    async def begin_write(self, **names: Any) -> int:
        self.told.append(("begin", names["agents"] | names["dependencies"]))
        return len(self.told)

    async def end_write(self, token: int) -> bool:
        self.told.append(("end", token))
        return True

    async def invalidate(self, **names: Any) -> bool:
        self.told.append(("again", names["agents"]))
        return True


class Sessions:
    """Runs a block of statements in a session, as Letta's registry does."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.deliveries = Deliveries(recorder)
        self.engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        Base.metadata.create_all(self.engine)
        self.events = SessionEvents(self.engine, Base.registry.mappers, self.deliveries)
        with Session(self.engine) as session:
            session.add_all([Agent(id="a1"), Agent(id="a2"), Variable(id="v1", agent_id="a1")])
            session.commit()
        self.events.listen()

    async def run(self, block: Callable[[Session], Any]) -> list[Any]:
        """Returns what the recorder was told."""

        def write() -> None:
            block(session)
            session.commit()

        self.recorder.told.clear()
        with Session(self.engine, autoflush=False) as session:
            transactions = self.events.manage(session)
            try:
                await greenlet_spawn(write)
            finally:
                session.rollback()
                await self.deliveries.settle(transactions)
        return self.recorder.told


@pytest.fixture
async def sessions() -> Any:
    found = Sessions(Recorder())
    yield found
    found.events.unlisten()
    await found.deliveries.delivered()
    found.engine.dispose()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "AGAIN_S", (0.0, 0.0))


async def test_a_flush_inside_commit_is_begun_before_it(sessions: Sessions) -> None:
    def rename(session: Session) -> None:
        session.get_one(Agent, "a1").name = "new"

    assert await sessions.run(rename) == [("begin", {"a1"}), ("end", 1)]


async def test_reading_and_other_tables_cost_nothing(sessions: Sessions) -> None:
    assert await sessions.run(lambda session: session.get_one(Agent, "a1")) == []
    assert await sessions.run(lambda session: session.add(Run(id="r1"))) == []


async def test_core_and_bulk_statements_are_seen(sessions: Sessions) -> None:
    def core(session: Session) -> None:
        session.execute(update(Agent).where(Agent.id == "a1").values(name="x"))

    def bulk(session: Session) -> None:
        session.bulk_update_mappings(Agent.__mapper__, [{"id": "a2", "name": "y"}])

    def below(session: Session) -> None:
        session.connection().execute(delete(Variable).where(Variable.agent_id == "a2"))

    assert await sessions.run(core) == [("begin", {"a1"}), ("end", 1)]
    assert await sessions.run(bulk) == [("begin", {"a2"}), ("end", 1)]
    assert await sessions.run(below) == [("begin", {"a2"}), ("end", 1)]


async def test_the_owner_of_a_loaded_row_needs_no_query(sessions: Sessions) -> None:
    queries: list[str] = []
    event.listen(sessions.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))

    def change(session: Session) -> None:
        session.get_one(Variable, "v1").key = "new"

    assert await sessions.run(change) == [("begin", {"a1"}), ("end", 1)]
    assert len(queries) == 2


async def test_the_owner_of_any_other_row_is_looked_up(sessions: Sessions) -> None:
    def change(session: Session) -> None:
        session.execute(update(Variable).where(Variable.key == "k").values(key="new"))

    assert await sessions.run(change) == [("begin", {"a1"}), ("end", 1)]


async def test_a_row_that_moves_changes_both_owners(sessions: Sessions) -> None:
    def move(session: Session) -> None:
        session.get_one(Variable, "v1").agent_id = "a2"

    assert await sessions.run(move) == [("begin", {"a1", "a2"}), ("end", 1)]


async def test_a_savepoint_begins_nothing(sessions: Sessions) -> None:
    def nested(session: Session) -> None:
        with session.begin_nested():
            session.get_one(Agent, "a1").name = "in a savepoint"
        assert sessions.recorder.told == []

    assert await sessions.run(nested) == [("begin", {"a1"}), ("end", 1)]


async def test_a_write_ends_while_its_session_goes_on(sessions: Sessions) -> None:
    def twice(session: Session) -> None:
        for token, agent_id in ((1, "a1"), (3, "a2")):
            session.get_one(Agent, agent_id).name = "new"
            session.commit()
            await_only(sessions.recorder.until(("end", token)))

    assert await sessions.run(twice) == [
        ("begin", {"a1"}), ("end", 1), ("begin", {"a2"}), ("end", 3),
    ]  # fmt: skip


@pytest.mark.usefixtures("soon")
async def test_a_failed_commit_ends_while_its_session_goes_on(sessions: Sessions) -> None:
    def broken(_connection: Any) -> None:
        raise ConnectionError

    def fail_and_go_on(session: Session) -> None:
        session.get_one(Agent, "a1").name = "who knows"
        session.flush()
        event.listen(sessions.engine, "commit", broken)
        try:
            with suppress(ConnectionError):
                session.commit()
        finally:
            event.remove(sessions.engine, "commit", broken)
        session.rollback()
        await_only(sessions.recorder.until(("end", 1)))
        session.get_one(Agent, "a2").name = "new"

    told = await sessions.run(fail_and_go_on)

    assert told == [
        ("begin", {"a1"}), *[("again", {"a1"})] * 3, ("end", 1), ("begin", {"a2"}), ("end", 6),
    ]  # fmt: skip


async def test_a_rollback_tells_nobody(sessions: Sessions) -> None:
    def fail(session: Session) -> None:
        session.get_one(Agent, "a1").name = "lost"
        session.flush()
        raise LookupError

    with pytest.raises(LookupError):
        await sessions.run(fail)

    assert sessions.recorder.told == []


@pytest.mark.usefixtures("soon")
async def test_a_failed_commit_is_invalidated_again(sessions: Sessions) -> None:
    def broken(*_args: Any) -> None:
        raise ConnectionError

    def rename(session: Session) -> None:
        session.get_one(Agent, "a1").name = "who knows"
        session.flush()
        event.listen(sessions.engine, "commit", broken)

    try:
        with pytest.raises(ConnectionError):
            await sessions.run(rename)
    finally:
        event.remove(sessions.engine, "commit", broken)
    await sessions.deliveries.delivered()

    told = sessions.recorder.told
    assert told[0] == ("begin", {"a1"})
    assert told[1:] == [("again", {"a1"})] * 3 + [("end", 1)]


async def test_a_cancellation_waits_for_the_end(sessions: Sessions) -> None:
    ending, may_end = asyncio.Event(), asyncio.Event()

    async def end_write(token: int) -> bool:
        ending.set()
        await may_end.wait()
        sessions.recorder.told.append(("end", token))
        return True

    sessions.recorder.end_write = end_write  # type: ignore[method-assign]

    def rename(session: Session) -> None:
        session.get_one(Agent, "a1").name = "new"

    run = asyncio.ensure_future(sessions.run(rename))
    await ending.wait()
    run.cancel()
    await asyncio.sleep(0)
    assert not run.done()
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await run
    assert sessions.recorder.told == [("begin", {"a1"}), ("end", 1)]


async def test_another_event_loop_is_told_at_home(sessions: Sessions) -> None:
    def rename(session: Session) -> None:
        session.get_one(Agent, "a1").name = "from a thread"

    loops = []
    begin_write = sessions.recorder.begin_write

    async def begin(**names: Any) -> int:
        loops.append(asyncio.get_running_loop())
        return await begin_write(**names)

    sessions.recorder.begin_write = begin  # type: ignore[method-assign]

    told = await asyncio.to_thread(lambda: asyncio.run(sessions.run(rename)))

    assert told == [("begin", {"a1"}), ("end", 1)]
    assert loops == [asyncio.get_running_loop()]


async def test_a_session_of_nobody_is_ended_after_its_commit(sessions: Sessions) -> None:
    def rename() -> None:
        with Session(sessions.engine) as session:
            session.get_one(Agent, "a1").name = "new"
            session.commit()

    await greenlet_spawn(rename)
    await sessions.deliveries.delivered()

    assert sessions.recorder.told == [("begin", {"a1"}), ("end", 1)]
