"""The user of a request is read through the cache inside the Letta server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.letta.agents import counted_sql

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("plugin")]


@pytest.fixture
def users(letta: str) -> Any:
    from letta.services.user_manager import UserManager

    return UserManager()


async def make_user(users: Any) -> Any:
    from letta.schemas.organization import Organization
    from letta.schemas.user import User
    from letta.services.organization_manager import OrganizationManager

    organization = await OrganizationManager().create_organization_async(Organization(name="ours"))
    return await users.create_actor_async(User(name="a user", organization_id=organization.id))


async def test_a_request_reads_its_user_without_sql(users: Any) -> None:
    user = await make_user(users)
    first = await users.get_actor_by_id_async(user.id)

    with counted_sql() as statements:
        second = await users.get_actor_or_default_async(actor_id=user.id)

    assert statements == []
    assert second == first == user
    assert second is not first


async def test_the_next_read_sees_a_changed_user(users: Any) -> None:
    from letta.schemas.user import UserUpdate

    user = await make_user(users)
    for name in ("one", "two", "three"):
        assert await users.get_actor_by_id_async(user.id)
        await users.update_actor_async(UserUpdate(id=user.id, name=name))
        assert (await users.get_actor_by_id_async(user.id)).name == name


async def test_a_deleted_user_is_not_found(users: Any) -> None:
    from letta.orm.errors import NoResultFound

    user = await make_user(users)
    await users.get_actor_by_id_async(user.id)
    await users.delete_actor_by_id_async(user.id)

    for _ in range(2):
        with pytest.raises(NoResultFound, match=f"User not found with id={user.id}"):
            await users.get_actor_by_id_async(user.id)


async def test_a_user_goes_with_its_organization(users: Any) -> None:
    from letta.orm.errors import NoResultFound
    from letta.services.organization_manager import OrganizationManager

    user = await make_user(users)
    await users.get_actor_by_id_async(user.id)
    await OrganizationManager().delete_organization_by_id_async(user.organization_id)

    with pytest.raises(NoResultFound):
        await users.get_actor_by_id_async(user.id)
