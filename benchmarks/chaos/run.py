"""Breaks a copy of the product in one place at a time, and counts the seeds until judges say so.

Run from the project's folder: python -m benchmarks.chaos.run
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gateway.machine import ROOT, commit, facts

HERE = Path(__file__).resolve().parent
PLAY = (
    "import sys\n"
    "from isochrone.wiring.chaos_runs import play_seeds\n"
    "played = play_seeds(range(int(sys.argv[1])), 1)\n"
    "wrong = next((each for each in played if each.found), None)\n"
    "played.close()\n"
    "print(-1 if wrong is None else wrong.seed)\n"
    "print('' if wrong is None else wrong.found[0])\n"
)


@dataclass(frozen=True, slots=True)
class Breakage:
    """`old` in the file `at` becomes `new`; both are whole pieces of its text."""

    name: str
    at: str
    old: str
    new: str


BREAKAGES = (
    Breakage(
        "usage is acknowledged before it is booked", "control/booking.py",
        "        parked = await self._offload(lambda: self._take(messages, now))\n"
        "        self._held[lane] = ()\n",
        "        await self._bus.ack(messages)\n        self._held[lane] = ()\n"
        "        parked = await self._offload(lambda: self._take(messages, now))\n",
    ),
    Breakage(
        "a batch is told as shipped before the stream has it", "gateway/shipping.py",
        "        try:\n            if content.usage:\n",
        "        self._journal.shipped(batch)\n        try:\n            if content.usage:\n",
    ),
    Breakage(
        "the serving site gives a request an id of its own", "gateway/forward.py",
        "        self.class_ = hop.entrant.class_\n",
        "        self.class_ = hop.entrant.class_\n"
        "        self.request_id = context.new_request_id(context.clock.wall_ns())\n",
    ),
    Breakage(
        "what was open when a gateway died is not told", "gateway/journal.py",
        "        for record in found.orphans:\n", "        for record in found.orphans[:0]:\n",
    ),
    Breakage(
        "records go to the disk after the answer", "gateway/process.py",
        "Outbox(journal.flush,", "Outbox(lambda: None,",
    ),
    Breakage(
        "the worse of two reports stands", "core/metering/merge.py",
        "return one if _order(one) >= _order(other) else other",
        "return one if _order(one) <= _order(other) else other",
    ),
    Breakage(
        "a policy admits every site", "core/residency/rule.py",
        "    if axis == UNBOUND:\n        return ADMITTED\n    meaning",
        "    if axis != ():\n        return ADMITTED\n    meaning",
    ),
    Breakage(
        "a request that leaves a queue keeps its slot", "gateway/tries.py",
        "            turn.leave(tokens, now_ns)\n", "",
    ),
    Breakage(
        "a request that its client left is not over", "gateway/forward.py",
        "        self._end(\n"
        "            \"client_gone\", status=200 if sent else CLIENT_GONE_STATUS, reason=None, "
        "tokens=tokens\n"
        "        )\n",
        "        self.context.log.flush()\n",
    ),
    Breakage(
        "revoked keys go on working", "gateway/access.py",
        "            self._by_hash.pop(key.secret_sha256, None)\n", "            pass\n",
    ),
    Breakage(
        "one token more is booked than the engine says", "core/metering/tokens.py",
        "            output=max(final.output, floor),\n",
        "            output=max(final.output, floor) + 1,\n",
    ),
    Breakage(
        "a replaced report stays in the sums of its hour", "adapters/postgres/book.py",
        "    if is_usage:\n        move_out(connection, bounds)\n", "",
    ),
    Breakage(
        "what was lent is used at home, too", "core/admission/loans.py",
        "        return self.tok_s - sum(_most(lent) for lent in self._lent.values())\n",
        "        return self.tok_s\n",
    ),
    Breakage(
        "an agent does not look whether its engine lives", "agent/supervise.py",
        "        return life.Event(kind=\"failed\", detail=reason[:MOST_DETAIL])\n\n"
        "    async def _until_silent",
        "        return await asyncio.Event().wait()\n\n    async def _until_silent",
    ),
)


def seeds_until_found(breakage: Breakage, most: int) -> tuple[int | None, str]:
    """The first of `most` seeds that is wrong, and what its judges say; None: none is."""
    with tempfile.TemporaryDirectory(prefix="isochrone-broken-") as name:
        source = Path(name) / "src"
        shutil.copytree(
            ROOT / "src", source, ignore=shutil.ignore_patterns("_compiled", "__pycache__")
        )
        path = source / "isochrone" / breakage.at
        text = path.read_text(encoding="utf-8")
        assert text.count(breakage.old) == 1, f"{breakage.name}: its place is not there once"
        path.write_text(text.replace(breakage.old, breakage.new), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", PLAY, str(most)], env={"PYTHONPATH": str(source)}, cwd=name,
            capture_output=True, text=True, check=True,
        )
        first, said = done.stdout.splitlines()[:2]
        return (None if int(first) < 0 else int(first)), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=400, help="at most, of each breakage")
    parser.add_argument("--dry", action="store_true", help="append nothing to results.jsonl")
    options = parser.parse_args()
    found = []
    for breakage in BREAKAGES:
        began_s = time.monotonic()
        seed, said = seeds_until_found(breakage, options.seeds)
        found.append({"breakage": breakage.name, "seed": seed, "said": said[:200]})
        took_s = time.monotonic() - began_s
        print(f"{took_s:5.0f} s  {breakage.name}: seed {seed}: {said}", flush=True)
    if not options.dry:
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT),
            "machine": facts(), "seeds": options.seeds, "found": found,
        }
        with (HERE / "results.jsonl").open("a", encoding="utf-8") as results:
            results.write(json.dumps(line) + "\n")
    if any(each["seed"] is None for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
