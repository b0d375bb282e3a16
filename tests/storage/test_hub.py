"""Folders on the hub: a local one wins, the network is used only when asked, and only what is read is downloaded."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import PeftModel, get_peft_model

import cramer_peft
from cramer_peft import inject_request_masks, load_request_masks
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, ConfigError, DownloadError
from cramer_peft.storage.hub import ADAPTER_FILES, find_folder, push_folder
from cramer_peft.storage.model_card import MARKER

REQUESTS = ["more horror", None, "nothing sad"]
CONFIG = "adapter_config.json"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses and connections that were asked for; each fails."""
    found: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        found.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


def test_an_adapter_comes_back_as_it_was_pushed(make_model, make_config, x, fake_hub) -> None:
    masks = inject_request_masks(make_model(), make_config())
    address = masks.push_to_hub("me/masks")
    assert address.startswith(f"{fake_hub.url}/me/masks/commit/")
    assert set(fake_hub.files("me/masks")) == {".gitattributes", *ADAPTER_FILES}
    card = ModelCard(fake_hub.files("me/masks")["README.md"].decode())
    assert card.data.tags == ["cramer-peft", "request-mask"]
    again = load_request_masks(make_model(), "me/masks", local_files_only=False)
    assert torch.equal(again(x, request=REQUESTS), masks(x, request=REQUESTS))
    again.load_adapter("me/masks", "second")  # from the cache
    again.set_adapter("second")
    assert torch.equal(again(x, request=REQUESTS), masks(x, request=REQUESTS))


def test_without_being_asked_nothing_is_looked_up(make_model, make_config, x, fake_hub, no_network, tmp_path) -> None:
    masks = inject_request_masks(make_model(), make_config())
    masks.save_pretrained(tmp_path)
    for name in (
        "me/masks",
        "no-such-folder",
        "a/b/c",
        "./me/masks",
        "https://example.org/me/masks",
        str(tmp_path / "x"),
    ):
        with pytest.raises(AdapterFileError) as caught:
            load_request_masks(make_model(), name)
        assert ("hf download me/masks" in str(caught.value)) is (name == "me/masks")
    folder = Path("me/masks")
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    again = load_request_masks(make_model(), "me/masks", local_files_only=False)  # a folder here wins
    assert torch.equal(again(x, request=REQUESTS), masks(x, request=REQUESTS))
    assert no_network == []
    assert fake_hub.asked == []


def test_what_was_downloaded_serves_without_the_network(make_model, make_config, fake_hub, monkeypatch) -> None:
    inject_request_masks(make_model(), make_config()).push_to_hub("me/masks", revision="v1", subfolder="a/b")
    with pytest.raises(
        AdapterFileError, match=r"no a/b/adapter_config.json .*at 'v1'.*local_files_only=False.*--revision v1"
    ):
        load_request_masks(make_model(), "me/masks", revision="v1", subfolder="a/b")
    load_request_masks(make_model(), "me/masks", revision="v1", subfolder="a/b", local_files_only=False)
    fake_hub.asked.clear()
    load_request_masks(make_model(), "me/masks", revision="v1", subfolder="a/b")
    commit = fake_hub.branches["me/masks"]["v1"]
    load_request_masks(make_model(), "me/masks", revision=commit, subfolder="a/b")
    assert fake_hub.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 does
    load_request_masks(make_model(), "me/masks", revision="v1", subfolder="a/b", local_files_only=False)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        load_request_masks(make_model(), "me/other", local_files_only=False)
    assert fake_hub.asked == []


def test_revisions_are_told_apart(make_model, make_config, x, fake_hub) -> None:
    torch.manual_seed(1)
    first = inject_request_masks(make_model(), make_config())
    second = inject_request_masks(make_model(), make_config())
    first.push_to_hub("me/masks")
    old = fake_hub.branches["me/masks"]["main"]
    second.push_to_hub("me/masks")
    for revision, masks in ((None, second), ("main", second), (old, first), (None, second)):
        again = load_request_masks(make_model(), "me/masks", revision=revision, local_files_only=False)
        assert torch.equal(again(x, request=REQUESTS), masks(x, request=REQUESTS))


def test_nothing_else_is_downloaded(make_model, make_config, fake_hub) -> None:
    inject_request_masks(make_model(), make_config()).push_to_hub("me/masks", subfolder="one [1]")
    names = ("model.safetensors", "one [1]/adapter_model.bin", "one [1]/code.py", "one 1/adapter_config.json", CONFIG)
    fake_hub.put("me/masks", dict.fromkeys(names, b"{}"))
    load_request_masks(make_model(), "me/masks", subfolder="one [1]", local_files_only=False)
    assert [name.replace("%20", " ").split("/")[-1] for name in fake_hub.downloads()] == sorted(ADAPTER_FILES)


