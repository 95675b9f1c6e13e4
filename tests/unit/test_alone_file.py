"""The file of a gateway that runs alone: a full one, all its problems, what it tells."""

import asyncio
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.alone.bus import AloneBus, NoStore
from isochrone.adapters.clock import SystemClock
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import KeyId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.model import ALL_ENDPOINTS, COMMON_ENDPOINTS, Replica
from isochrone.core.world.site import Site, SiteLinks
from isochrone.core.world.tenant import KEY_SCOPES, ApiKey, KeyShard, Limits, Policy
from isochrone.ports.bus import Entry
from isochrone.wire import fleet, subjects
from isochrone.wiring.alone_entries import Teller, Told, told_by
from isochrone.wiring.alone_file import AloneFile, is_alone, parse_alone
from tests.fixtures.alone_files import SMALL

FOLDER = Path("/etc/isochrone")
HASH = sha256(b"secret").hexdigest()
OTHER_HASH = sha256(b"other").hexdigest()
PEER = "ab" * 32


FULL = f"""
[gateway]
site = "lyon"
host = "0.0.0.0"
port = 4100
journal = "spool"
usage = "/var/log/usage.jsonl"
request_log = "none"
peer_secret_file = "peer.key"
connect_timeout_s = 1
log_level = "warning"

[[model]]
name = "tiny"
context = 2048
revision = "r7"
[[model]]
name = "words"
kind = "embedding"

[[policy]]
name = "eu-only"
residency = ["EU", "no"]
transit = ["FR"]
max_view_age_s = 60

[[site]]
name = "lyon"
country = "FR"
latitude = 45.76
longitude = 4.84
hardware = "L40S"
[[site.upstream]]
url = "http://10.0.0.1:8000/v1"
model = "tiny"
engine = "vllm"
slots = 64
prefill_tok_s = 9000
decode_tok_s = 40.5
[[site.upstream]]
url = "http://10.0.0.2:8080/v1"
model = "tiny"
engine = "llamacpp"
running_counts = "none"
[[site.upstream]]
url = "https://llm.example/v1"
model = "words"
upstream_model = "vendor/words-2"
key_file = "vendor.key"
endpoints = ["embeddings"]

[[site]]
name = "paris"
country = "FR"
operator = "Partner"
rtt_ms = 6.5
[[site.upstream]]
url = "https://paris.example/v1"
model = "tiny"
key_env = "PARIS_KEY"

[[site]]
name = "oslo"
country = "NO"
latitude = 59.91
longitude = 10.75
gateway = "10.2.0.7:4000"
peer_key = "{PEER}"
serving = ["tiny"]
slots = 128

[[key]]
name = "laptop"
secret_sha256 = "{HASH}"
policy = "eu-only"
classes = ["batch", "reserved"]
organisation = "acme"
project = "search"
requests_per_min = 60
tokens_per_min = 100000
concurrent = 8
scopes = ["models", "chat"]
expires = 2031-01-01T00:00:00Z
[[key]]
name = "anything"
secret_sha256 = "{OTHER_HASH}"
"""


def parse(text: str) -> AloneFile:
    return parse_alone(text, source="gateway.toml", path=FOLDER / "gateway.toml")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert all(problem.startswith("gateway.toml: ") for problem in caught.value.problems)
    return tuple(each.removeprefix("gateway.toml: ") for each in caught.value.problems)


def test_a_small_file_needs_little() -> None:
    file = parse(SMALL)
    assert file.site == "here"
    assert file.settings.port == 4000
    assert file.settings.host == "127.0.0.1"
    assert file.settings.journal == FOLDER / "journal"
    assert file.settings.digest_stale_s > 1e8  # nobody says digests again
    assert file.usage == FOLDER / "usage.jsonl"
    assert file.request_log == "-"
    assert [policy.id for policy in file.policies] == ["any"]
    assert file.keys == (
        ApiKey(
            id=KeyId("laptop"), secret_sha256=HASH, org_id=OrgId("default"),
            project_id=ProjectId("default"), policy_id=PolicyId("any"),
        ),
    )
    (upstream,) = file.sites[0].upstreams
    assert upstream.endpoints == COMMON_ENDPOINTS
    assert (upstream.model, upstream.upstream_model, upstream.slots) == ("tiny", "tiny", 16)
    assert upstream.running_counts is None


