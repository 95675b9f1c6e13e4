"""Declares every metric of a gateway: name, kind, unit, labels, and what it means.

`measured.py` counts what happens, `gauges.py` reads how things stand; docs/observability.md lists
what is declared here. Labels take few values: endpoints, classes and outcomes are fixed, models and
sites come from the view. Nothing is labelled by tenant or by anything that a client makes up.
"""

from isochrone.ports.telemetry import Metric

_P = "isochrone_gateway_"

# From a quarter of a millisecond, what a gateway adds, to minutes, what a long answer takes.
QUICK_S = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)
LATENCY_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0,
)
RATIO = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)

# -- requests of known keys, counted at their end --------------------------------------------------

# `source`: "client" where this gateway is the ingress, "peer" for what another gateway sent here.
_SHAPE = ("endpoint", "model", "class", "source")

REQUESTS = Metric(
    name=_P + "requests_total", kind="counter", unit="requests",
    labels=(*_SHAPE, "outcome", "status", "site"),
    help="Requests that ended, with the HTTP status sent and the site that served them.",
)
TOKENS = Metric(
    name=_P + "tokens_total", kind="counter", unit="tokens",
    labels=("model", "class", "source", "kind"),
    help="Tokens metered, in disjoint kinds: input_uncached, input_cached, output.",
)
TOKEN_REPORTS = Metric(
    name=_P + "token_reports_total", kind="counter", unit="reports", labels=("source", "counted"),
    help="Requests by how their tokens were counted: engine, running, counted, none.",
)
REFUSALS = Metric(
    name=_P + "refusals_total", kind="counter", unit="refusals", labels=("source", "reason"),
    help="Requests of known keys that were refused, by the reason that the client was told.",
)
FAILURES = Metric(
    name=_P + "failures_total", kind="counter", unit="failures",
    labels=("source", "outcome", "reason"),
    help="Requests that ended neither well nor by refusal or by their client, by reason.",
)
ANSWERS = Metric(
    name=_P + "answers_total", kind="counter", unit="answers", labels=("status", "reason"),
    help="Answers to anything else: models, unknown paths and keys, malformed requests.",
)
DURATION = Metric(
    name=_P + "request_duration_seconds", kind="histogram", unit="seconds", labels=_SHAPE,
    buckets=LATENCY_S,
    help="From the first byte of a request to the last of its answer.",
)
FIRST_BYTE = Metric(
    name=_P + "time_to_first_token_seconds", kind="histogram", unit="seconds", labels=_SHAPE,
    buckets=LATENCY_S,
    help="Streams: from the first byte of a request to the first of its answer.",
)
ADDED = Metric(
    name=_P + "added_latency_seconds", kind="histogram", unit="seconds", labels=("source",),
    buckets=QUICK_S,
    help="From a request being there to its being sent on: choice, journal, connecting, retries.",
)
RECEIVING = Metric(
    name=_P + "receive_duration_seconds", kind="histogram", unit="seconds", labels=("source",),
    buckets=QUICK_S,
    help="From the first byte of a request to its last; long where clients are slow.",
)
PREDICTION_RATIO = Metric(
    name=_P + "time_to_first_token_prediction_ratio", kind="histogram", unit="ratio",
    labels=("model",), buckets=RATIO,
    help="Streams, at each site that answered at its first try: actual over predicted time to first"
    " token; 1 is right.",
)
CALIBRATION_ERROR = Metric(
    name=_P + "calibration_error_ratio", kind="gauge", unit="ratio", labels=("model",),
    help="Typical factor beyond 1 by which predicted times to the first token missed lately.",
)
CALIBRATION_BIAS = Metric(
    name=_P + "calibration_bias_ratio", kind="gauge", unit="ratio", labels=("model",),
    help="The same with its side: above 0 answers came later than predicted.",
)
PREFIX_HITS = Metric(
    name=_P + "prefix_hits_total", kind="counter", unit="hits", labels=("model", "source"),
    help="Requests of whose prompt the engine had a part cached.",
)
PREFIX_TOKENS = Metric(
    name=_P + "prefix_tokens_total", kind="counter", unit="tokens", labels=("model", "said"),
    help="Of prompts longer than a block: tokens believed cached as they were sent, and reported.",
)
SESSION_REQUESTS = Metric(
    name=_P + "session_requests_total", kind="counter", unit="requests", labels=("home",),
    help="Requests of sessions, by their home: new, kept, moved, gone, overflow.",
)

