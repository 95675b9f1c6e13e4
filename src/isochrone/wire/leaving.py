"""Which fields of every message and of every stored record may leave a residency set, and why.

A message or table that is not listed here with each of its fields fails the tests, so nobody adds
one without this question. Prompts and answers are in none of them: they travel as the bodies of
requests and answers, to the engine that serves and back, and are written nowhere. Prefix hashes
are kept in memory where the axis of caches allows; what a stream has delivered, until it ends.

    account     ids, counts, times, places and verdicts, by which use is billed and explained:
                may leave
    fleet       how the cloud is built and how loaded it is: may leave; nothing of a customer's
    credential  keys, hashes and signatures: may leave to whom the protocol names
    personal    who a member of an organisation is: stays with control, and can be erased there
    reference   text that the client wrote for its own use: may leave where the axis of logs is
                unbound, else it is left out
"""

from collections.abc import Mapping
from typing import Literal

Leaves = Literal["account", "fleet", "credential", "reference", "personal"]


def _fields(
    *, account: str = "", fleet: str = "", credential: str = "", reference: str = "",
    personal: str = "",
) -> Mapping[str, Leaves]:
    """Field -> why it may leave; each argument is a list of names with spaces between them."""
    sides: tuple[tuple[Leaves, str], ...] = (
        ("account", account), ("fleet", fleet), ("credential", credential),
        ("reference", reference), ("personal", personal),
    )
    return {name: leaves for leaves, names in sides for name in names.split()}


def references_of(name: str) -> frozenset[str]:
    """The fields of a message or table that are left out where references may not leave."""
    listed = MESSAGES[name] if name in MESSAGES else TABLES[name]
    return frozenset(field for field, leaves in listed.items() if leaves == "reference")


_RUN = (
    "mix take trace options at source machine foreign_share site replicas slots threads"
    " context_tokens chunk_tokens rtt_ms"
)

_DECISION = (
    "ground chosen costs_ms queues_ms prefill_ms decode_ms digest_age_ms predicted_ttft_ms"
    " actual_ttft_ms refused tried decodes_ms bond queued_ms because body_bytes chosen_queue_ms"
    " eligible runner_up runner_up_ms wanted_class key_class unpaid_because since_ms foretold stops"
)

