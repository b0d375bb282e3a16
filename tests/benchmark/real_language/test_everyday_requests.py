from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark.real_language import everyday_requests
from training_profile import made_up

from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.request_encoders import request_encoder

pytest.importorskip("wordllama")


def test_pairs_are_judged_by_what_a_request_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue, split = made_up(users=9, items=40, attributes=4, events=8)
    backbone = SASRec(SASRec.configure(40)).eval()
    encoder = request_encoder(None, catalogue, backbone, {"words": "wordllama"})
    recommender = RequestRecommender(mask_backbone(backbone, catalogue, encoder=encoder), catalogue)
    for name, value in recommender.masks.generator.named_parameters():
        if name.endswith("gains"):
            value.data.copy_(torch.tensor([1.0, -1.0]))  # what a training would find
    name = catalogue.attributes[0]
    having = catalogue.item_attributes[:, 0]
    more, less = (catalogue.item_ids[int(flags.nonzero()[0, 0])] for flags in (having, ~having))
    lines = ["request\tmore_id\tless_id", f"more {name}\t{more}\t{less}", f"no {name}\t{more}\t{less}"]
    lines.append(f"surprise me\t{more}\t{less}")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(everyday_requests.RequestRecommender, "load", lambda folder: recommender)
    monkeypatch.setattr(everyday_requests, "load_own_data", lambda data: SimpleNamespace(split=split))
    monkeypatch.setattr("sys.argv", ["everyday_requests", "--adapter", "a", "--pairs", str(pairs), "--data", "d"])
    everyday_requests.main()
    printed = capsys.readouterr().out
    assert "0.333 of 3 pairs are right" in printed
    assert "1 of 3 requests move nothing: surprise me" in printed
    assert f"wrong: 'no {name}'" in printed