# -- attempts and continuations --------------------------------------------------------------------

ATTEMPTS = Metric(
    name=_P + "attempts_total", kind="counter", unit="attempts", labels=("source",),
    help="Times that a request was sent on, first and further ones.",
)
FAILED_ATTEMPTS = Metric(
    name=_P + "failed_attempts_total", kind="counter", unit="attempts", labels=("rule",),
    help="Sites that a request had to leave, by the rule or failure that ended the try.",
)
RETRIES = Metric(
    name=_P + "retries_total", kind="counter", unit="retries", labels=("granted",),
    help="Retries that were asked of the retry budget, by whether it had one.",
)
RETRY_BUDGET = Metric(
    name=_P + "retry_budget_retries", kind="gauge", unit="retries",
    help="Retries that the budget would grant now.",
)
CONTINUATIONS = Metric(
    name=_P + "continuations_total", kind="counter", unit="continuations",
    labels=("source", "method", "outcome"),
    help="Streams that went on elsewhere, by how, and by how they ended; lost: once more.",
)
CONTINUATION_GAP = Metric(
    name=_P + "continuation_gap_seconds", kind="histogram", unit="seconds", labels=("method",),
    buckets=LATENCY_S,
    help="From the loss of a stream's engine to the first bytes of the one that went on.",
)
ABANDONED = Metric(
    name=_P + "abandoned_streams_total", kind="counter", unit="streams", labels=("source", "why"),
    help="Streams that lost their engine and could not go on, by why not.",
)

# -- what was sold, see docs/entitlements.md -------------------------------------------------------

ENTITLED_RATE = Metric(
    name=_P + "entitled_tokens_per_second", kind="gauge", unit="tokens_per_second",
    labels=("model", "kind"),
    help="Of what was sold: usable here, of that borrowed, lent to others; weighted tokens.",
)
ENTITLED_WANTED = Metric(
    name=_P + "entitled_wanted_tokens_per_second", kind="gauge", unit="tokens_per_second",
    labels=("model",),
    help="What is asked of what was sold where this gateway pays, given or not; over about 5 s.",
)
ALLOWANCE = Metric(
    name=_P + "allowance_tokens", kind="gauge", unit="tokens", labels=("model",),
    help="Of what was sold: what could be spent here at once; weighted tokens.",
)
ENTITLED_TOKENS = Metric(
    name=_P + "entitled_used_tokens_total", kind="counter", unit="tokens", labels=("model",),
    help="Weighted tokens that requests used of what was sold.",
)
CLAIMS = Metric(
    name=_P + "entitled_requests_total", kind="counter", unit="requests",
    labels=("model", "outcome"),
    help="Requests for which something is sold: honoured, or refused it and served on demand.",
)
PAYMENTS = Metric(
    name=_P + "entitled_payments_total", kind="counter", unit="payments", labels=("outcome",),
    help="Payments that cashiers were asked for: asked, and of these paid, refused, late, silent,"
    " given_up.",
)
LETTERS = Metric(
    name=_P + "commitment_payloads_total", kind="counter", unit="payloads", labels=("outcome",),
    help="Letters to and from the gateways of other sites, by payload: sent, lost, heard.",
)

# -- limits that hold over sites, see docs/limits.md -----------------------------------------------

