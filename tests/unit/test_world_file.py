"""World files: a full one, and many bad ones, each with the place and what was expected."""

from pathlib import Path

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.core.world.model import EngineSpec
from isochrone.core.world.site import Hardware
from isochrone.wiring.world_file import parse_world

MODEL = """
[[model]]
name = "tiny"
file = "bundled:tiny-fable-q8_0.gguf"
context = 2048
[[model]]
name = "partner/large"
context = 8192
"""
SITE = """
[[site]]
name = "sydney"
country = "AU"
latitude = -33.86
longitude = 151.21
"""
OTHER = SITE.replace("sydney", "perth")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidInput) as caught:
        parse_world(text, source="world.toml")
    assert all(problem.startswith("world.toml: ") for problem in caught.value.problems)
    return tuple(each.removeprefix("world.toml: ") for each in caught.value.problems)


def problem(text: str) -> str:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def test_a_full_world() -> None:
    world = parse_world(
        MODEL + SITE + """
operator = "Harbour"
parent = "Harbour Group"
[[site.hardware]]
kind = "L40S"
count = 8
[[site.deployment]]
model = "tiny"
replicas = 2
engine = "llamacpp"
slots = 8
threads = 2
[[site.deployment]]
model = "partner/large"
engine = "openai"
url = "https://partner.example/openai/v1"
upstream_model = "large-7"
key_file = "keys/partner"
""" + OTHER + """
[[link]]
between = ["sydney", "perth"]
rtt_ms = 48
""",
        source="world.toml",
        folder=Path("/etc/isochrone"),
    )
    assert not world.emulate_distance
    sydney, perth = world.sites
    assert (sydney.operator, sydney.parent, sydney.country) == ("Harbour", "Harbour Group", "AU")
    assert sydney.hardware == (Hardware(kind="L40S", count=8),)
    tiny, large = sydney.deployments
    assert tiny.engine == EngineSpec(
        kind="llamacpp", source="bundled:tiny-fable-q8_0.gguf", slots=8, threads=2
    )
    assert (tiny.replicas, tiny.context_tokens) == (2, 2048)
    assert large.engine == EngineSpec(
        kind="openai", source="https://partner.example/openai/v1", upstream_model="large-7",
        credential="file:/etc/isochrone/keys/partner", slots_stated=False,
    )
    assert (large.replicas, large.context_tokens) == (1, 8192)
    assert perth.deployments == ()
    assert [(link.between, link.rtt_ms) for link in world.links] == [(("sydney", "perth"), 48.0)]


def test_relative_files_are_relative_to_the_folder_of_the_world() -> None:
    text = '[[model]]\nname = "m"\nfile = "weights/m.gguf"\ncontext = 512\n' + SITE
    placed = parse_world(text, source="world.toml", folder=Path("/srv"))
    assert placed.models[0].file == "/srv/weights/m.gguf"
    absolute = parse_world(
        text.replace("weights", "/weights"), source="world.toml", folder=Path("/srv")
    )
    assert absolute.models[0].file == "/weights/m.gguf"


def test_an_embedding_model_is_deployed_as_such() -> None:
    text = MODEL.replace('name = "tiny"', 'name = "tiny"\nkind = "embedding"') + SITE
    world = parse_world(
        text + '[[site.deployment]]\nmodel = "tiny"\nengine = "llamacpp"\n', source="world.toml"
    )
    assert world.sites[0].deployments[0].engine.embeddings


def test_a_country_that_is_not_stated_is_missing_not_guessed() -> None:
    text = SITE.replace('country = "AU"\n', "")
    assert parse_world(text, source="world.toml").sites[0].country is None


@pytest.mark.parametrize("text", ["a = ", "[[site]\n", 'x = "\n', "a = 1\na = 2\n"])
def test_not_toml(text: str) -> None:
    assert problem(text).startswith("not a TOML file: ")


def test_a_world_without_sites() -> None:
    assert problem("") == "there is no [[site]]; a world has at least one site"


def deployment(lines: str) -> str:
    return MODEL + SITE + "[[site.deployment]]\n" + lines


