"""Hub on this machine that takes uploads: accounts, repositories, git-lfs with its storage on another port, commits."""

import base64
import json
import re
from dataclasses import replace
from urllib.parse import urlsplit

import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard

from tests.hub_server import TOKEN, Answer, HubServer, Repo, Request, error, git_digest, sha256

READ_TOKEN = "hf_loopbackReader9876543210"
"""A token that may only read."""

USER, ORGANIZATION = "maker", "workshop"
"""Owner of the token, and the organization of that user."""

_WRITE = re.compile(
    r"/api/models/(?P<id>[^/]+/[^/]+)/(?P<verb>preupload|commit)/(?P<revision>[^/]+)"
)
_BATCH = re.compile(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


class UploadServer(HubServer):
    """The Hub, its CDN and its storage for uploads. `stored` has the large files that it received."""

    def __init__(self) -> None:
        """Start the servers."""
        self.stored: dict[str, bytes] = {}
        super().__init__()

    def answer(self, request: Request) -> Answer:
        """Return the response to a request."""
        for fault in self.faults:
            if (answer := fault(request)) is not None:
                return answer
        path = urlsplit(request.path).path
        if request.host == "cdn" and request.method == "PUT":
            return self._store(path.rpartition("/")[2], request)
        role = {f"Bearer {TOKEN}": "write", f"Bearer {READ_TOKEN}": "read"}.get(
            request.headers.get("authorization", "")
        )
        if path == "/api/whoami-v2":
            return self._account(role)
        if path == "/api/validate-yaml":
            return self._validate(json.loads(request.body)["content"])
        match = _WRITE.fullmatch(path) or _BATCH.fullmatch(path)
        if match or path in ("/api/repos/create", "/api/lfs/verify"):
            if role != "write":
                return error(401 if role is None else 403, message="You have no write access")
            return self._write(request, path, match)
        if role == "read":
            headers = {**request.headers, "authorization": f"Bearer {TOKEN}"}
            request = replace(request, headers=headers)
        return self._with_card_data(super().answer(request))

    def _account(self, role: str | None) -> Answer:
        """Answer who the owner of a token is."""
        if role is None:
            return error(401, message="Invalid username or password.")
        account = {
            "type": "user",
            "name": USER,
            "orgs": [{"name": ORGANIZATION, "roleInOrg": "write"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}},
        }
        return Answer(json.dumps(account).encode())

    def _validate(self, content: str) -> Answer:
        """Check the metadata of a card."""
        try:
            ModelCard(content)
        except (ValueError, yaml.YAMLError) as failure:
            return Answer(json.dumps({"errors": [{"message": str(failure)}]}).encode(), 400)
        return Answer(json.dumps({"errors": [], "warnings": []}).encode())

    def _write(self, request: Request, path: str, match: "re.Match[str] | None") -> Answer:
        """Answer a request of an account that may write."""
        if path == "/api/repos/create":
            return self._create(json.loads(request.body))
        if path == "/api/lfs/verify":
            is_stored = json.loads(request.body)["oid"] in self.stored
            return Answer(b"{}") if is_stored else error(404, message="not stored")
        assert match is not None
        repo = self.repos.get(("model", match["id"]))
        if repo is None:
            return error(404, "RepoNotFound", "Repository not found")
        if match.re is _BATCH:
            return self._batch(json.loads(request.body))
        if match["verb"] == "preupload":
            return self._preupload(repo, json.loads(request.body))
        return self._commit(repo, match["id"], request.body)

    def _create(self, payload: dict[str, str]) -> Answer:
        """Create a repository."""
        owner = payload["organization"] or USER
        repo_id = f"{owner}/{payload['name']}"
        if owner not in (USER, ORGANIZATION):
            return error(403, message=f"You don't have the rights to create a model under {owner}")
        exists = ("model", repo_id) in self.repos
        if not exists:
            repo = self.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
            repo.private = payload.get("visibility") == "private"
        return Answer(json.dumps({"url": f"{self.url}/{repo_id}"}).encode(), 409 if exists else 200)

    def _preupload(self, repo: Repo, payload: dict[str, list[dict[str, object]]]) -> Answer:
        """Answer which files go to git-lfs."""
        files = repo.commits[repo.refs["main"]]
        modes = []
        for file in payload["files"]:
            name = str(file["path"])
            is_large = self.is_lfs(name, bytes(int(str(file["size"]))))
            mode = {
                "path": name,
                "uploadMode": "lfs" if is_large else "regular",
                "shouldIgnore": False,
            }
            if name in files:
                mode["oid"] = sha256(files[name]) if is_large else git_digest(files[name])
            modes.append(mode)
        return Answer(json.dumps({"files": modes}).encode())

    def _batch(self, payload: dict[str, list[dict[str, object]]]) -> Answer:
        """Answer where the contents go that are not stored yet."""
        objects = []
        for item in payload["objects"]:
            if item["oid"] not in self.stored:
                upload = {"href": f"{self.cdn_url}/upload/{item['oid']}?X-Amz-Signature=secret"}
                item["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.url}/api/lfs/verify"},
                }
            objects.append(item)
        return Answer(json.dumps({"transfer": "basic", "objects": objects}).encode())

    def _store(self, oid: str, request: Request) -> Answer:
        """Store a content whose digest is right."""
        if sha256(request.body) != oid:
            return error(400, message="BadDigest")
        self.stored[oid] = self.content[oid] = request.body
        return Answer()

    def _commit(self, repo: Repo, repo_id: str, body: bytes) -> Answer:
        """Add a commit from lines of JSON."""
        lines = [json.loads(line) for line in body.splitlines()]
        head = repo.refs["main"]
        files = dict(repo.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head) != head:
                return error(
                    412, message="A commit has happened since. Please refresh and try again."
                )
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(files)
        answer = {"commitOid": commit, "commitUrl": f"{self.url}/{repo_id}/commit/{commit}"}
        return Answer(json.dumps(answer).encode())

    def _with_card_data(self, answer: Answer) -> Answer:
        """Add the metadata of the card to the description of a model."""
        if not answer.body.startswith(b'{"id": ') or answer.status != 200:
            return answer
        info = json.loads(answer.body)
        card = self.repos["model", info["id"]].commits[info["sha"]].get("README.md")
        if card is not None:
            info["cardData"] = ModelCard(card.decode()).data.to_dict()  # type: ignore[no-untyped-call]
        return replace(answer, body=json.dumps(info).encode())
