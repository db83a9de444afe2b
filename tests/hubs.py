"""A hub on 127.0.0.1, in the protocol of the Hugging Face hub, with small networks of random weights."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMITS = {"main": "a" * 40, "old": "b" * 40}  # of every repository, by revision


class HubServer:
    """Serves FOLDER/OWNER/NAME/REVISION/FILE as the hub does; `asked` are the paths of its requests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                server.asked.append(self.path)
                match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path.partition("?")[0])
                assert match is not None
                repository, revision, file = match.groups()
                revision = {commit: name for name, commit in COMMITS.items()}.get(revision, revision)
                path = folder / repository / revision / file
                if not path.is_file():
                    known = (folder / repository).is_dir()
                    self.send_response(404 if known else 401)
                    missing = "EntryNotFound" if revision in COMMITS else "RevisionNotFound"
                    self.send_header("X-Error-Code", missing if known else "RepoNotFound")
                    self.send_header("X-Repo-Commit", COMMITS.get(revision, ""))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMITS[revision])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            do_GET = do_HEAD  # noqa: N815

            def log_message(self, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def repository(self, name: str, revision: str = "main") -> Path:
        """The folder of a repository at a revision, made if it is missing."""
        path = self.folder / name / revision
        path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def served(folder: Path) -> Iterator[HubServer]:
    server = HubServer(folder)
    try:
        yield server
    finally:
        server.stop()


def ask_only(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All libraries ask this hub, and keep what they download in this directory.

    They read the environment when they are first imported, which for this process may be long ago.
    """
    from huggingface_hub import constants

    monkeypatch.setenv("LPMBENCH_CACHE", str(cache / "lpmbench"))
    monkeypatch.setenv("TORCH_HOME", str(cache / "torch"))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hf"))


def save_vit(folder: Path, *, seed: int = 0, labels: list[str] | None = None) -> None:
    """A ViT of random weights for images of 32 pixels, as transformers saves it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    names = labels or [f"LABEL_{number}" for number in range(10)]
    config = ViTConfig(image_size=32, patch_size=8, id2label=dict(enumerate(names)), **size)
    ViTForImageClassification(config).save_pretrained(folder)
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7]
    )
    processor.save_pretrained(folder)


def save_timm(folder: Path, name: str, *, seed: int = 0) -> None:
    """A model of timm with random weights, as its repositories hold them."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    save_file(timm.create_model(name, pretrained=False).state_dict(), folder / "model.safetensors")
