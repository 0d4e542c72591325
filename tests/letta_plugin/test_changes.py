"""A changed row leads to the cached values that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from letta_redis.plugin.changes import RULES, Changes, Verb, Write

pytestmark = pytest.mark.unit


def write(table: str, verb: Verb, *, upsert: bool = False, **sets: Mapping[str, str]) -> Write:
    frozen: dict[str, Any] = {
        part: {column: frozenset(text.split()) for column, text in values.items()}
        for part, values in sets.items()
    }
    return Write(table, verb, upsert=upsert, **frozen)


def noted(*writes: Write) -> tuple[set[str], set[str], set[str]]:
    changes = Changes()
    assert [changes.note(each) for each in writes] == [""] * len(writes)
    return changes.agents, changes.dependencies, changes.organisations


@pytest.mark.parametrize("verb", ["insert", "update"])
def test_a_row_given_to_an_agent_changes_the_agent(verb: Verb) -> None:
    attached = write("blocks_agents", verb, given={"agent_id": "a1", "block_id": "b1"},
                     pinned={"agent_id": "a2"} if verb == "update" else {})  # fmt: skip

    agents, dependencies, _ = noted(attached)

    assert agents == ({"a1", "a2"} if verb == "update" else {"a1"})
    assert dependencies == set()


def test_rows_of_many_agents_change_all_of_them() -> None:
    assert noted(write("agents_tags", "delete", pinned={"agent_id": "a1 a2"}))[0] == {"a1", "a2"}


def test_a_shared_row_changes_what_depends_on_it() -> None:
    for table in ("block", "tools", "sources", "identities", "groups"):
        for verb in ("update", "delete"):
            assert noted(write(table, verb, pinned={"id": "x1"}))[1] == {"x1"}


def test_a_new_shared_row_changes_nothing() -> None:
    assert noted(write("block", "insert", given={"id": "b1"})) == (set(), set(), set())


def test_a_deleted_agent_takes_its_messages_along() -> None:
    assert noted(write("agents", "delete", pinned={"id": "a1"}))[:2] == ({"a1"}, {"a1"})
    assert noted(write("agents", "update", pinned={"id": "a1"}))[:2] == ({"a1"}, set())
    assert noted(write("messages", "delete", pinned={"agent_id": "a1"}))[1] == {"a1"}


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_a_changed_message_is_named_by_its_id_and_its_windows(verb: Verb) -> None:
    changes = Changes()
    assert changes.note(write("messages", verb, pinned={"id": "m1"})) == "agent_id"

    agents = noted(write("messages", verb, pinned={"id": "m1", "agent_id": "a1"}))[0]

    assert agents == {"m1", "messages-of-a1"}


def test_a_new_message_changes_windows_only() -> None:
    given = {"id": "m1", "agent_id": "a1"}
    assert noted(write("messages", "insert", given=given)) == ({"messages-of-a1"}, set(), set())


def test_a_link_changes_windows_of_its_agent_and_its_conversation() -> None:
    names = {"agent_id": "a1", "conversation_id": "c1", "message_id": "m1"}
    wanted = {"messages-of-a1", "messages-of-c1"}
    assert noted(write("conversation_messages", "insert", given=names))[0] == wanted
    for verb in ("update", "delete"):
        assert noted(write("conversation_messages", verb, pinned=names))[0] == wanted


@pytest.mark.parametrize("table", ["runs", "steps", "conversations"])
def test_only_its_deletion_takes_a_row_out_of_its_messages(table: str) -> None:
    assert noted(write(table, "delete", pinned={"id": "x1"}))[1] == {"x1"}
    assert noted(write(table, "update", pinned={"id": "x1"})) == (set(), set(), set())


def test_a_deleted_link_is_found_by_what_it_links_to() -> None:
    assert noted(write("blocks_agents", "delete", pinned={"block_id": "b1"}))[1] == {"b1"}


def test_a_changed_link_is_not_found_by_what_it_links_to() -> None:
    changes = Changes()

    wanted = changes.note(write("files_agents", "update", pinned={"file_id": "f1"}))

    assert wanted == "agent_id"
    assert not changes


@pytest.mark.parametrize("table", ["tools", "sources", "agents"])
def test_an_upsert_changes_its_organization(table: str) -> None:
    given = {"id": "x1", "organization_id": "o1"}

    assert noted(write(table, "insert", upsert=True, given=given))[2] == {"o1"}
    assert noted(write(table, "insert", given=given))[2] == set()


def test_a_group_changes_its_old_and_its_new_manager() -> None:
    handed_over = write("groups", "update", given={"manager_agent_id": "a2"}, pinned={"id": "g1"})

    agents, dependencies, _ = noted(handed_over)

    assert (agents, dependencies) == ({"a2"}, {"g1"})


def test_only_the_deletion_of_a_file_is_seen() -> None:
    assert noted(write("files", "update", pinned={"id": "f1"})) == (set(), set(), set())
    assert noted(write("files", "delete", pinned={"id": "f1"}))[1] == {"f1"}


def test_a_statement_that_pins_no_rows_asks_for_them() -> None:
    asked = {table: Changes().note(write(table, "delete")) for table in RULES}

    assert all(asked.values())
    assert asked["agents"] == asked["block"] == asked["organizations"] == "id"
    assert asked["tools_agents"] == "agent_id"


def test_other_tables_change_nothing() -> None:
    given = {"agent_id": "a1"}

    assert noted(write("passages", "insert", given=given)) == (set(), set(), set())
    assert noted(write("runs", "update", pinned={"id": "r1"})) == (set(), set(), set())