# `of`: whose they are, "key", "project" or "organisation". `state`: "usable" is what may be used
# here in all, by grant or without one; of that "used" and "held"; "waiting" is what is lacking.
_STANDS = ("of", "state")

LIMITS = Metric(
    name=_P + "limits", kind="gauge", unit="limits", labels=("kind", "of"),
    help="Limits that requests of this gateway have counted in.",
)
LIMITED_REQUESTS = Metric(
    name=_P + "limited_requests", kind="gauge", unit="requests", labels=_STANDS,
    help="Of limits of requests a minute: usable here, used, waiting; over all such limits.",
)
LIMITED_TOKENS = Metric(
    name=_P + "limited_tokens", kind="gauge", unit="tokens", labels=_STANDS,
    help="Of limits of tokens a minute: usable here, used, held, waiting; over all such limits.",
)
LIMITED_STREAMS = Metric(
    name=_P + "limited_streams", kind="gauge", unit="streams", labels=_STANDS,
    help="Of limits of requests at a time: usable here, held, waiting; over all such limits.",
)
LIMITED_MONEY = Metric(
    name=_P + "limited_currency_units", kind="gauge", unit="currency_units",
    labels=("currency", *_STANDS),
    help="Of budgets: usable here, used since their mark, held, waiting; over all budgets.",
)
LIMIT_GRANTS = Metric(
    name=_P + "limit_grants_total", kind="counter", unit="grants", labels=("kind", "outcome"),
    help="Grants of limits' homes that came here: taken, or left because more was used already.",
)
LIMIT_REFUSALS = Metric(
    name=_P + "limit_refusals_total", kind="counter", unit="refusals",
    labels=("kind", "of", "why"),
    help="Requests refused by limits: used_up, too_large for the limit, unreachable custodians.",
)
KEPT_LIMITS = Metric(
    name=_P + "kept_limits", kind="gauge", unit="limits", labels=("kind", "role"),
    help="Limits in use that are kept here: decides about them, or copies who does.",
)

# -- the queues of the engines that are asked from here, see docs/admission.md ---------------------

QUEUE_RUNNING = Metric(
    name=_P + "queue_running_requests", kind="gauge", unit="requests", labels=("model", "class"),
    help="Requests that have a slot of the engines that this gateway asks itself.",
)
QUEUE_WAITING = Metric(
    name=_P + "queue_waiting_requests", kind="gauge", unit="requests", labels=("model", "class"),
    help="Requests that wait here for a slot.",
)
QUEUE_SLOTS = Metric(
    name=_P + "queue_slots", kind="gauge", unit="slots", labels=("model",),
    help="Slots that this gateway counts on; absent where nobody says how many there are.",
)
QUEUE_FLOOR = Metric(
    name=_P + "queue_floor_slots", kind="gauge", unit="slots", labels=("model", "class"),
    help="Slots that a class has whenever it asks, by policy or because they were sold.",
)
QUEUE_REFUSALS = Metric(
    name=_P + "queue_refusals_total", kind="counter", unit="refusals", labels=("class", "reason"),
    help="Requests that the queues did not take, or turned away while they waited.",
)
QUEUE_STOPS = Metric(
    name=_P + "queue_stops_total", kind="counter", unit="stops", labels=("class",),
    help="Requests that were told to give their slot back to the floor of a firmer class.",
)
QUEUE_WAIT = Metric(
    name=_P + "queue_wait_seconds", kind="histogram", unit="seconds", labels=("class",),
    buckets=LATENCY_S,
    help="How long requests waited that could not start at once, to whatever end.",
)
RECLAIM = Metric(
    name=_P + "queue_reclaim_seconds", kind="histogram", unit="seconds", labels=("class",),
    buckets=LATENCY_S,
    help="How long a class that asked had less than its floor, at each start that was to end it.",
)

# -- what is open ----------------------------------------------------------------------------------