# By the name of the class.
MESSAGES: Mapping[str, Mapping[str, Leaves]] = {
    # wire/fleet.py
    "Signed": _fields(fleet="version serial body", credential="signature"),
    # wire/identity.py
    "JoinRequest": _fields(credential="token peer_key nats_key", fleet="host port public_url"),
    "JoinReply": _fields(
        fleet="site country nats_urls control_url",
        credential="nats_jwt control_key",
    ),
    "SiteIdentity": _fields(
        fleet="site country nats_urls control_url host port",
        credential="nats_jwt nats_seed peer_key peer_secret control_key",
    ),
    # wire/peer.py
    "HopHead": _fields(
        account="method path ingress serving key_id class_ residency",
    ),
    # core/world/entitlement.py, and what sites tell one another about it (wire/commitments.py)
    "Entitlement": _fields(
        account=(
            "id org_id project_id model class_ tok_s residency starts_at ends_at slices"
        ),
    ),
    "Slice": _fields(account="site tok_s"),
    "Voters": _fields(fleet="sites former epoch"),
    "Ask": _fields(account="entitlement home borrower life number heard want_tok_s"),
    "Loan": _fields(
        account="entitlement home borrower life number tok_s for_ns spare_tok_s steward",
    ),
    "Pay": _fields(account="entitlement payer life number tokens counts"),
    "Paid": _fields(account="entitlement payer life number paid has_tok_s"),
    "Back": _fields(account="entitlement payer life number tokens honoured"),
    "Stand": _fields(fleet="home site life number epoch"),
    "Vote": _fields(fleet="home voter site life number steward"),
    "StandDown": _fields(fleet="home site life number"),
    "HandBack": _fields(fleet="home"),
    # wire/usage.py
    "BondRecord": _fields(account="cached_tokens prompt_tokens verdict home limit_ms"),
    "DecisionRecord": _fields(account=_DECISION),
    "UsageRecord": _fields(
        account=(
            "request_id org_id project_id key_id endpoint stream class_ model revision "
            "ingress_site ingress_country serving_site serving_country replica received_at "
            "finished_at chosen_ms sent_ms first_byte_ms total_ms input_uncached input_cached "
            "output token_source outcome status reason reporter attempts decision"
        ),
        reference="client_request_id",
    ),
    "Opening": _fields(
        account=(
            "request_id org_id project_id key_id endpoint stream class_ model revision "
            "ingress_site ingress_country serving_site serving_country replica received_at "
            "attempts"
        ),
        reference="client_request_id",
    ),
    "UsageBatch": _fields(account="version batch_id grounds events"),
    "RawBatch": _fields(account="version batch_id grounds events"),
    "_FirstBatch": _fields(account="events"),
    # core/world/digest.py
    "DeploymentLoad": _fields(
        fleet=(
            "model revision ready slots running waiting pending_prompt_tokens "
            "pending_output_tokens prefill_tok_s decode_tok_s endpoints arrived spare pushed "
            "free due_ms"
        ),
    ),
    # core/world/engine_load.py: what an agent makes its digest of
    "EngineLoad": _fields(
        fleet=(
            "running waiting prompt_tokens_total cached_tokens_total output_tokens_total "
            "prefill_tok_s decode_tok_s requests_total running_prompt_tokens "
            "running_output_tokens kept_tokens held_tokens"
        ),
    ),
    "ReplicaLoad": _fields(
        fleet=(
            "id model generation state pid running waiting restarts prompt_tokens_total "
            "cached_tokens_total output_tokens_total kept_tokens silent_s "
            "held_tokens host"
        ),
    ),
    "ProbedRtt": _fields(fleet="peer rtt_ms"),
    "HostLoad": _fields(fleet="host replicas_wanted"),
    "SiteDigest": _fields(fleet="site epoch sequence at loads replicas probes hosts"),
    # core/world/host.py
    "Gpu": _fields(fleet="kind memory_bytes"),
    "Host": _fields(fleet="name cores memory_bytes gpus machine"),
    # core/world/queued.py: within the site
    "QueuedWork": _fields(fleet="model requests prompt_tokens output_tokens pushed"),
    "QueueReport": _fields(fleet="site worker queues"),
    # core/world/health.py
    "SeenReplica": _fields(fleet="id model generation state why"),
    "SeenSite": _fields(fleet="site state why"),
    "HealthReport": _fields(fleet="site worker replicas sites"),
    # core/world/model.py
    "Model": _fields(fleet="name kind revision context_tokens created_at"),
    "EngineSpec": _fields(
        fleet="kind source upstream_model slots threads embeddings slots_stated shares_cache",
        credential="credential",
    ),
    "Deployment": _fields(
        fleet=(
            "site model replicas engine context_tokens admission restart_up_to stopped_replicas"
            " at_once"
        ),
    ),
    "Desired": _fields(fleet="site serial deployments"),
    "Replica": _fields(
        fleet=(
            "id site model revision generation state engine base_url upstream_model slots pid "
            "started_at restarts running_counts usage_counts_one_choice detail endpoints "
            "cache_salt slots_stated shares_cache"
        ),
        credential="engine_key credential",
    ),
    # core/world/site.py
    "Hardware": _fields(fleet="kind count"),
    "Site": _fields(
        fleet=(
            "name country operator parent latitude_deg longitude_deg host port public_url "
            "hardware draining"
        ),
        credential="peer_key",
    ),
    "Link": _fields(fleet="peer rtt_ms source via"),
    "SiteLinks": _fields(fleet="site links"),
    # core/world/site_policy.py
    "ClassRule": _fields(fleet="floor share ceiling queue_most wait_ms"),
    "SitePolicy": _fields(fleet="reserved on_demand batch reclaim_ms output_weight"),
    # core/world/tenant.py
    "Policy": _fields(account="id org_id residency transit max_view_age_s caches logs"),
    # core/world/limit.py
    "Limit": _fields(
        account=(
            "id org_id kind amount created_at project_id key_id period currency spent_before "
            "spent_pico"
        ),
    ),
    "CardRule": _fields(account="meters models classes sites bound"),
    "CardPrice": _fields(account="rule price_pico per"),
    "CardChange": _fields(account="rule basis_points"),
    "RateCard": _fields(account="currency valid_from prices changes"),
    "OrgLimits": _fields(account="org_id limits cards"),
    # core/world/limit_use.py
    "SiteUse": _fields(account="site granted used held"),
    "LimitUse": _fields(account="limit mark left sites"),
    "LimitReport": _fields(account="site limits"),
    # core/limits/messages.py, what gateways tell one another about limits
    "AskGrant": _fields(
        account=(
            "limit site life number heard mark used held need want least frees_ns insists"
        ),
    ),
    "Grant": _fields(account="limit life number mark amount for_ns free spare unused frees_ns"),
    "Led": _fields(account="limit by"),
    "Granted": _fields(account="site life number amount for_ns until mark used held"),
    "Lead": _fields(account="limit site epoch"),
    "Follow": _fields(account="limit site epoch of_epoch version tally remembers"),
    "Copy": _fields(account="limit site epoch version tally"),
    "Copied": _fields(account="limit site epoch version"),
    "Behind": _fields(account="limit site epoch"),
    "LimitLetter": _fields(account="to message"),
    "Limits": _fields(account="requests_per_min tokens_per_min concurrent"),
    "ApiKey": _fields(
        account="id org_id project_id policy_id classes limits scopes expires_at",
        credential="secret_sha256",
    ),
    "KeyShard": _fields(account="shard keys"),
    "Organisation": _fields(account="id name created_at retain_days closed_at"),
    "Project": _fields(account="id org_id name created_at closed_at"),
    "Principal": _fields(
        account="id org_id role kind expires_at", personal="name email",
    ),
    "Scope": _fields(account="org_id actor"),
    # core/world/view.py
    "View": _fields(fleet="own_site sites links models deployments policies"),
    # core/world/world.py
    "WorldModel": _fields(fleet="name kind file revision context_tokens"),
    "WorldSite": _fields(
        fleet=(
            "name country operator parent latitude_deg longitude_deg hardware deployments "
            "elsewhere"
        ),
    ),
    "WorldLink": _fields(fleet="between rtt_ms via"),
    "World": _fields(fleet="emulate_distance models sites links"),
    # core/metering/event.py
    "Tokens": _fields(account="input_uncached input_cached output source"),
    "UsageEvent": _fields(
        account=(
            "request_id org_id project_id key_id endpoint stream class_ model revision "
            "ingress_site ingress_country serving_site serving_country replica received_at "
            "finished_at chosen_ms sent_ms first_byte_ms total_ms tokens outcome status "
            "reason reporter attempts decision"
        ),
        reference="client_request_id",
    ),
    # core/routing/bond.py
    "Bond": _fields(account="cached_tokens prompt_tokens verdict home limit_ms"),
    # core/routing/choice.py
    "Candidate": _fields(
        account=(
            "site cost_ms rtt_ms rtt_source queue_ms prefill_ms decode_ms digest_age_ms transfer_ms"
        ),
    ),
    "Refused": _fields(account="site rule detail"),
    "RunnerUp": _fields(account="site cost_ms"),
    "Foretold": _fields(account="site since_ms predicted_ttft_ms actual_ttft_ms"),
    "Stopped": _fields(account="site replica for_class since_ms output after_ms at refused"),
    "Explanation": _fields(
        account="candidates refused allowed_exists elsewhere is_full eligible runner_up",
    ),
    "GroundSite": _fields(account="site rtt_ms rtt_source"),
    "Ground": _fields(
        account=(
            "id model policy_id residency transit plaintext_ingress open_sites refused "
            "allowed_exists elsewhere caches logs narrowed narrowed_transit"
        ),
    ),
    "Decision": _fields(account=_DECISION),
    # gateway/records.py
    "Progress": _fields(account="request_id at tokens"),
    "Shipped": _fields(account="segment offset"),
    "Record": _fields(account="offset kind body"),
    "Damage": _fields(account="offset size_bytes torn"),
    # gateway/view_store.py
    "StoredView": _fields(fleet="site proved_at view replicas digests", credential="control_key"),
    "Proof": _fields(fleet="digest proved_at"),
    # gateway/request_log.py
    "_Line": _fields(
        account=(
            "at event worker request key endpoint stream class_ model ingress site country "
            "replica status outcome reason attempts continued input_uncached input_cached "
            "output source chosen_ms sent_ms first_byte_ms predicted_ms "
            "believed_cached session total_ms queued_ms"
        ),
        reference="client_request",
    ),
    "_Answer": _fields(account="at event worker request status reason", reference="path"),
    # adapters/alone/usage_line.py
    "UsageLine": _fields(
        account=(
            "request_id received_at finished_at organisation project key endpoint stream "
            "class_ model revision ingress ingress_country site country replica "
            "input_uncached input_cached output token_source outcome status reason attempts "
            "chosen_ms sent_ms first_byte_ms total_ms reporter batch"
        ),
        reference="client_request_id",
    ),
    # wire/backup.py
    "FileCopy": _fields(account="name size_bytes sha256"),
    "TableCopy": _fields(account="name columns rows content_sha256 file"),
    "LedgerSum": _fields(account="account currency amount_pico"),
    "BookTotals": _fields(account="requests input_uncached input_cached output ledger"),
    "BackupManifest": _fields(account="version release schema made_at tables keys archive totals"),
    # twin/calibration/recording.py: a run of one's own cloud to measure it, of no customer
    "Seen": _fields(
        fleet="at_s late_ms ingress site prompt_tokens cached_tokens wanted_tokens output_tokens"
              " ttft_ms total_ms error",
    ),
    "_Head": _fields(fleet=_RUN),
    "Recording": _fields(fleet=f"{_RUN} seen"),
    # core/lifecycle/experiment.py: simulated, of no customer
    "ExperimentPlan": _fields(
        fleet="name title question policies loads points runs requests about_s content",
    ),
    "ExperimentProgress": _fields(fleet="done of what"),
    "ExperimentFinding": _fields(fleet="text met"),
    "ExperimentResults": _fields(
        fleet="title question command commit findings columns rows",
    ),
    # wire/prices.py
    "SheetText": _fields(account="id currency valid_from prices adjustments recurring fees"),
    "PriceText": _fields(
        account="name charge meters models classes sites kinds bound least most",
    ),
    "ChargeText": _fields(account="model price per size tiers"),
    "TierText": _fields(account="price up_to"),
    "AdjustmentText": _fields(
        account="name basis_points meters models classes sites kinds bound",
    ),
    "RecurringText": _fields(account="name amount"),
    "FeeText": _fields(account="name basis_points of"),
    # wiring/joining.py
    "SiteKeys": _fields(credential="peer_secret nats_seed"),
    # wiring/local/state.py
    "Kept": _fields(fleet="version", credential="gateways control nats console"),
    # ports/telemetry.py
    "Span": _fields(
        account="name span_id parent_id began_at ended_at attributes error",
        reference="trace_id",
    ),
}

