"""Kills the serving site under 200 streams, appends what the clients saw as JSON lines. See README.

Run from the project's folder: python -m benchmarks.streams.run
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gateway.machine import ROOT, commit, facts

from tests.rig.stream_kills import (
    INGRESS,
    LEAST_TEXTS,
    SERVING,
    Case,
    Rig,
    Round,
    Sent,
    a_rig,
    booked,
    faults,
    kill_in_the_middle,
    misbooked,
    undisturbed,
    wait_until_served,
)

HERE = Path(__file__).resolve().parent
STREAMS, BOUND = 206, 10  # some end before the kill, and 200 are to be cut
MAX_TOKENS = 120
COLUMNS = (
    "sent", "cut", "errors", "equal", "near ties", "misbooked", "told why", "pause p50",
    "pause worst",
)


def measure_site(rig: Rig, cases: Sequence[Case]) -> dict[str, Any]:
    """The whole serving site dies; streams of the last keys may go nowhere else."""
    entries = [rig.cloud.endpoint(INGRESS)]
    played = _play(rig, "site", cases, BOUND, entries, rig.serving.kill)
    before = booked(rig.cloud, played.sent)
    rig.serving.start(replicas=2)
    wait_until_served(rig)
    rows = booked(rig.cloud, played.sent)
    told = [each for each in played.bound if (each.stream.error or {}).get("code")]
    return {
        **judged(played, played.free, rows, moved=True),
        "bound": len(played.bound),
        "bound_told_why": len(told),
        "bound_reasons": dict(Counter((each.stream.error or {}).get("message") for each in told)),
        "rows_changed_by_evidence": sum(rows[own_id] != before[own_id] for own_id in rows),
    }


def measure_engine(rig: Rig, cases: Sequence[Case]) -> dict[str, Any]:
    """One of the site's two engines dies; half of the streams came in at the site itself."""
    first = sorted(rig.serving.engines().items())[0][1]
    entries = [rig.cloud.endpoint(INGRESS), rig.serving.endpoint]
    played = _play(rig, "engine", cases, BOUND, entries, lambda: os.kill(first, signal.SIGKILL))
    rows = booked(rig.cloud, played.sent)
    return judged(played, played.sent, rows, moved=False)


def _play(
    rig: Rig, name: str, cases: Sequence[Case], bound: int, entries: Sequence[str],
    kill: Callable[[], object],
) -> Round:
    return asyncio.run(
        kill_in_the_middle(rig, name, cases, bound=bound, entries=entries, kill=kill)
    )


def judged(
    played: Round, sent: Sequence[Sent], rows: Mapping[str, dict[str, Any]], *, moved: bool
) -> dict[str, Any]:
    """What became of the streams that had somewhere to go on. Pauses are of those that were cut."""
    wrong = {each.own_id: found for each in sent if (found := faults(each, moved=moved))}
    good = [each for each in sent if each.own_id not in wrong]
    cut = [
        each for each in sent
        if each.stream.headers.get("x-isochrone-site") == SERVING
        and each.stream.texts_at_kill >= LEAST_TEXTS
    ]
    ties = [
        {
            "prompt": str(each.case.ask.body.get("prompt") or each.case.ask.body["messages"]),
            "undisturbed": each.case.undisturbed.text, "continued": each.stream.received().text,
        }
        for each in good if each.stream.received().text != each.case.undisturbed.text
    ]
    books = {
        each.own_id: found for each in good if (found := misbooked(each, rows[each.own_id]))
    }
    pauses_ms = sorted(1000 * each.stream.pause_s(played.killed_at) for each in cut)
    texts = [each.stream.texts_at_kill for each in cut]
    return {
        "sent": len(sent),
        "cut": len(cut),
        "cut_that_went_on": sum(each.own_id not in wrong for each in cut),
        "errors": len(wrong),
        "errors_seen": dict(list(wrong.items())[:10]),
        "equal": len(good) - len(ties),
        "near_ties": ties,
        "misbooked": len(books),
        "books_seen": dict(list(books.items())[:10]),
        "texts_before_the_kill": {"least": min(texts, default=0), "most": max(texts, default=0)},
        "finished_by": dict(Counter(each.stream.received().finish.get(0) for each in good)),
        "tokens_booked": sum(rows[each.own_id]["output"] for each in good),
        "tokens_undisturbed": sum(each.case.usage["completion_tokens"] for each in good),
        "pause_ms": {
            "p50": round(statistics.median(pauses_ms), 1) if pauses_ms else None,
            "worst": round(pauses_ms[-1], 1) if pauses_ms else None,
        },
        "seconds": round(played.ended_at - played.began_at, 1),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results for people to read."""
    lines = [" | ".join(("killed", *COLUMNS)), " | ".join(["---"] * (1 + len(COLUMNS)))]
    for name, found in results.items():
        told = f"{found['bound_told_why']} of {found['bound']}" if "bound" in found else "-"
        pause = found["pause_ms"]
        cells = (
            name, found["sent"], found["cut"], found["errors"], found["equal"],
            len(found["near_ties"]), found["misbooked"], told, f"{pause['p50']} ms",
            f"{pause['worst']} ms",
        )
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


def stop_asked(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--streams", type=int, default=STREAMS, help="of keys for all sites")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop_asked)  # so that the cloud is stopped too
    source = {**commit(ROOT / "src"), "machine": facts()}
    count, results = options.streams + BOUND, {}
    with tempfile.TemporaryDirectory(prefix="isochrone-streams-") as name:
        folder = Path(name)
        cases = asyncio.run(undisturbed(count, max_tokens=MAX_TOKENS, logs=folder / "logs"))
        with a_rig(folder, streams=count) as rig:
            for what, measure in (("site", measure_site), ("engine", measure_engine)):
                results[what] = measure(rig, cases)
                line = {
                    "measurement": f"kill_{what}",
                    "at": datetime.now(UTC).isoformat(timespec="seconds"), **source,
                    "result": results[what],
                }
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
