"""`diffrestorer push`: the card, and what reaches a hub (a small server that speaks the hub's protocol)."""

import base64
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffrestorer.cli import main
from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.evaluation.scoring.metrics import METRICS
from diffrestorer.evaluation.scoring.scores import Summary, write_summaries
from diffrestorer.inference.hub_card import full_card

ROOT = Path(__file__).resolve().parents[2]


class Hub(ThreadingHTTPServer):
    """The four calls of an upload; `commits` holds path -> content of each."""

    commits: list[dict[str, bytes]]
    made: list[dict[str, Any]]
    refusal: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.refusal:
            return self.answer(403, {"error": self.server.refusal})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self.answer(200, {"url": self.server.address + "/me/sand", "id": "me/sand"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer(200, {"files": [{"path": name, **plain} for name in names]})
        if "/commit/" not in self.path:  # the card's metadata are looked at first
            return self.answer(200, {"warnings": [], "errors": []})
        lines = [json.loads(line) for line in body.splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.server.commits.append({f["path"]: base64.b64decode(f["content"]) for f in files})
        self.answer(
            200, {"commitUrl": self.server.address + "/me/sand/commit/0", "commitOid": "0" * 40}
        )

    def answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answers)
    server.commits, server.made, server.refusal = [], [], ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads the hub's address when it is imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "diffrestorer", "push", *words],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


SCORED = [METRICS[name] for name in ("psnr", "ssim", "ms_ssim", "vsi")]
UNAVAILABLE = {"lpips": "no weights", "fid": "no weights; give metric_weights=FOLDER"}


def summary(path: Path, suite: str, rows: dict[tuple[str, str], dict[str, float]]) -> Path:
    """Write summary.csv as `evaluate` does: some metrics undefined, too large for the images, or unavailable."""
    summaries = []
    for (degradation, method), values in rows.items():
        nans = {name: 1 for name, value in values.items() if math.isnan(value)}
        reasons = {} if "ms_ssim" in values else {"ms_ssim": "not defined on 8 of 8 images, alas"}
        made_with = {"weights": "a,b", "seed": "0"} if method == "diff_restorer" else {"seed": ""}
        summaries.append(Summary(suite, degradation, method, 8, values, nans, reasons, made_with))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_summaries(path, summaries, SCORED, UNAVAILABLE)
    return path


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """The folder of an evaluation, as far as `push` reads it."""
    rows = {
        ("noise", "degraded"): {"psnr": 16.3, "ssim": 0.18, "vsi": 0.5},
        ("noise", "diff_restorer"): {"psnr": 19.01183, "ssim": math.nan, "vsi": 1.0},
        ("sand", "diff_restorer"): {"psnr": 15.5, "ssim": 0.5111, "vsi": math.inf, "ms_ssim": 0.0},
    }
    return summary(tmp_path / "evaluated" / "summary.csv", "pairs", rows).parent


@pytest.mark.soak
def test_a_folder_is_one_commit_with_a_full_card(
    hub: Hub, random_model: Path, evaluation: Path
) -> None:
    done = push(
        hub, str(random_model), "me/sand", "--license", "mit", "--scores", str(evaluation), "--private"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/me/sand"
    assert hub.made[0]["visibility"] == "private"
    (files,) = hub.commits
    here = {
        path.relative_to(random_model).as_posix(): path
        for path in random_model.rglob("*")
        if path.is_file()
    }
    assert set(files) == set(here)
    assert all(files[name] == path.read_bytes() for name, path in here.items() if name != "README.md")

    card = files["README.md"].decode()
    data = metadata(card)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "mit",
        "diffusers",
        "image-to-image",
    )
    assert set(DEGRADATIONS) < set(data["tags"])
    results = data["model-index"][0]["results"]
    means = {r["dataset"]["config"]: {m["type"]: m["value"] for m in r["metrics"]} for r in results}
    assert means == {
        "noise": {"psnr": 19.0118, "vsi": 1.0},
        "sand": {"psnr": 15.5, "ssim": 0.5111, "ms_ssim": 0.0},
    }
    assert "unavailable" not in card
    assert "--model me/sand" in card
    assert "| noise, 8 images | psnr | 19.0118 |" in card


@pytest.mark.soak
def test_a_refusal_of_the_hub_is_one_sentence(hub: Hub, random_model: Path) -> None:
    hub.refusal = "you may not write there"
    done = push(hub, str(random_model), "me/sand")
    assert done.returncode == 1
    assert done.stderr.startswith("diffrestorer: me/sand could not be uploaded: ")
    assert "Traceback" not in done.stderr
    assert hub.commits == []


def test_a_dry_run_shows_the_card_and_keeps_its_owner_s_text(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder).mkdir()
    (folder / "model").symlink_to(random_model)
    assert main(["push", str(folder), "me/sand", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "None was given." in shown
    assert "model_index.json" in shown

    own = tmp_path / "own"
    own.mkdir()
    for path in random_model.iterdir():
        if path.name != "README.md":
            (own / path.name).symlink_to(path)
    (own / "README.md").write_text("---\nlicense: mit\n---\n# Mine\nAll about it.\n")
    assert main(["push", str(own), "me/sand", "--license", "mit", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "# Mine\nAll about it.\n" in shown
    assert metadata(shown)["library_name"] == "diffusers"


def test_a_card_keeps_its_owner_s_metadata(random_model: Path, tmp_path: Path) -> None:
    own = "license: mit\nlanguage: [fr]\ndatasets: [x/y]\ntags: [mine, diffusion]\nbase_model: me/base"
    shutil.copytree(random_model, tmp_path / "own")
    (tmp_path / "own" / "README.md").write_text(f"---\n{own}\n---\n# Mine\n")
    found = metadata(full_card(tmp_path / "own", "me/sand", None))
    assert (found["license"], found["language"], found["datasets"]) == ("mit", ["fr"], ["x/y"])
    assert found["base_model"] == "me/base"
    assert found["tags"][:3] == ["mine", "diffusion", "image-restoration"]
    assert metadata(full_card(tmp_path / "own", "me/sand", "apache-2.0"))["license"] == "apache-2.0"


@pytest.mark.parametrize("card", [b"---\nlicense: [x\n---\n# Mine\n", b"# D\xe9j\xe0\n"])
def test_a_damaged_card_is_one_sentence(card: bytes, random_model: Path, tmp_path: Path) -> None:
    shutil.copytree(random_model, tmp_path / "own")
    (tmp_path / "own" / "README.md").write_bytes(card)
    with pytest.raises(
        ValueError, match=r"README\.md cannot be used as a card \(.*\): mend it"
    ) as error:
        full_card(tmp_path / "own", "me/sand", None)
    assert "\n" not in str(error.value)


DAMAGE = {
    "empty": (lambda text: "", "it has no column suite"),
    "binary": (lambda text: "\x00\xff" + text, "is damaged"),
    "cut in a row": (lambda text: text[: text.rindex("15.5")], r"row 4 has not \d+ cells"),
    "cut in a quote": (lambda text: text[: text.rindex(", alas") + 3], "is damaged"),
    "a cell too many": (lambda text: text.replace("8,19.0", "8,8,19.0"), r"row 3 has not \d+ cells"),
    "no number": (lambda text: text.replace("19.01", "I9.01"), "'I9.011830' is no score"),
    "another table": (lambda text: "name,n\nx,1\n", "it has no column suite"),
    "no column of metrics": (
        lambda text: text.replace(",undefined,", ",u,"),
        "it has no column undefined",
    ),
    "no model": (
        lambda text: text.replace("diff_restorer", "nafnet"),
        "has no scores of diff_restorer",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_evaluation_is_one_sentence(
    damage: Callable[[str], str], message: str, evaluation: Path, random_model: Path
) -> None:
    file = evaluation / "summary.csv"
    assert "is damaged" not in full_card(random_model, "me/sand", "mit", evaluation)
    file.write_bytes(damage(file.read_text()).encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        full_card(random_model, "me/sand", "mit", evaluation)
    assert str(evaluation) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_evaluation_without_a_number_is_refused(random_model: Path, tmp_path: Path) -> None:
    rows = {("noise", "diff_restorer"): {"psnr": math.nan}}
    summary(tmp_path / "summary.csv", "pairs", rows)
    with pytest.raises(ValueError, match="has no number for diff_restorer"):
        full_card(random_model, "me/sand", "mit", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "sand"], "'sand' is not of the form USER/NAME"),
        (["MODEL", "me/sa nd"], "Repo id must"),
        (["nothing", "me/sand"], "nothing is not a model folder"),
        (["MODEL", "me/sand", "--scores", "nothing"], "nothing holds no summary.csv"),
        (["MODEL", "me/sand"], "the hub needs a token"),
    ],
)
def test_what_is_wrong_is_said_before_the_hub_is_reached(
    words: list[str], message: str, random_model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["push", *(str(random_model) if word == "MODEL" else word for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
