"""Which public URLs mean that hops to a site are encrypted."""

import pytest

from isochrone.wire.hop_tls import hop_tls_name


@pytest.mark.parametrize(
    ("public_url", "port", "name"),
    [
        ("https://sydney.example.com/v1", 443, "sydney.example.com"),
        ("https://sydney.example.com:8443/v1", 8443, "sydney.example.com"),
        ("https://10.0.0.2:4100/v1", 4100, "10.0.0.2"),
        ("https://[2001:db8::1]:4100/v1", 4100, "2001:db8::1"),
        ("HTTPS://Sydney.Example.com/v1", 443, "sydney.example.com"),
        ("https://sydney.example.com/v1", 4100, None),  # a proxy ends TLS, and it is not asked
        ("http://sydney.example.com:4100/v1", 4100, None),
        ("https://sydney.example.com:none/v1", 443, None),
        ("", 443, None),
    ],
)
def test_https_on_the_gateways_own_port_means_tls(
    public_url: str, port: int, name: str | None
) -> None:
    assert hop_tls_name(public_url, port) == name
