"""Days of usage: which are in the book, which were detached as files, and moving them."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.instants import day_at
from isochrone.control.api.paging import Listed
from isochrone.core.billing.period import day_name
from isochrone.core.metering.detached import DAY_NS
from isochrone.ports.usage_days import DayFile, UsageDay

MOST_DAYS = 3650


class FileShape(BaseModel):
    """A file of the archive that holds rows of a day; `sha256` is of its bytes."""

    part: int
    file: str
    rows: int
    size_bytes: int
    sha256: str
    detached_at: int


class DayShape(BaseModel):
    """`rows` are in the book, about; those of `files` are not, nor the evidence of
    `evidence_files`. `late_reports` came for detached
    requests and will replace them once the day is attached. `kept_until`: it was attached, and is
    not detached again before that instant (wall ns)."""

    day: str
    rows: int
    files: list[FileShape]
    evidence_files: list[FileShape]
    late_reports: int
    kept_until: int | None


class Detached(BaseModel):
    """`file` is null where the day had no rows."""

    day: str
    file: FileShape | None


class Attaching(BaseModel):
    """For how many days the day stays in the book at least."""

    keep_days: int = Field(default=7, ge=0, le=MOST_DAYS)


class Attached(BaseModel):
    day: str
    rows: int


class Checked(BaseModel):
    """`problems` is empty where the files are as they were written."""

    day: str
    problems: list[str]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/days", tags=["usage"])
    store = context.registry.usage_days
    may = access(context)

    @router.get("")
    def days(
        caller: Annotated[Caller, may("usage.days")],
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> Listed[DayShape]:
        """Days with requests, the latest first."""
        return Listed(items=[_day(each) for each in store.days()[:limit]], next=None)

    @router.post("/{day}/detach")
    def detach(day: str, caller: Annotated[Caller, may("usage.days")]) -> Detached:
        """Write the day's requests to a file of the archive and take them out of the book."""
        file = store.detach(caller.scope, day_at(day), now=context.now())
        return Detached(day=day, file=None if file is None else _file(file))

    @router.post("/{day}/attach")
    def attach(
        day: str, body: Attaching, caller: Annotated[Caller, may("usage.days")]
    ) -> Attached:
        """Bring the files of a detached day back into the book, with reports that came late."""
        now = context.now()
        rows = store.attach(
            caller.scope, day_at(day), now=now, keep_until=now + body.keep_days * DAY_NS
        )
        return Attached(day=day, rows=rows)

    @router.get("/{day}/check")
    def check(day: str, caller: Annotated[Caller, may("usage.days")]) -> Checked:
        """Read the files of a detached day, and compare them with what the book knows of them."""
        return Checked(day=day, problems=list(store.check(day_at(day))))

    return router


def _day(each: UsageDay) -> DayShape:
    return DayShape(
        day=day_name(each.day_at), rows=each.rows, files=[_file(file) for file in each.files],
        evidence_files=[_file(file) for file in each.evidence_files],
        late_reports=each.late_reports, kept_until=each.kept_until,
    )


def _file(file: DayFile) -> FileShape:
    return FileShape(
        part=file.part, file=file.file, rows=file.rows, size_bytes=file.size_bytes,
        sha256=file.sha256, detached_at=file.detached_at,
    )