# By the name of the table in the book of record; control may stand anywhere.
TABLES: Mapping[str, Mapping[str, Leaves]] = {
    "accounts": _fields(
        account="principal_id org_id is_given changed_at", credential="password", personal="login",
    ),
    "api_keys": _fields(
        account=(
            "id org_id project_id policy_id name classes created_at revoked_at scopes expires_at "
            "replaces"
        ),
        credential="secret_sha256",
    ),
    "attached_days": _fields(account="day_at until_at"),
    "detached_days": _fields(
        account="day_at part rows digest file file_sha256 file_bytes detached_at",
    ),
    "detached_hours": _fields(
        account=(
            "day_at part org_id project_id hour_at model class site bound requests input_uncached "
            "input_cached output digest"
        ),
    ),
    "detached_ids": _fields(account="day_at part first_id last_id marks"),
    "detached_evidence": _fields(
        account="day_at part rows digest file file_sha256 file_bytes detached_at",
    ),
    "detached_evidence_ids": _fields(account="day_at part chunk first_id last_id marks"),
    # The report is what gateways sent: without references where those may not leave.
    "late_reports": _fields(
        account="request_id digest org_id day_at report heard_at booked_at",
    ),
    "charged_periods": _fields(account="org_id project_id begin_at closed_at"),
    "charges": _fields(
        account=(
            "org_id project_id item hour_at revision quantity amount_pico currency sheet digest "
            "charged_at"
        ),
    ),
    "audit": _fields(account="serial at org_id actor kind subject change before after"),
    "deployments": _fields(
        fleet=(
            "site model replicas engine context_tokens admission restart_up_to stopped_replicas"
            " at_once"
        ),
    ),
    "engine_counts": _fields(
        fleet="replica generation run day_at site model prompt cached output heard_at begun_at",
    ),
    "experiment_runs": _fields(
        fleet=(
            "id title wanted is_own policies loads requests seed is_full state begun_at ended_at "
            "runs about_s problem"
        ),
        account="asked_by asked_at",
    ),
    "entries": _fields(account="org_id key line account project_id amount_pico"),
    "entitlements": _fields(
        account=(
            "id org_id project_id name model class tok_s residency starts_at ends_at slices "
            "created_at revoked_at"
        ),
    ),
    "evidence": _fields(
        account=(
            "request_id org_id project_id key_id endpoint stream class model revision "
            "ingress_site ingress_country serving_site serving_country replica received_at "
            "finished_at chosen_ms sent_ms first_byte_ms total_ms input_uncached input_cached "
            "output token_source outcome status reason reporter attempts decision booked_at "
            "settled_at"
        ),
        reference="client_request_id",
    ),
    "grounds": _fields(account="site id ground kept_at"),
    "holds": _fields(
        account=(
            "org_id id project_id currency amount_pico opened_at expires_at state used_pico"
        ),
    ),
    "idempotency": _fields(account="caller key request_hash resource created_at org_id"),
    "leases": _fields(fleet="name holder epoch expires_at"),
    "limit_sums": _fields(account="limit_id org_id before_at spent_pico summed_at"),
    "limits": _fields(
        account="id org_id project_id key_id kind amount period currency created_at",
    ),
    "links": _fields(fleet="site peer rtt_ms source via"),
    "meter_events": _fields(
        account=(
            "org_id id project_id meter amount from_at until_at model class site bound kind "
            "replaces request_id was is_metered arrived_at"
        ),
        reference="subject",
    ),
    "meter_hours": _fields(
        account=(
            "org_id project_id hour_at meter model class site bound kind amount digest due"
        ),
    ),
    "models": _fields(fleet="name kind revision context_tokens created_at"),
    "organisations": _fields(account="id name created_at retain_days closed_at"),
    "parked": _fields(account="id subject payload reason parked_at"),
    "people": _fields(account="principal_id org_id erased_at", personal="name email"),
    "policies": _fields(account="id org_id name residency transit created_at caches logs"),
    "postings": _fields(
        account="org_id key number kind at currency about unwinds recorded_at",
    ),
    "price_sheets": _fields(
        account="id version only_for currency valid_from sheet created_at",
    ),
    "principals": _fields(
        account="id org_id name role created_at revoked_at kind expires_at former_until",
        credential="token_sha256 former_sha256",
    ),
    "projects": _fields(account="id org_id name created_at closed_at"),
    "reconciliations": _fields(account="day_at agrees report made_at"),
    "request_hours": _fields(
        account=(
            "org_id project_id hour_at model class site bound requests input_uncached "
            "input_cached output digest due"
        ),
    ),
    "revoked_logins": _fields(credential="user_key", fleet="site revoked_at refused_from"),
    "sessions": _fields(
        account="principal_id org_id begun_at expires_at", credential="secret_sha256",
    ),
    "sign_in_tries": _fields(account="tries last_at", credential="what"),
    "site_tokens": _fields(credential="token_sha256", fleet="site created_at used_at expires_at"),
    "sites": _fields(
        fleet=(
            "name country operator parent latitude_deg longitude_deg hardware host port "
            "public_url created_at joined_at removed_at draining"
        ),
        credential="peer_key nats_key",
    ),
    "usage": _fields(
        account=(
            "request_id org_id project_id key_id endpoint stream class model revision "
            "ingress_site ingress_country serving_site serving_country replica received_at "
            "finished_at chosen_ms sent_ms first_byte_ms total_ms input_uncached input_cached "
            "output token_source outcome status reason reporter attempts decision booked_at bound"
        ),
        reference="client_request_id",
    ),
    "view_serial": _fields(fleet="one serial"),
    "world": _fields(fleet="one fingerprint reconciled_at"),
    "voters": _fields(fleet="one sites former epoch changed_at"),
}
