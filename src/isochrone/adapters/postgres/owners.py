"""Checks whom a record is made for: an organisation, perhaps a project and a key of it.

They have to be there for the scope, and open: nothing new is made for what was closed.
"""

import psycopg
from psycopg.rows import TupleRow

from isochrone.core.errors import Closed, NotFound
from isochrone.core.ids import KeyId, OrgId, ProjectId
from isochrone.core.world.tenant import Scope

# Of rows of `projects p` and `organisations o`.
OPEN_PROJECTS = (
    "SELECT p.id FROM projects p JOIN organisations o ON o.id = p.org_id"
    " WHERE p.closed_at IS NULL AND o.closed_at IS NULL"
)

_Connection = psycopg.Connection[TupleRow]


def check_owner(
    connection: _Connection, scope: Scope, org_id: OrgId, project_id: ProjectId | None = None,
    key_id: KeyId | None = None,
) -> None:
    """Raises NotFound for what the scope does not have, Closed for what is closed."""
    arguments = {
        "of": org_id, "org": scope.org_id, "project": project_id, "key": key_id,
    }
    row = connection.execute(
        "SELECT closed_at FROM organisations WHERE id = %(of)s"
        " AND (%(org)s::text IS NULL OR id = %(org)s)",
        arguments,
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no organisation {org_id!r}")
    if row[0] is not None:
        raise Closed(f"the organisation {org_id!r} is closed")
    if project_id is not None:
        row = connection.execute(
            "SELECT closed_at FROM projects WHERE id = %(project)s AND org_id = %(of)s", arguments
        ).fetchone()
        if row is None:
            raise NotFound(f"the organisation has no project {project_id!r}")
        if row[0] is not None:
            raise Closed(f"the project {project_id!r} is closed")
    if key_id is not None and connection.execute(
        "SELECT 1 FROM api_keys WHERE id = %(key)s AND project_id = %(project)s", arguments
    ).fetchone() is None:
        raise NotFound(f"the project has no key {key_id!r}")