OPEN_REQUESTS = Metric(
    name=_P + "open_requests", kind="gauge", unit="requests", labels=("source",),
    help="Requests being received whole, waiting for an engine, or being answered.",
)
OPEN_STREAMS = Metric(
    name=_P + "open_streams", kind="gauge", unit="streams", labels=("source",),
    help="Requests of which the first bytes of a stream went out.",
)
CLIENT_CONNECTIONS = Metric(
    name=_P + "client_connections", kind="gauge", unit="connections",
    help="Connections of clients and peers, idle ones too.",
)
UPSTREAM_CONNECTIONS = Metric(
    name=_P + "upstream_connections", kind="gauge", unit="connections", labels=("state",),
    help="Connections to engines and peers: busy with a request, or idle.",
)
REPLICA_STATES = Metric(
    name=_P + "replicas", kind="gauge", unit="replicas", labels=("state",),
    help="Replicas that this gateway asks itself, by how far they are trusted.",
)
SITE_STATES = Metric(
    name=_P + "sites", kind="gauge", unit="sites", labels=("state",),
    help="Sites that serve something, by how far this gateway trusts them; of models the worst.",
)
EJECTIONS = Metric(
    name=_P + "ejections_total", kind="counter", unit="ejections", labels=("of",),
    help="Times that a replica, or a model at another site, was left out for what came of it.",
)
PROBES = Metric(
    name=_P + "site_probes_total", kind="counter", unit="probes", labels=("outcome",),
    help="Probes of the gateways of sites that are not trusted: answered, or failed.",
)

# -- journal, shipping, log, spans -----------------------------------------------------------------

JOURNAL_RESERVED = Metric(
    name=_P + "journal_reserved_bytes", kind="gauge", unit="bytes",
    help="Room in the journal that is kept for the ends of open requests.",
)
JOURNAL_FREE = Metric(
    name=_P + "journal_free_bytes", kind="gauge", unit="bytes",
    help="Room made ready in the journal for anything else; below 0 new work is refused.",
)
JOURNAL_BATCHES = Metric(
    name=_P + "journal_waiting_batches", kind="gauge", unit="batches",
    help="Batches of usage that are not yet in the durable stream.",
)
JOURNAL_HELD = Metric(
    name=_P + "journal_held_records", kind="gauge", unit="records",
    help="Records of ended requests that the disk did not take; above 0 new work is refused.",
)
JOURNAL_SYNC = Metric(
    name=_P + "journal_sync_seconds", kind="gauge", unit="seconds",
    help="How long the present sync has taken, of which there are ten a second; 0 between them.",
)
SHIPPING = Metric(
    name=_P + "shipping_lag_seconds", kind="gauge", unit="seconds",
    help="How long shipping usage has failed without a success; 0 when it works.",
)
SPANS = Metric(
    name=_P + "spans_total", kind="counter", unit="spans", labels=("outcome",),
    help="Spans: exported, dropped for want of room, failed at the collector.",
)

# -- what is known of the cloud --------------------------------------------------------------------

VIEW_AGE = Metric(
    name=_P + "view_age_seconds", kind="gauge", unit="seconds",
    help="Time since the bus last proved the view current; +Inf when that is unknown.",
)
VIEW_ENTRIES = Metric(
    name=_P + "view_entries", kind="gauge", unit="entries", labels=("kind",),
    help="What the view holds: sites, models, policies, keys.",
)
DIGESTS = Metric(
    name=_P + "digest_sites", kind="gauge", unit="sites", labels=("state",),
    help="Sites of the view by what is heard of their load: fresh, stale, unreachable, unheard.",
)
DIGEST_AGE = Metric(
    name=_P + "oldest_digest_age_seconds", kind="gauge", unit="seconds",
    help="Age of the oldest digest that counts.",
)
PREFIXES = Metric(
    name=_P + "prefix_blocks", kind="gauge", unit="blocks",
    help="Beginnings of prompts whose site is remembered.",
)
SESSIONS = Metric(
    name=_P + "sessions", kind="gauge", unit="sessions",
    help="Sessions whose home is remembered.",
)
CLOCK_OFFSET = Metric(
    name=_P + "clock_offset_seconds", kind="gauge", unit="seconds",
    help="How far the own clock is ahead of the other sites'; absent while unknown.",
)