ON_SITE = [
    ('name = "sydney"', 'name = "Sydney"', "1 to 32 lower-case letters, digits or hyphens"),
    ('name = "sydney"', 'name = "a b"', "1 to 32 lower-case letters"),
    ('name = "sydney"', f'name = "{"s" * 33}"', "1 to 32 lower-case letters"),
    ('name = "sydney"', "name = 7", "name is 7; expected 1 to 32 lower-case letters"),
    ('name = "sydney"', "", "site 1: name is missing"),
    ('"AU"', '"XX"', 'country is "XX", which is no country'),
    ('"AU"', '"au"', 'did you mean "AU"?'),
    ('"AU"', '""', 'country is ""; expected an ISO 3166-1 alpha-2 code'),
    ("-33.86", "-90.5", "latitude is -90.5; expected a number from -90 to 90"),
    ("-33.86", "nan", "latitude is nan"),
    ("-33.86", '"south"', 'latitude is "south"'),
    ("latitude = -33.86", "", "latitude is missing; expected a number from -90 to 90"),
    ("151.21", "180.1", "expected a number from -180 to 180"),
    ("151.21", "inf", "longitude is inf"),
    ("151.21", "true", "longitude is True"),
    ("longitude", "longitud", 'unknown key "longitud"; did you mean "longitude"?'),
    ("country", "zone", 'unknown key "zone"; known keys: country'),
]


@pytest.mark.parametrize(("old", "new", "expected"), ON_SITE)
def test_bad_sites(old: str, new: str, expected: str) -> None:
    found = problems(SITE.replace(old, new))
    assert any(expected in each for each in found), found
    assert all(each.startswith("site ") for each in found)


ON_DEPLOYMENT = [
    ('engine = "llamacpp"', "model is missing"),
    ('model = "tinny"\nengine = "llamacpp"', 'model "tinny" is not described; did you mean "tiny"'),
    ('model = "tiny"', "engine is missing; expected one of llamacpp, openai"),
    ('model = "tiny"\nengine = "llama"', 'did you mean "llamacpp"?'),
    ('model = "tiny"\nengine = "llamacpp"\nreplicas = 65', "a whole number from 0 to 64"),
    ('model = "tiny"\nengine = "llamacpp"\nreplicas = -1', "replicas is -1"),
    ('model = "tiny"\nengine = "llamacpp"\nreplicas = 1.5', "replicas is 1.5"),
    ('model = "tiny"\nengine = "llamacpp"\nslots = 0', "slots is 0; expected a whole number"),
    ('model = "tiny"\nengine = "llamacpp"\nthreads = 0', "threads is 0"),
    ('model = "tiny"\nengine = "llamacpp"\nurl = "http://x/v1"', "url belongs to engine openai"),
    ('model = "partner/large"\nengine = "llamacpp"', "needs a file"),
    ('model = "partner/large"\nengine = "openai"', "url is missing; engine openai needs"),
    ('model = "partner/large"\nengine = "openai"\nurl = "x.example/v1"', "a URL that ends in /v1"),
    ('model = "partner/large"\nengine = "openai"\nurl = "http://x/v2"', "a URL that ends in /v1"),
    (
        'model = "partner/large"\nengine = "openai"\nurl = "http://x/v1"\nthreads = 2',
        "threads belongs to engine llamacpp, not to openai",
    ),
    (
        'model = "partner/large"\nengine = "openai"\nurl = "http://x/v1"\n'
        'key_file = "k"\nkey_env = "K"',
        "key_file and key_env are both given",
    ),
    (
        'model = "partner/large"\nengine = "openai"\nurl = "http://x/v1"\nkey_env = "9K"',
        "the name of an environment variable",
    ),
    ('model = "tiny"\nengine = "llamacpp"\ncontext = 5', 'unknown key "context"'),
    (
        'model = "tiny"\nengine = "llamacpp"\nadmission = {reserved = {floor = 1.0}}',
        "admission: the floors are 1 together; at most 0.95 can be kept",
    ),
    ('model = "tiny"\nengine = "llamacpp"\nadmission = 3', "admission is not a table"),
]


@pytest.mark.parametrize(("lines", "expected"), ON_DEPLOYMENT)
def test_bad_deployments(lines: str, expected: str) -> None:
    found = problem(deployment(lines))
    assert expected in found
    assert found.startswith('site "sydney", deployment ')


