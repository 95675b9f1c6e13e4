"""A change of a member is judged by the member as it stands when it is changed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from isochrone.adapters.postgres.members import write_account
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import InvalidInput
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.accounts import Account
from tests.contract.test_control_api import Api, an_api
from tests.fixtures.locks import until_waiting


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    with an_api(pool) as found:
        yield found


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_who_was_appointed_meanwhile_is_judged_by_the_role_they_have_now(
    api: Api, pool: Pool, method: str
) -> None:
    owner = api.tenant("two")
    admin = api.make("principals", {"name": "a", "role": "admin"}, key=owner)["key"]
    other = api.make("principals", {"name": "x", "role": "developer"}, key=owner)["id"]
    body = {"role": "billing"} if method == "PATCH" else None
    with ThreadPoolExecutor(1) as worker:
        with pool.transaction(EVERY_TENANT) as connection:
            connection.execute("UPDATE principals SET role = 'owner' WHERE id = %s", (other,))
            answer = worker.submit(api.call, method, f"principals/{other}", body, key=admin)
            until_waiting(pool, 1)
        status, problem = answer.result(timeout=20)
    assert (status, "may not appoint the role 'owner'" in problem["detail"]) == (403, True)
    assert api.context.registry.members.member(EVERY_TENANT, other).role == "owner"


def test_a_name_with_letters_that_only_the_book_knows_is_refused_in_plain_words(
    api: Api, pool: Pool
) -> None:
    """A capital stands for a letter that is newer than the tables of this Python."""
    owner = api.tenant("two")
    made = api.make("principals", {"name": "x", "role": "developer"}, key=owner)
    account = Account(
        principal_id=made["id"], org_id=made["org_id"], login="Ada", password="x", is_given=True
    )
    with pytest.raises(InvalidInput) as raised, pool.transaction(EVERY_TENANT) as connection:
        write_account(connection, account, now=api.context.now())
    (problem,) = raised.value.problems
    assert problem.startswith("login: has a capital letter whose small form is not known here")
