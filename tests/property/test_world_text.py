"""A rendered world parses back to the same world, whatever text and numbers it holds."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.model import Deployment, EngineSpec
from isochrone.core.world.site import Hardware
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.world import World, WorldLink, WorldModel, WorldSite
from isochrone.wiring.world_file import parse_world
from isochrone.wiring.world_text import render_world

# What the parser takes: one line, not only white space.
LETTERS = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])
TEXT = st.text(LETTERS, min_size=1, max_size=12).map(lambda text: f"x{text}x")
MODELS = (
    WorldModel(
        name=ModelName("small"), kind="chat", file="/models/small.gguf", revision=None,
        context_tokens=2048,
    ),
    WorldModel(
        name=ModelName("partner/large"), kind="embedding", file=None, revision="v1",
        context_tokens=512,
    ),
)
LLAMACPP = st.builds(
    EngineSpec, kind=st.just("llamacpp"), source=st.just("/models/small.gguf"),
    slots=st.integers(1, 64), threads=st.integers(1, 64), shares_cache=st.booleans(),
)
OPENAI = st.builds(
    EngineSpec, kind=st.just("openai"), source=st.just("https://partner.example/v1"),
    upstream_model=TEXT, slots=st.integers(1, 64), embeddings=st.just(True),
    credential=st.none() | st.just("env:PARTNER_KEY") | TEXT.map(lambda path: f"file:/{path}"),
)
GUESSED = st.builds(
    EngineSpec, kind=st.just("openai"), source=st.just("https://partner.example/v1"),
    upstream_model=TEXT, embeddings=st.just(True), slots_stated=st.just(False),
)
RULES = st.builds(
    ClassRule, floor=st.floats(0, 0.3), share=st.floats(0.5, 9), ceiling=st.floats(0.3, 1),
    queue_most=st.integers(0, 99), wait_ms=st.floats(0, 99_999),
)
POLICIES = st.builds(
    SitePolicy, reserved=RULES, on_demand=RULES, batch=RULES, reclaim_ms=st.floats(0, 99_999),
    output_weight=st.integers(1, 9),
)


@st.composite
def sites(draw: st.DrawFn, name: str) -> WorldSite:
    engines = [draw(LLAMACPP), draw(OPENAI | GUESSED)]
    deployments = [
        Deployment(
            site=SiteName(name), model=model.name, replicas=draw(st.integers(0, 8)), engine=engine,
            context_tokens=model.context_tokens, admission=draw(st.none() | POLICIES),
        )
        for model, engine in zip(MODELS, engines, strict=True)
        if draw(st.booleans())
    ]
    return WorldSite(
        name=SiteName(name),
        country=draw(st.sampled_from([None, "AU", "DE", "NA"])),
        operator=draw(st.none() | TEXT),
        parent=draw(st.none() | TEXT),
        latitude_deg=draw(st.floats(-90, 90)),
        longitude_deg=draw(st.floats(-180, 180)),
        hardware=tuple(
            Hardware(kind="cpu", count=count)
            for count in draw(st.lists(st.integers(1, 9), max_size=3))
        ),
        deployments=tuple(deployments),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    links = [
        WorldLink(
            between=(SiteName("a"), SiteName("b-2")), rtt_ms=draw(st.floats(0, 9999)),
            via=draw(st.sampled_from([None, ("DE",), ("DE", "FR")])),
        )
    ]
    return World(
        emulate_distance=draw(st.booleans()),
        models=MODELS,
        sites=(draw(sites("a")), draw(sites("b-2"))),
        links=tuple(links if draw(st.booleans()) else ()),
    )


@given(worlds())
def test_rendered_worlds_parse_back(world: World) -> None:
    assert parse_world(render_world(world), source="rendered") == world


def test_an_empty_world_is_told_apart() -> None:
    world = World(emulate_distance=True, models=(), sites=(), links=())
    assert "emulate_distance = true" in render_world(world)
    assert render_world(world) != render_world(replace(world, emulate_distance=False))