MODELS = [
    ('name = "m m"\ncontext = 512', "letters, digits or any of"),
    ('name = "m"\ncontext = 3', "a whole number from 16 to 10000000"),
    ('name = "m"\ncontext = "2k"', 'context is "2k"'),
    ('name = "m"', "context is missing"),
    ('name = "m"\ncontext = 512\nkind = "chatty"', 'did you mean "chat"?'),
    ('name = "m"\ncontext = 512\nfile = "bundled:no.gguf"', "the package ships: tiny-fable"),
    ('name = "m"\ncontext = 512\nfile = 3', "a path to a GGUF file or bundled:NAME"),
    ('name = "m"\ncontext = 512\nfiel = "m.gguf"', 'did you mean "file"?'),
]


@pytest.mark.parametrize(("lines", "expected"), MODELS)
def test_bad_models(lines: str, expected: str) -> None:
    found = problem(f"[[model]]\n{lines}\n{SITE}")
    assert expected in found
    assert found.startswith("model ")


LINKS = [
    ('between = ["sydney", "berth"]\nrtt_ms = 5', 'not described; did you mean "perth"?'),
    ('between = ["sydney", "sydney"]\nrtt_ms = 5', "a link joins two sites"),
    ('between = ["sydney"]\nrtt_ms = 5', "expected a list of 2 names"),
    ('between = ["sydney", 3]\nrtt_ms = 5', "expected a list of 2 names"),
    ('between = "sydney"\nrtt_ms = 5', "expected a list of 2 names"),
    ('between = ["sydney", "perth"]\nrtt_ms = -1', "rtt_ms is -1; expected a number from 0"),
    ('between = ["sydney", "perth"]\nrtt_ms = nan', "rtt_ms is nan"),
    ('between = ["sydney", "perth"]', "rtt_ms is missing"),
    ('between = ["sydney", "perth"]\nrtt_ms = 5\nvia = ["AU", "ZZ"]', 'via names "ZZ"'),
]


@pytest.mark.parametrize(("lines", "expected"), LINKS)
def test_bad_links(lines: str, expected: str) -> None:
    found = problem(f"{SITE}{OTHER}[[link]]\n{lines}")
    assert expected in found
    assert found.startswith("link 1: ")


def test_bad_hardware() -> None:
    found = problems(SITE + '[[site.hardware]]\nkind = "H200"\ncount = 0\n')
    assert "known: H200-SXM-141GB, H200-NVL-141GB" in found[0]
    assert "count is 0" in found[1]


def test_things_that_may_be_described_once() -> None:
    link = '[[link]]\nbetween = ["sydney", "perth"]\nrtt_ms = 5\n'
    back = link.replace('"sydney", "perth"', '"perth", "sydney"')
    deployed = '[[site.deployment]]\nmodel = "tiny"\nengine = "llamacpp"\n'
    found = problems(MODEL + MODEL + SITE + deployed * 2 + SITE + OTHER + link + back)
    assert found == (
        'site "sydney": model "tiny" is deployed 2 times; expected once',
        'model "tiny" is described 2 times; expected once',
        'model "partner/large" is described 2 times; expected once',
        'site "sydney" is described 2 times; expected once',
        'link between "perth and sydney" is described 2 times; expected once',
    )


def test_tables_that_are_not_arrays_of_tables() -> None:
    assert problem("[site]\nname = 'x'\n") == "site is not an array of tables; write [[site]]"
    assert "write [[site.hardware]]" in problem(SITE + "hardware = 3\n")


def test_all_problems_are_listed_at_once() -> None:
    text = (
        "emulate_distence = 1\n"
        + MODEL.replace("2048", "0")
        + SITE.replace("AU", "ZZ").replace("151.21", "500")
        + '[[link]]\nbetween = ["sydney", "nowhere"]\nrtt = 5\n'
    )
    found = "\n".join(problems(text))
    for words in (
        "emulate_distence", "context is 0", "ZZ", "500", "nowhere", 'unknown key "rtt"',
        "rtt_ms is missing",
    ):
        assert words in found