# -- the process -----------------------------------------------------------------------------------

READY = Metric(
    name=_P + "ready", kind="gauge", unit="",
    help="1 when there is a view, sites were heard, and usage can be recorded.",
)
DRAINING = Metric(
    name=_P + "draining", kind="gauge", unit="", help="1 when the gateway is stopping.",
)
INFO = Metric(
    name=_P + "info", kind="gauge", unit="", labels=("version", "site", "country", "worker"),
    help="Always 1; says which gateway this is.",
)
LOOP_LAG = Metric(
    name=_P + "loop_lag_seconds", kind="histogram", unit="seconds", buckets=QUICK_S,
    help="How late a timer of the event loop is, and so everything else; up to 1 ms is rounding.",
)
COLLECTION = Metric(
    name=_P + "collection_pause_seconds", kind="histogram", unit="seconds",
    labels=("generation",), buckets=QUICK_S,
    help="Pauses by Python's cyclic garbage collector.",
)
CPU = Metric(
    name="process_cpu_seconds_total", kind="counter", unit="seconds",
    help="CPU time of this process, user and system.",
)
MEMORY = Metric(
    name="process_resident_memory_bytes", kind="gauge", unit="bytes",
    help="Resident memory of this process.",
)
OPEN_FDS = Metric(
    name="process_open_fds", kind="gauge", unit="fds", help="File descriptors in use.",
)
MOST_FDS = Metric(
    name="process_max_fds", kind="gauge", unit="fds", help="File descriptors allowed.",
)
STARTED = Metric(
    name="process_start_time_seconds", kind="gauge", unit="seconds",
    help="When the process started, in seconds since 1970.",
)

METRICS: tuple[Metric, ...] = (
    REQUESTS, TOKENS, TOKEN_REPORTS, REFUSALS, FAILURES, ANSWERS, DURATION, FIRST_BYTE, ADDED,
    RECEIVING, PREDICTION_RATIO, CALIBRATION_ERROR, CALIBRATION_BIAS, PREFIX_HITS, PREFIX_TOKENS,
    SESSION_REQUESTS,
    ATTEMPTS, FAILED_ATTEMPTS, RETRIES, RETRY_BUDGET,
    CONTINUATIONS, CONTINUATION_GAP, ABANDONED,
    ENTITLED_RATE, ENTITLED_WANTED, ALLOWANCE, ENTITLED_TOKENS, CLAIMS, PAYMENTS, LETTERS,
    LIMITS, LIMITED_REQUESTS, LIMITED_TOKENS, LIMITED_STREAMS, LIMITED_MONEY, LIMIT_GRANTS,
    LIMIT_REFUSALS, KEPT_LIMITS,
    QUEUE_RUNNING, QUEUE_WAITING, QUEUE_SLOTS, QUEUE_FLOOR, QUEUE_REFUSALS, QUEUE_STOPS,
    QUEUE_WAIT, RECLAIM,
    OPEN_REQUESTS, OPEN_STREAMS, CLIENT_CONNECTIONS, UPSTREAM_CONNECTIONS,
    REPLICA_STATES, SITE_STATES, EJECTIONS, PROBES,
    JOURNAL_RESERVED, JOURNAL_FREE, JOURNAL_BATCHES, JOURNAL_HELD, JOURNAL_SYNC, SHIPPING, SPANS,
    VIEW_AGE, VIEW_ENTRIES, DIGESTS, DIGEST_AGE, PREFIXES, SESSIONS, CLOCK_OFFSET,
    READY, DRAINING, INFO, LOOP_LAG, COLLECTION, CPU, MEMORY, OPEN_FDS, MOST_FDS, STARTED,
)
