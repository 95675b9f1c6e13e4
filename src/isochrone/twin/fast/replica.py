"""One engine in virtual time: a queue, prompts that are read in chunks, streams that share steps.

Between two events nothing changes but time, and all streams get tokens at one rate. So progress is
one number, the tokens that a stream has got since the start of the run; a stream ends when that
number reaches what it was when it began and its own tokens. An event costs a search among the ends
of the streams, whatever the number of tokens. The rates of a step hold until the next event, with
the context of the moment; seconds and tokens are floats, and the same calls give the same results.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from math import inf

from isochrone.core.estimate.batching import Physics
from isochrone.twin.fast.block_cache import BlockCache

BLOCK_TOKENS = 256
NOTHING = 1e-9  # of a token: less than this is left of it by rounding


class Job:
    """One request at one replica. Instants are seconds of virtual time, -1 before they come.
    `owner` is whoever offered it."""

    __slots__ = (
        "arrived_s", "blocks", "cached_tokens", "ended_s", "first_s", "ident", "left_tokens",
        "output_tokens", "owner", "prompt_tokens", "read_share", "started_s",
    )

    def __init__(
        self, ident: int, prompt_tokens: int, output_tokens: int, blocks: Sequence[int] = (),
        owner: object = None,
    ) -> None:
        self.owner = owner
        self.ident = ident
        self.prompt_tokens = prompt_tokens
        self.output_tokens = max(output_tokens, 1)
        self.blocks = blocks
        self.cached_tokens = 0
        self.left_tokens = 0.0  # of the prompt, to be read: see `Physics.read_tokens`
        self.read_share = 1.0   # tokens of the prompt for each of those
        self.arrived_s = self.started_s = self.first_s = self.ended_s = -1.0

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


class SimulatedReplica:
    """Call `offer` as requests come and `advance` at `next_s`; both with instants that never fall.

    A request is let in when a slot and KV memory for its prompt and answer are free, in the order
    of arrival; prompts are then read one after the other.
    """

    __slots__ = (
        "_context", "_decode_rate", "_done", "_end_s", "_ends", "_kv_used", "_next_end", "_now_s",
        "_prefill_rate",
        "_read_s", "_reading", "_running", "_waiting", "busy_s", "cache", "cached_tokens",
        "ended", "next_s", "physics", "read_tokens", "reading_s", "stream_s", "stream_tokens",
        "written_tokens",
    )

    def __init__(self, physics: Physics, *, cache_tokens: int | None = None) -> None:
        held = physics.kv_tokens if cache_tokens is None else cache_tokens
        self.physics = physics
        self.cache = BlockCache(held // BLOCK_TOKENS)
        self.next_s = inf
        self.busy_s = 0.0
        self.written_tokens = 0.0  # of all streams together
        self.read_tokens = 0.0     # of prompts, beside the cached ones
        self.cached_tokens = 0     # of prompts, that were not read anew
        self.ended = 0             # requests
        self.reading_s = 0.0       # in which a prompt was read
        self.stream_s = 0.0        # in which there were streams
        self.stream_tokens = 0.0   # that one stream would have got in all of that
        self._now_s = 0.0
        self._waiting: deque[Job] = deque()
        self._reading: deque[Job] = deque()
        # The streams by the end of each, which is what `_done` will be then, and by number: the
        # next one is last. The ends are negated, in an array of their own, as a search has them.
        self._running: list[Job] = []
        self._ends = array("d")
        self._next_end = inf
        self._done = 0.0  # tokens that a stream has got that was there from the start
        self._context = 0.0
        self._kv_used = 0
        self._decode_rate = 0.0   # tokens/s of each stream
        self._prefill_rate = 0.0  # tokens/s of the prompt that is being read
        self._read_s = inf  # when that prompt will have been read
        self._end_s = inf   # when the next stream will have ended

    @property
    def open_jobs(self) -> int:
        return len(self._waiting) + len(self._reading) + len(self._running)

    @property
    def streams(self) -> int:
        return len(self._running)

    @property
    def reading(self) -> int:
        """Requests that are let in and whose prompts are not read yet."""
        return len(self._reading)

    @property
    def unread_tokens(self) -> float:
        """Of the prompts of those."""
        return sum([max(job.left_tokens, 0.0) * job.read_share for job in self._reading])

    @property
    def kv_used(self) -> int:
        """Tokens of KV memory that are set aside for what was let in."""
        return self._kv_used

    @property
    def waiting(self) -> int:
        """Requests that are not let in yet."""
        return len(self._waiting)

    def offer(self, job: Job, now_s: float) -> None:
        """A request arrives."""
        self._pass(now_s)
        job.arrived_s = now_s
        if job.kv_tokens > self.physics.kv_tokens:
            raise ValueError(f"request {job.ident} never fits: {job.kv_tokens} tokens")
        self._waiting.append(job)
        if len(self._waiting) == 1:
            self._let_in(now_s)
        self._plan()

    def advance(self, now_s: float) -> list[Job]:
        """Let time pass; the requests that had their first token or their last by now, in order.
        Of one that had both, `ended_s` says so."""
        self._pass(now_s)
        told: list[Job] = []
        reading, running = self._reading, self._running
        # Whatever the floats say: what is due has come, or time would stand still.
        if reading and now_s >= self._read_s:
            reading[0].left_tokens = 0.0
        if running and now_s >= self._end_s:
            self._done = max(self._done, self._next_end)
        while reading and reading[0].left_tokens <= NOTHING:
            job = reading.popleft()
            job.first_s = now_s
            self._context += job.prompt_tokens + 1
            self.written_tokens += 1
            told.append(job)
            if job.output_tokens == 1:
                self._end(job, now_s)
            else:
                self._run(job)
        while running and self._next_end <= self._done + NOTHING:
            job = running.pop()
            self._ends.pop()
            self._next_end = -self._ends[-1] if running else inf
            self._end(job, now_s)
            told.append(job)
        if self._waiting:
            self._let_in(now_s)
        self._plan()
        return told

    def pass_to(self, now_s: float) -> None:
        """Bring the counters up to now, which is not after `next_s`."""
        self._pass(now_s)
        self._plan()

    # -- for who may know everything -------------------------------------------------------------

    def begins_in_s(self, kv_tokens: int, ahead: Sequence[Job], now_s: float) -> float:
        """For how long a request of so many tokens that comes now would wait behind all that is
        here and `ahead`, at the rates of now: for the prompts before it, and for a slot and memory
        from what ends soonest. A guess of 5 s stands for what not even that would free."""
        physics, running = self.physics, self._running
        step_s = physics.mixed_step_s(len(running), self._context)
        spent_s = max(now_s - self._now_s, 0.0)
        read = spent_s * self._prefill_rate if self._reading else 0.0
        unread = max(sum([max(job.left_tokens, 0.0) for job in self._reading]) - read, 0.0)
        queued = [*self._waiting, *ahead]
        unread += sum([job.prompt_tokens for job in queued])
        wait_s = unread * step_s / physics.chunk_tokens
        jobs = self.open_jobs + len(ahead) + 1 - physics.slots
        memory = self._kv_used + sum([job.kv_tokens for job in queued]) + kv_tokens
        memory -= physics.kv_tokens
        free_s = 0.0
        for job, end in zip(reversed(running), reversed(self._ends), strict=True):
            if jobs <= 0 and memory <= 0:
                break
            jobs, memory = jobs - 1, memory - job.kv_tokens
            free_s = (-end - self._done) * step_s - spent_s
        if jobs > 0 or memory > 0:
            free_s += 5.0
        return max(wait_s, free_s)

    def reading_takes_s(self, prompt_tokens: int, blocks: Sequence[int]) -> float:
        """How long the prompt would take beside the streams of now, less what is held of it."""
        cached = min(self.cache.leading(blocks) * BLOCK_TOKENS, prompt_tokens - 1) if blocks else 0
        step_s = self.physics.mixed_step_s(len(self._running), self._context)
        return self.physics.read_tokens(prompt_tokens, cached) * step_s / self.physics.chunk_tokens

    def fail(self) -> list[Job]:
        """The replica dies: what was open, in the order of arrival. Its cache is gone."""
        lost = [*self._running, *self._reading, *self._waiting]
        self._running.clear()
        self._ends, self._next_end = array("d"), inf
        self._reading.clear()
        self._waiting.clear()
        self.cache.clear()
        self._context, self._kv_used = 0.0, 0
        self._plan()
        return sorted(lost, key=lambda job: (job.arrived_s, job.ident))

    # -- what happens between events -------------------------------------------------------------

    def _pass(self, now_s: float) -> None:
        spent_s = now_s - self._now_s
        self._now_s = now_s
        if spent_s <= 0:
            return
        streams = len(self._running)
        if streams:
            got = spent_s * self._decode_rate
            self._done += got
            self._context += got * streams
            self.written_tokens += got * streams
            self.stream_s += spent_s
            self.stream_tokens += got
        if self._reading:
            read = spent_s * self._prefill_rate
            job = self._reading[0]
            job.left_tokens -= read
            self.read_tokens += read * job.read_share
            self.reading_s += spent_s
        if streams or self._reading:
            self.busy_s += spent_s

    def _let_in(self, now_s: float) -> None:
        physics, waiting = self.physics, self._waiting
        while waiting:
            job = waiting[0]
            taken = len(self._reading) + len(self._running)
            if taken >= physics.slots or self._kv_used + job.kv_tokens > physics.kv_tokens:
                return
            waiting.popleft()
            self._kv_used += job.kv_tokens
            job.started_s = now_s
            if job.blocks:
                cached = self.cache.use(job.blocks) * BLOCK_TOKENS
                job.cached_tokens = min(cached, job.prompt_tokens - 1)  # the last one is read anew
                self.cached_tokens += job.cached_tokens
            job.left_tokens = physics.read_tokens(job.prompt_tokens, job.cached_tokens)
            job.read_share = (job.prompt_tokens - job.cached_tokens) / job.left_tokens
            self._reading.append(job)

    def _run(self, job: Job) -> None:
        """It has its first token, and becomes one of the streams."""
        running, ends = self._running, self._ends
        end = self._done + job.output_tokens - 1
        at = bisect_left(ends, -end)
        while at < len(running) and ends[at] == -end and running[at].ident > job.ident:
            at += 1
        running.insert(at, job)
        ends.insert(at, -end)
        self._next_end = min(self._next_end, end)

    def _end(self, job: Job, now_s: float) -> None:
        job.ended_s = now_s
        self.ended += 1
        self._kv_used -= job.kv_tokens
        self._context -= job.kv_tokens

    def _plan(self) -> None:
        """Rates from now on, and when the next of the requests has something to tell."""
        physics, streams = self.physics, len(self._running)
        self._read_s = self._end_s = inf
        if self._reading:
            step_s = physics.mixed_step_s(streams, self._context)
            self._prefill_rate = physics.chunk_tokens / step_s
            self._decode_rate = 1.0 / step_s
            left = max(self._reading[0].left_tokens, 0.0)
            self._read_s = self._now_s + left / self._prefill_rate
        elif streams:
            self._decode_rate = 1.0 / physics.decode_step_s(streams, self._context)
        if streams:
            left = max(self._next_end - self._done, 0.0)
            self._end_s = self._now_s + left / self._decode_rate
        self.next_s = min(self._read_s, self._end_s)
