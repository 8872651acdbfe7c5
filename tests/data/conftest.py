import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Refuse every connection; at the end, fail if one was tried, even if the failure was swallowed."""
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried
