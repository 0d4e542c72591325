"""
Finds out which rows an INSERT, UPDATE or DELETE of SQLAlchemy changes.

Only equalities and IN lists that every matching row satisfies restrict the rows.
A value that is not a plain parameter restricts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Delete, Insert, Table, Update
from sqlalchemy.dialects.postgresql.dml import OnConflictDoUpdate
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    Grouping,
    Tuple,
)

from letta_redis.plugin.changes import Values, Verb, Write

Parameters = Sequence[Mapping[str, Any]]
_VERBS: tuple[tuple[type[Any], Verb], ...] = (
    (Insert, "insert"), (Update, "update"), (Delete, "delete"),
)  # fmt: skip


def write_of(statement: Any, parameters: Parameters) -> Write | None:
    """
    The write that a statement makes. None if it makes none, or is raw SQL.

    Args:
        parameters: the statement's parameters, one mapping for each row.
    """
    for kind, verb in _VERBS:
        if isinstance(statement, kind) and isinstance(statement.table, Table):
            return Write(
                statement.table.name,
                verb,
                _given(statement, verb, parameters),
                {} if verb == "insert" else _pinned(statement, parameters),
                verb == "insert" and isinstance(statement._post_values_clause, OnConflictDoUpdate),
            )
    return None


def _given(statement: Any, verb: Verb, parameters: Parameters) -> Values:
    if verb == "delete":
        return {}
    given: dict[str, set[str]] = {}
    rows: list[Any] = [statement._values or {}, *parameters]
    rows += [row for part in getattr(statement, "_multi_values", ()) for row in part]
    columns = statement.table.c.keys()
    for row in rows:
        named = row if isinstance(row, Mapping) else dict(zip(columns, row, strict=False))
        for column, value in named.items():
            name = column if isinstance(column, str) else column.key
            plain = value.effective_value if isinstance(value, BindParameter) else value
            if isinstance(plain, str):
                given.setdefault(name, set()).add(plain)
    return {column: frozenset(values) for column, values in given.items()}


def _pinned(statement: Any, parameters: Parameters) -> Values:
    pinned: dict[str, set[Any]] = {}
    for clause in _required(statement.whereclause):
        for column, values in _comparison(clause, statement.table, parameters):
            if all(isinstance(value, str) for value in values):
                pinned[column] = pinned.get(column, values) & values
    return {column: frozenset(values) for column, values in pinned.items()}


def _required(clause: Any) -> Iterator[Any]:
    """The conditions of a WHERE that every row satisfies: those joined by AND."""
    if isinstance(clause, Grouping):
        yield from _required(clause.element)
    elif isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _required(part)
    elif clause is not None:
        yield clause


def _comparison(
    clause: Any, table: Table, parameters: Parameters
) -> Iterable[tuple[str, set[Any]]]:
    if not isinstance(clause, BinaryExpression) or not isinstance(clause.right, BindParameter):
        return
    values = list(_values(clause.right, parameters))
    if clause.operator is operators.in_op:
        values = [one for value in values for one in value]
    elif clause.operator is not operators.eq:
        return
    left = clause.left
    if isinstance(left, Tuple):
        for place, column in enumerate(left.clauses):
            if _is_of(column, table):
                yield str(column.key), {value[place] for value in values}
    elif _is_of(left, table):
        yield str(left.key), set(values)


def _is_of(column: Any, table: Table) -> bool:
    return isinstance(column, ColumnClause) and getattr(column.table, "name", "") == table.name


def _values(bind: BindParameter[Any], parameters: Parameters) -> Iterator[Any]:
    rows = [row for row in parameters if bind.key in row]
    if rows:
        yield from (row[bind.key] for row in rows)
    else:
        yield bind.effective_value
