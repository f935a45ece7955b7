from pathlib import Path

import pytest

from transformer.config import UserError
from transformer.data.tokenizer import Tokenizer
from transformer.tasks.vocabulary import refuse_other


def test_another_tokenizer_than_the_runs_is_refused_in_one_line(tmp_path: Path) -> None:
    ours, given = Tokenizer.train(["red cat " * 9, "blue dog"], vocab_size=280), tmp_path / "spm.model"
    given.write_bytes(ours.model)
    refuse_other(str(given), ours, "runs/x")
    given.write_bytes(b"others")
    told = (
        r"^data\.tokenizer = .* is not the tokenizer that runs/x was trained with, runs/x/tokenizer\.model; give that"
    )
    with pytest.raises(UserError, match=told):
        refuse_other(str(given), ours, "runs/x")
    with pytest.raises(UserError, match="cannot be read"):
        refuse_other(str(tmp_path), ours, "runs/x")