def test_policies_and_links_may_state_what_residency_rules_ask() -> None:
    text = SMALL + """
[[policy]]
name = "closed"
residency = ["EEA", "-fr", "operator:Partner Cloud B.V."]
transit = ["any", "via:EEA"]
caches = ["DE"]
logs = ["de"]
[[site]]
name = "far"
operator = "Partner Cloud B.V."
parent = "Holding"
rtt_ms = 9
via = ["FR", "DE"]
"""
    file = parse(text)
    closed = next(policy for policy in file.policies if policy.id == "closed")
    assert closed.residency == ("-FR", "EEA", "operator:partner-cloud-b-v")
    assert (closed.transit, closed.caches, closed.logs) == (("any", "via:EEA"), ("DE",), ("DE",))
    links = told_by(file, PEER).view[subjects.links_key("here")]
    assert isinstance(links, SiteLinks)
    assert [(link.peer, link.via) for link in links.links] == [("far", ("DE", "FR"))]
    assert any("caches: 'any' stands alone" in each for each in problems(
        text.replace('caches = ["DE"]', 'caches = ["DE", "any"]')
    ))


def test_a_full_file() -> None:
    file = parse(FULL)
    assert (file.site, file.usage, file.request_log) == (
        "lyon", Path("/var/log/usage.jsonl"), None,
    )
    settings = file.settings
    assert (settings.host, settings.port, settings.connect_timeout_s) == ("0.0.0.0", 4100, 1.0)
    assert settings.journal == FOLDER / "spool"
    assert settings.log_level == "warning"
    assert file.peer_secret == FOLDER / "peer.key"
    assert file.policies[0] == Policy(
        id=PolicyId("eu-only"), org_id=OrgId("default"), residency=("EU", "NO"), transit=("FR",),
        max_view_age_s=60.0,
    )
    laptop = file.keys[0]
    assert laptop.classes == ("reserved", "batch")
    assert (laptop.org_id, laptop.project_id, laptop.policy_id) == ("acme", "search", "eu-only")
    assert (laptop.scopes, laptop.expires_at) == (("chat", "models"), 1_924_992_000_000_000_000)
    assert (file.keys[1].scopes, file.keys[1].expires_at) == (KEY_SCOPES, None)
    assert laptop.limits == Limits(requests_per_min=60, tokens_per_min=100_000, concurrent=8)
    lyon, paris, oslo = file.sites
    vllm, llamacpp, vendor = lyon.upstreams
    assert (vllm.running_counts, vllm.prefill_tok_s, vllm.decode_tok_s) == ("usage", 9000.0, 40.5)
    assert (llamacpp.running_counts, llamacpp.usage_counts_one_choice) == (None, True)
    assert (vendor.upstream_model, vendor.credential) == (
        "vendor/words-2", f"file:{FOLDER}/vendor.key",
    )
    assert paris.upstreams[0].credential == "env:PARIS_KEY"
    assert (oslo.site.host, oslo.site.port, oslo.site.peer_key) == ("10.2.0.7", 4000, PEER)
    assert oslo.is_peer
    assert oslo.models == ("tiny",)


def test_all_problems_are_listed_at_once() -> None:
    found = problems("""
[gateway]
prot = 4000
port = 70000
identity = "site.json"
[[model]]
name = "tiny"
[[policy]]
name = "plans"
residency = ["EUR"]
[[site]]
name = "Here"
country = "de"
[[site.upstream]]
url = "http://127.0.0.1:8080"
engine = "lamacpp"
[[key]]
name = "k"
secret = "sk-123"
policy = "plan"
""")
    for part in (
        "gateway: unknown key 'prot'", "gateway: unknown key 'identity'", "gateway: port: must be",
        'site "Here": name is "Here"', 'did you mean "DE"?', 'upstream 1: url is "http',
        'did you mean "llamacpp"?', "secret does not belong into a file",
        "secret_sha256 is missing", 'policy "plan" is not described; did you mean "plans"?',
        "residency: 'EUR' is neither", "did you mean 'EU'?", "rtt_ms is missing",
    ):
        assert any(part in problem for problem in found), (part, found)


def with_site(text: str) -> str:
    """The small file with one more site."""
    return SMALL.replace("[[key]]", f'[[site]]\nname = "far"\n{text}\n[[key]]')


