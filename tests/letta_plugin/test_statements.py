"""A statement says which rows it changes, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert

from letta_redis.plugin.changes import Write
from letta_redis.plugin.statements import write_of

pytestmark = pytest.mark.unit

_metadata = MetaData()
ROWS = Table("rows", _metadata, *(Column(name, String) for name in ("id", "agent_id", "tag")))
OTHERS = Table("others", _metadata, Column("id", String))


def read(statement: Any, *parameters: dict[str, Any]) -> Write:
    write = write_of(statement, parameters or [{}])
    assert write is not None
    return write


def pinned(*conditions: Any) -> dict[str, set[str]]:
    found = read(delete(ROWS).where(*conditions)).pinned
    return {column: set(values) for column, values in found.items()}


def test_values_of_every_form_are_given() -> None:
    rows = [{"id": "r1", "agent_id": "a1"}, {"id": "r2", "agent_id": "a2"}]

    for write in (
        read(insert(ROWS).values(rows)),
        read(insert(ROWS), *rows),
        read(insert(ROWS).values(tuple_rows(rows))),
    ):
        assert write.verb == "insert"
        assert set(write.given["agent_id"]) == {"a1", "a2"}
    assert read(insert(ROWS).values(agent_id="a1")).given == {"agent_id": {"a1"}}
    assert read(update(ROWS).values(agent_id="a1")).given == {"agent_id": {"a1"}}


def tuple_rows(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["id"], row["agent_id"]) for row in rows]


def test_an_expression_gives_nothing() -> None:
    assert read(update(ROWS).values(agent_id=func.lower("A1"))).given == {}


def test_equality_and_lists_pin_rows() -> None:
    assert pinned(ROWS.c.id == "r1") == {"id": {"r1"}}
    assert pinned(ROWS.c.id.in_(["r1", "r2"])) == {"id": {"r1", "r2"}}
    assert pinned(ROWS.c.id.in_(["r1", "r2"]), ROWS.c.id == "r2") == {"id": {"r2"}}
    assert pinned(tuple_(ROWS.c.agent_id, ROWS.c.id).in_([("a1", "r1"), ("a2", "r2")])) == {
        "agent_id": {"a1", "a2"},
        "id": {"r1", "r2"},
    }


def test_parameters_of_each_row_pin_rows() -> None:
    statement = update(ROWS).where(ROWS.c.id == bindparam("rows_id")).values(tag="t")

    write = read(statement, {"rows_id": "r1"}, {"rows_id": "r2"})

    assert write.pinned == {"id": {"r1", "r2"}}


@pytest.mark.parametrize(
    "condition",
    [
        or_(ROWS.c.id == "r1", ROWS.c.tag == "t"),
        ROWS.c.id != "r1",
        ~ROWS.c.id.in_(["r1"]),
        ROWS.c.id.like("r%"),
        ROWS.c.id.in_(select(OTHERS.c.id)),
        OTHERS.c.id == "r1",
        func.lower(ROWS.c.id) == "r1",
        ROWS.c.id == ROWS.c.tag,
        ROWS.c.id.is_(None),
    ],
)
def test_a_condition_that_bounds_no_rows_pins_none(condition: Any) -> None:
    assert pinned(condition) == {}
    assert pinned(condition, ROWS.c.agent_id == "a1") == {"agent_id": {"a1"}}


def test_only_an_updating_conflict_makes_an_upsert() -> None:
    statement = pg_insert(ROWS).values(id="r1")

    assert not read(statement).upsert
    assert not read(statement.on_conflict_do_nothing()).upsert
    assert read(statement.on_conflict_do_update(index_elements=["tag"], set_={"tag": "t"})).upsert


def test_what_is_no_write_is_none() -> None:
    assert write_of(select(ROWS), [{}]) is None
    assert write_of(text("DELETE FROM rows"), [{}]) is None
