"""
Collects what each database transaction changes, by events of SQLAlchemy.

    after_begin          the session has a connection: note its statements from here on
    before_execute       each statement: of a flush, of Core, of a bulk operation
    commit               right before COMMIT, but not at a savepoint: the write begins
    after_commit,
    after_soft_rollback  the write ends, whether or not it is known to have committed

Tasks deliver the ends, and the end of the session awaits them (sessions.py). Changes that
were rolled back to a savepoint stay noted: an unneeded invalidation costs one load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event, inspect, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.util import await_only

from cache.errors import CacheUnavailable
from cache.logs import get_logger
from letta_redis.plugin.changes import RULES, Write
from letta_redis.plugin.delivery import Deliveries, Transactions
from letta_redis.plugin.statements import Parameters, write_of

log = get_logger("letta_redis")

_KEY = "letta_redis.transactions"


class SessionEvents:
    """
    Listens to one engine, and to the sessions that use it.

    Args:
        engine: the synchronous engine inside Letta's asynchronous one.
        mappers: the mappers of Letta's tables.
    """

    def __init__(
        self, engine: Engine, mappers: Iterable[Mapper[Any]], deliveries: Deliveries
    ) -> None:
        self._engine = engine
        self._mappers = {getattr(one.local_table, "name", ""): one for one in mappers}
        self._deliveries = deliveries
        self._sessions: WeakKeyDictionary[Connection, Session] = WeakKeyDictionary()
        self._listeners: tuple[tuple[Any, str, Callable[..., None]], ...] = (
            (engine, "before_execute", self._execute),
            (engine, "commit", self._commit),
            (Session, "after_begin", self._begin),
            (Session, "after_commit", self._committed),
            (Session, "after_soft_rollback", self._rolled_back),
        )

    def listen(self) -> None:
        for target, name, function in self._listeners:
            event.listen(target, name, function)

    def unlisten(self) -> None:
        for target, name, function in self._listeners:
            event.remove(target, name, function)

    @staticmethod
    def manage(session: Session) -> Transactions:
        """The transactions of a session. The caller settles them when the session ends."""
        transactions = session.info[_KEY] = Transactions()
        return transactions

    def _begin(self, session: Session, _transaction: Any, connection: Connection) -> None:
        if connection.engine is self._engine:
            session.info.setdefault(_KEY, Transactions())
            self._sessions[connection] = session

    def _execute(
        self,
        connection: Connection,
        statement: Any,
        many: Parameters,
        one: Mapping[str, Any],
        _options: Any,
    ) -> None:
        if not getattr(statement, "is_dml", False):
            return
        session = self._sessions.get(connection)
        if session is None or getattr(statement.table, "name", "") not in RULES:
            return
        parameters = many or [one]
        try:
            write = write_of(statement, parameters)
        except Exception:  # Letta's write must go on
            log.exception("letta.write_not_understood", table=statement.table.name)
            return
        changes = session.info[_KEY].changes
        while write is not None and (column := changes.note(write)):
            found = self._loaded(session, write, column)
            if found is None:
                found = _selected(connection, statement, parameters, column)
            write = replace(write, pinned={**write.pinned, column: found})

    def _loaded(self, session: Session, write: Write, column: str) -> frozenset[str] | None:
        """The values of a column in the changed rows; None if the session has not loaded all of them."""
        mapper, ids = self._mappers.get(write.table), write.pinned.get("id")
        if mapper is None or ids is None:
            return None
        values = set()
        for row_id in ids:
            row = session.identity_map.get(mapper.identity_key_from_primary_key((row_id,)))
            if row is None:
                return None
            state = inspect(row)
            value = state.committed_state.get(column, state.dict.get(column))
            if not isinstance(value, str):
                return None
            values.add(value)
        return frozenset(values)

    def _commit(self, connection: Connection) -> None:
        session = self._sessions.get(connection)
        if session is None or not session.info[_KEY].changes:
            return
        try:
            await_only(self._deliveries.begin(session.info[_KEY]))
        except CacheUnavailable as exc:
            from letta.errors import LettaServiceUnavailableError

            # Letta takes any ConnectionError for one of PostgreSQL, and tries again with
            # another session, which its caller cannot use.
            raise LettaServiceUnavailableError(str(exc), service_name="cache") from exc

    def _committed(self, session: Session) -> None:
        transactions: Transactions | None = session.info.get(_KEY)
        if transactions is not None:
            self._deliveries.committed(transactions)

    def _rolled_back(self, session: Session, _previous: Any) -> None:
        transactions: Transactions | None = session.info.get(_KEY)
        if transactions is not None:
            self._deliveries.failed(transactions)


def _selected(
    connection: Connection, statement: Any, parameters: Parameters, column: str
) -> frozenset[str]:
    """The values of a column in the changed rows, read in the same transaction before the change."""
    query = select(statement.table.c[column])
    if statement.whereclause is not None:
        query = query.where(statement.whereclause)
    found: set[Any] = set()
    for row in parameters:
        found.update(connection.execute(query, row).scalars())
    return frozenset(value for value in found if value is not None)
