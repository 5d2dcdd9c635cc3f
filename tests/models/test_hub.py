"""Hub models: what is fetched, and what each way to fail tells the user."""

import socket
from importlib import import_module

import pytest
import torch
from huggingface_hub import errors

from attnbench.models.sources import inspect, load
from tests.models.refusals import refusal

CPU = torch.device("cpu")


def response(status):
    """As the hub client's own HTTP library, whichever it is, would give it."""
    http = import_module(errors.Response.__module__)
    return http.Response(status, request=http.Request("GET", "https://hub.example"))


def hub_raises(monkeypatch, error):
    def snapshot_download(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)


def test_a_gated_model_without_a_token_says_how_to_get_one(monkeypatch):
    hub_raises(monkeypatch, errors.GatedRepoError("401", response=response(401)))
    text = refusal("meta-llama/Llama-3.2-1B")
    assert "licence" in text
    assert "HF_TOKEN" in text
    assert "preset:llama-3.2-1b" in text


def test_an_unknown_id_is_refused(monkeypatch):
    hub_raises(monkeypatch, errors.RepositoryNotFoundError("404", response=response(404)))
    assert "there is no model some/thing on the hub" in refusal("some/thing")


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("not cached"),
        errors.OfflineModeIsEnabled("offline"),
        ConnectionError("no route"),
    ],
)
def test_an_unreachable_hub_names_the_preset(monkeypatch, error):
    hub_raises(monkeypatch, error)
    text = refusal("meta-llama/Llama-3.2-1B")
    assert "cannot be reached" in text
    assert "licence" in text
    assert "preset:llama-3.2-1b" in text


def test_other_failures_of_the_hub_are_typed(monkeypatch):
    hub_raises(monkeypatch, errors.HfHubHTTPError("500 oops", response=response(500)))
    assert "cannot be fetched: 500 oops" in refusal("some/thing")


@pytest.mark.parametrize("offline", [True, False], ids=["told-offline", "no-network"])
def test_a_real_attempt_without_network_is_refused(monkeypatch, tmp_path, offline):
    def getaddrinfo(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    assert "cannot be reached" in refusal("meta-llama/Llama-3.2-1B")


def test_a_hub_model_is_inspected_by_its_configuration_and_loaded_whole(monkeypatch, folder):
    asked = []

    def snapshot_download(repository, allow_patterns, ignore_patterns):
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    info = inspect("some/thing")
    assert asked == [["config.json"]]
    assert (info.kind, info.identity) == ("hub", "")
    loaded = load("some/thing", torch.float32, CPU, seed=0)
    assert asked[1] == ["config.json"], "refused by the configuration before gigabytes are fetched"
    assert "*.safetensors" in asked[-1]
    assert not any("bin" in pattern for pattern in asked[-1])
    assert (loaded.info.kind, loaded.info.spec) == ("hub", "some/thing")
    assert loaded.info.identity == inspect(str(folder)).identity
