"""correct: the number of epochs by either name, and an option of pretrain that changes nothing here."""

from __future__ import annotations

import pandas as pd


def test_epochs_is_another_name_of_crt_epoch_and_e_is_logged_as_idle(pretrained):
    plain = pretrained.ran("correct -c finetune --crt_epoch 2 --lr 0.1").out
    assert "changes nothing" not in plain
    whole = pretrained.hashes("correct-finetune")
    said = pretrained.ran("correct -c finetune --epochs 2 --lr 0.1 -e 7").out
    assert said.count("[info] --max_epoch 7 changes nothing in correct\n") == 1
    assert len(pd.read_csv(pretrained.at("correct-finetune/history.csv"))) == 2
    assert pretrained.hashes("correct-finetune") == whole