def test_files_from_the_hub_are_read_as_strictly(make_model, make_config, fake_hub) -> None:
    inject_request_masks(make_model(), make_config()).push_to_hub("me/masks")
    other = make_model()
    other.up.weight.data += 1
    with pytest.raises(BaseModelMismatchError):
        load_request_masks(other, "me/masks", local_files_only=False)
    fake_hub.put("me/masks", {"adapter_model.safetensors": b"\x80\x04pickle"})
    with pytest.raises(AdapterFileError, match="not a readable safetensors file"):
        load_request_masks(make_model(), "me/masks", local_files_only=False)
    fake_hub.put("me/masks", {CONFIG: b'{"peft_type": "LORA"}'})
    with pytest.raises(AdapterFileError):
        load_request_masks(make_model(), "me/masks", local_files_only=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("me/nothing", {}, r"'me/nothing' is no folder here, and the hub did not give it: .*hf auth login"),
        ("me/masks", {"revision": "v9"}, r"Revision Not Found"),
        ("me/masks", {}, r"has no adapter_config.json. It is in 'a/b': pass subfolder=…"),
        ("me/masks", {"subfolder": "c"}, r"has no c/adapter_config.json. It is in 'a/b'"),
        ("me/empty", {}, r"has no adapter_config.json. Give another name or revision"),
        ("me/a--b", {}, r"no folder here"),
    ],
)
def test_the_hub_has_it_not(make_model, make_config, fake_hub, name: str, options: dict, message: str) -> None:
    inject_request_masks(make_model(), make_config()).push_to_hub("me/masks", subfolder="a/b")
    fake_hub.put("me/empty", {"README.md": b""})
    with pytest.raises(DownloadError, match=message):
        load_request_masks(make_model(), name, local_files_only=False, **options)


def test_impossible_places(fake_hub, tmp_path) -> None:
    for subfolder in ("../other", "/etc", "a/../../b"):
        with pytest.raises(ConfigError, match="subfolder"):
            find_folder("me/masks", ADAPTER_FILES, subfolder=subfolder)
    for name, kind in ((tmp_path, "on this machine"), ("nowhere", "no name on the hub")):
        with pytest.raises(ConfigError, match=f"revision: found 'v1', but .* is {kind}"):
            find_folder(name, ADAPTER_FILES, revision="v1")
    for name in ("gpt2", "https://example.org/me/masks", "a/b/c", "me/masks/"):
        with pytest.raises(AdapterFileError, match="neither a folder nor a name on the hub"):
            find_folder(name, ADAPTER_FILES, local_files_only=False)
    for repo in ("masks", "", "a/b/c", "me/.."):
        with pytest.raises(ConfigError, match="repo_id"):
            push_folder(tmp_path, repo, ADAPTER_FILES)
    with pytest.raises(ConfigError, match="subfolder"):
        push_folder(tmp_path, "me/masks", ADAPTER_FILES, subfolder="../a")
    assert find_folder(tmp_path, ADAPTER_FILES, subfolder="a/b") == tmp_path / "a" / "b"
    assert fake_hub.asked == []


def test_a_push_replaces_its_own_files_and_keeps_a_persons_card(fake_hub, tmp_path) -> None:
    (tmp_path / "README.md").write_text(MARKER)
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    push_folder(tmp_path, "me/masks", ADAPTER_FILES)
    assert fake_hub.files("me/masks")["README.md"].decode() == MARKER
    fake_hub.put("me/masks", {"README.md": b"mine", "notes.txt": b"mine"})
    (tmp_path / CONFIG).write_text("{ }")
    (tmp_path / "adapter_model.safetensors").unlink()
    push_folder(tmp_path, "me/masks", ADAPTER_FILES)
    expected = {".gitattributes": b"", "README.md": b"mine", "notes.txt": b"mine", CONFIG: b"{ }"}
    assert fake_hub.files("me/masks") == expected
    push_folder(tmp_path, "me/masks", ADAPTER_FILES, subfolder="a")
    assert fake_hub.files("me/masks")["a/README.md"].decode() == MARKER


def test_what_must_be_private_is_not_made_public(fake_hub, tmp_path) -> None:
    (tmp_path / CONFIG).write_text("{}")
    push_folder(tmp_path, "me/own", ADAPTER_FILES, private=True)
    assert fake_hub.private["me/own"]
    push_folder(tmp_path, "me/own", ADAPTER_FILES, private=True)
    fake_hub.put("me/open", {"README.md": b""})
    with pytest.raises(ConfigError, match=r"others can read 'me/open' .* private=False"):
        push_folder(tmp_path, "me/open", ADAPTER_FILES, private=True)
    assert CONFIG not in fake_hub.files("me/open")
    push_folder(tmp_path, "me/open", ADAPTER_FILES, private=False)
    assert CONFIG in fake_hub.files("me/open")


def test_through_peft(make_model, make_config, x, fake_hub) -> None:
    assert cramer_peft.__version__  # imported, so that PEFT knows the type
    model = get_peft_model(make_model(), make_config()).eval()
    model.push_to_hub("me/peft")
    again = PeftModel.from_pretrained(make_model(), "me/peft").eval()
    assert torch.equal(again(x, request=REQUESTS), model(x, request=REQUESTS))
    ours = load_request_masks(make_model(), "me/peft", local_files_only=False)
    assert torch.equal(ours(x, request=REQUESTS), model(x, request=REQUESTS))