PEER_SITE = f'rtt_ms = 1\ngateway = "h:1"\npeer_key = "{PEER}"\nserving = ["tiny"]'
SECOND_UPSTREAM = '[[site.upstream]]\nurl = "http://127.0.0.1:8080/v1"\n[[key]]'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "here', "not a TOML file"),
        ("[gateway]\nhost = 7\n" + SMALL, "gateway: host: must be a string, not 7"),
        ("[[gateway]]\n" + SMALL, "gateway is not a table; write [gateway]"),
        (SMALL.replace('"tiny"', '"tiny"\nfile = "x"'), 'model "tiny": unknown key "file"'),
        (SMALL + SMALL, 'model "tiny" is described 2 times'),
        (
            SMALL.replace("[[site.upstream]]", '[[site.upstream]]\nmodel = "big"'),
            'model names "big", which is not described; add a [[model]] with this name',
        ),
        (SMALL.replace("[[site.upstream]]\nurl", "operator"), "no site serves a model"),
        (SMALL.replace("[[key]]", SECOND_UPSTREAM), 'serves "tiny" 2 times; expected once'),
        (with_site(""), 'site "far": rtt_ms is missing; state the round trip from here, or a'),
        (
            with_site("latitude = 1\nlongitude = 2"),
            'site "here": latitude and longitude are missing; without them the round trip to far',
        ),
        (with_site(PEER_SITE), "gateway: peer_secret_file is missing; the gateway of far wants"),
        (with_site('rtt_ms = 1\nserving = ["tiny"]'), "serving is given without gateway"),
        (SMALL.split("[[key]]")[0], "there is no [[key]]; make one with `isochrone key hash`"),
        (SMALL.replace(HASH, "abc"), 'key "laptop": secret_sha256 is "abc"; expected 64'),
        (
            SMALL + f'[[key]]\nname = "other"\nsecret_sha256 = "{HASH}"\n',
            'key "other": another key has the same secret_sha256',
        ),
        (
            SMALL.replace("[[key]]", 'endpoints = ["chat"]\n[[key]]'),
            'endpoints names "chat"; expected some of chat.completions',
        ),
        (SMALL.replace("[[key]]", '[[key]]\nclasses = ["fast"]'), 'classes names "fast"'),
        (SMALL.replace("[[key]]", '[[key]]\nscopes = ["root"]'), 'scopes names "root"'),
        (
            SMALL + '[[policy]]\nname = "p"\nresidency = ["DE", "-EU"]\n',
            'policy "p": residency: no country is left, so that no site can ever be allowed',
        ),
        (
            SMALL + '[[policy]]\nname = "p"\nresidency = ["DE"]\ncaches = ["FR"]\n',
            'policy "p": residency and caches: no country is left that both allow',
        ),
        (SMALL.replace("[[key]]", '[[key]]\nexpires = "soon"'), "expires is"),
        (SMALL.replace("[[key]]", "[[key]]\nconcurrent = 0"), "concurrent is 0; expected a"),
    ],
)
def test_a_problem_says_where_and_what(text: str, said: str) -> None:
    found = problems(text)
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        (SMALL, True),
        ("[gateway]\nport = ", True),  # damaged, and still this kind of file
        ("  [ gateway ]\n", True),
        ('[[model]]\nname = "m"\n[[site]]\nname = "x"\n[[site.upstream]]\n', True),  # no key yet
        ('identity = "x"\nport = 1\njournal = "[gateway]"\n', False),
        ('[[site]]\nname = "x"\n', False),
    ],
)
def test_the_kind_of_a_file_shows_in_its_tables(tmp_path: Path, text: str, alone: bool) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    assert is_alone(path) == alone
    assert not is_alone(tmp_path / "missing.toml")


# -- what the gateway is told ----------------------------------------------------------------------


def test_the_entries_are_those_of_a_cloud() -> None:
    told = told_by(parse(FULL), peer_key="cd" * 32)
    view = told.view
    lyon, paris, oslo = (view[subjects.site_key(name)] for name in ("lyon", "paris", "oslo"))
    assert isinstance(lyon, Site)
    assert isinstance(paris, Site)
    assert isinstance(oslo, Site)
    assert (lyon.peer_key, paris.peer_key, oslo.peer_key) == ("cd" * 32, "cd" * 32, PEER)
    assert (lyon.host, lyon.port) == ("0.0.0.0", 4100)
    links = view[subjects.links_key("lyon")]
    assert isinstance(links, SiteLinks)
    by_peer = {link.peer: link for link in links.links}
    assert by_peer.keys() == {"paris", "oslo"}
    assert (by_peer[SiteName("paris")].rtt_ms, by_peer[SiteName("paris")].source) == (6.5, "stated")
    assert by_peer[SiteName("oslo")].rtt_ms > 10
    for site, model in (("lyon", "tiny"), ("lyon", "words"), ("paris", "tiny"), ("oslo", "tiny")):
        assert subjects.deployment_key(site, model) in view
    shard = view[subjects.keys_key(HASH[:2])]
    assert isinstance(shard, KeyShard)
    assert [key.id for key in shard.keys] == ["laptop"]
    assert [(r.site, r.model, r.slots) for r in told.replicas.values()] == [
        ("lyon", "tiny", 64), ("lyon", "tiny", 16), ("lyon", "words", 16), ("paris", "tiny", 16),
    ]
    assert all(key == subjects.replica_key(r.id) for key, r in told.replicas.items())
    assert all(replica.revision == "r7" for replica in told.replicas.values()
               if replica.model == "tiny")
    (of_tiny, of_words), (of_paris,), (of_oslo,) = told.loads.values()
    assert (of_tiny.ready, of_tiny.slots) == (2, 80)
    assert (of_tiny.prefill_tok_s, of_paris.prefill_tok_s) == (0.0, 0.0)  # not all are stated
    assert (of_oslo.ready, of_oslo.slots) == (1, 128)
    assert (of_tiny.endpoints, of_words.endpoints) == (ALL_ENDPOINTS, ("embeddings",))
    assert of_oslo.endpoints == COMMON_ENDPOINTS
    assert [replica.endpoints for replica in told.replicas.values()] == [
        ALL_ENDPOINTS, ALL_ENDPOINTS, ("embeddings",), COMMON_ENDPOINTS,
    ]


