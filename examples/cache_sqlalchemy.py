"""
Uses the cache with SQLAlchemy: reads with `get_or_load`, names each write around its commit.

    .venv/bin/python -m examples.cache_sqlalchemy
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from examples.running import run
from letta_redis import Cache, open_cache


class Base(DeclarativeBase):
    pass


class Agent(Base):
    __tablename__ = "agents"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]


class Agents:
    """A repository; only this class uses the cache."""

    def __init__(self, sessions: async_sessionmaker[AsyncSession], cache: Cache) -> None:
        self._sessions = sessions
        self._cache = cache
        self.database_reads = 0

    async def get(self, agent_id: str) -> Any:
        """One process loads, and all concurrent callers get its result."""
        return await self._cache.agents.get_or_load(agent_id, lambda: self._load(agent_id))

    async def rename(self, agent_id: str, name: str) -> None:
        # Around the commit: until it has ended, the cache neither serves nor stores the
        # agent, even if this process dies between the commit and the next line.
        async with self._cache.writing(agents=[agent_id]), self._sessions.begin() as session:
            agent = await session.get_one(Agent, agent_id)
            agent.name = name

    async def _load(self, agent_id: str) -> dict[str, str]:
        self.database_reads += 1
        async with self._sessions() as session:
            agent = await session.get_one(Agent, agent_id)
            return {"id": agent.id, "name": agent.name}


async def main() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    sessions = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with sessions.begin() as session:
        session.add(Agent(id="agent-1", name="Ada"))

    async with open_cache() as cache:
        agents = Agents(sessions, cache)
        for _ in range(100):
            agent = await agents.get("agent-1")
        print(f"100 reads, {agents.database_reads} from the database: {agent}")

        await agents.rename("agent-1", "Grace")
        print(f"after the commit: {await agents.get('agent-1')}")
        print(f"reads from the database in all: {agents.database_reads}")
    await engine.dispose()


if __name__ == "__main__":
    run(main, workers=False)