def test_an_own_site_that_is_not_described_is_there_nonetheless() -> None:
    text = SMALL.replace('name = "here"', 'name = "far"\nrtt_ms = 5')
    told = told_by(parse(text), peer_key=PEER)
    own = told.view[subjects.site_key("here")]
    assert isinstance(own, Site)
    assert own.country is None
    assert list(told.loads) == ["far"]


class Listener:
    """A bus with a teller, and what a gateway would hear of it."""

    def __init__(self) -> None:
        self.bus = AloneBus(SystemClock(), NoStore())
        self.signer = Ed25519PrivateKey.generate()
        self.teller = Teller(self.bus, "here", self.signer)
        self.heard: list[Entry] = []
        self.digests: list[SiteDigest] = []

    async def follow(self) -> None:
        await self.bus.watch(subjects.VIEW_BUCKET, "", self.heard.append)
        await self.bus.watch(subjects.site_bucket("here"), "replica", self.heard.append)
        await self.bus.subscribe(subjects.DIGESTS, self._digest)

    def _digest(self, subject: str, payload: bytes) -> None:
        digest = fleet.decode(payload, SiteDigest)
        assert subject == subjects.digest_subject(digest.site)
        self.digests.append(digest)

    async def news(self, told: Told) -> list[tuple[str, bool]]:
        """(kind of entry, whether it is there) of what is told now."""
        self.heard.clear()
        await self.teller.tell(told)
        return [(entry.key.partition(".")[0], entry.value is not None) for entry in self.heard]


def told(text: str) -> Told:
    return told_by(parse(text), peer_key=PEER)


def test_entries_are_signed_and_only_changes_are_told() -> None:
    async def main() -> None:
        here = Listener()
        await here.follow()
        first = await here.news(told(SMALL))
        kinds = [kind for kind, _ in first]
        assert kinds == [
            "replica", "policy", "model", "site", "links", "deployment", "keys",
        ]
        for entry in here.heard[1:]:
            assert entry.value is not None
            _, serial = fleet.open_signed(
                entry.value, dict, bucket=subjects.VIEW_BUCKET, key=entry.key,
                verifier=here.signer.public_key(),
            )
            assert serial == 1
        assert fleet.decode(here.heard[0].value or b"", Replica).base_url.endswith(":8080/v1")
        assert [digest.sequence for digest in here.digests] == [1]
        assert await here.news(told(SMALL)) == []
        other_key = SMALL.replace(HASH, OTHER_HASH)
        assert await here.news(told(other_key)) == [("keys", False), ("keys", True)]
        assert len(here.digests) == 1
        slots = other_key.replace("8080/v1\"", "8080/v1\"\nslots = 3")
        assert await here.news(told(slots)) == [("replica", True)]
        assert [(d.sequence, d.loads[0].slots) for d in here.digests] == [(1, 16), (4, 3)]

    asyncio.run(main())


def test_what_left_the_file_is_taken_back_keys_first() -> None:
    more = SMALL + f"""
policy = "p"
[[key]]
name = "second"
secret_sha256 = "{OTHER_HASH}"
policy = "p"
[[policy]]
name = "p"
[[site]]
name = "far"
rtt_ms = 5
[[site.upstream]]
url = "http://127.0.0.1:8081/v1"
"""

    async def main() -> None:
        here = Listener()
        await here.teller.tell(told(more))
        await here.follow()
        news = await here.news(told(SMALL))
        gone = [kind for kind, there in news if not there]
        assert gone == ["keys", "deployment", "site", "policy", "replica"]
        assert {kind for kind, there in news if there} == {"links", "keys"}
        models = [d.loads[0].model for d in here.digests]
        assert models == [ModelName("tiny")] * 2

    asyncio.run(main())
