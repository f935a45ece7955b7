from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import logging
import lzma
import os
import random
import re
import runpy
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from transformer.checkpoint import Checkpoints
from transformer.command_line import Parser, config_file, decode_options, override
from transformer.config import Config, DecodeConfig, ModelConfig, UserError, flatten, from_json, to_json, whole_number
from transformer.inference import shares
from transformer.inference.tally import Tally
from transformer.inference.translator import Translator
from transformer.jobs import refuse_indeterminate
from transformer.tasks import TASKS

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.py")


def show(call, *arguments) -> Config:
    """The config that train.py would use with these arguments."""
    done = call("train.py", "--config", QUICKSTART, "--print-config", *arguments)
    assert (done.code, done.err) == (0, "")
    return from_json(done.out)


def refused(call, program: str, *arguments) -> str:
    """The one-line error of a command with these arguments."""
    done = call(program, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    return done.err


# ---- Overrides ------------------------------------------------------------------------------------------------------


def test_print_config_prints_the_config_as_json(call) -> None:
    assert show(call) == runpy.run_path(QUICKSTART)["config"]
    done = call("train.py", "--config", QUICKSTART, "--print-config")
    assert list(json.loads(done.out)) == ["task", "model", "data", "train", "mesh", "decode", "evaluate"]
    assert done.out == to_json(runpy.run_path(QUICKSTART)["config"])


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--train.steps 500", "train.steps", 500),
        ("--train.steps=500", "train.steps", 500),
        ("--model.dropout 1e-1", "model.dropout", 0.1),
        ("--train.clip_norm 1", "train.clip_norm", 1.0),
        ("--train.peak_learning_rate None", "train.peak_learning_rate", None),
        ("--train.patience=None", "train.patience", None),
        ("--train.patience 3", "train.patience", 3),
        ("--model.kv_heads 1", "model.kv_heads", 1),
        ("--model.pre_norm True", "model.pre_norm", True),
        ("--model.positions learned --model.max_positions 1100", "model.positions", "learned"),
        ("--data.source a.en b.en", "data.source", ("a.en", "b.en")),
        ("--data.source a.en --data.target a.de", "data.source", ("a.en",)),
        ("--data.source", "data.source", ()),
        ("--data.source a b --data.weights 2 0.5", "data.weights", (2.0, 0.5)),
        ("--data.languages en fr", "data.languages", ("en", "fr")),
        ("--data.dev_source dev.en", "data.dev_source", "dev.en"),
        ("--train.init_from runs/other", "train.init_from", "runs/other"),
        ("--mesh.data -1", "mesh.data", -1),
        ("--decode.length_normalization none", "decode.length_normalization", "none"),
        ("--data.source a b --data.target x --data.source c", "data.source", ("a", "b", "c")),
        ("--data.source=a --data.source b --data.source=-c", "data.source", ("a", "b", "-c")),
        ("--data.source --data.source a", "data.source", ("a",)),
        ("--data.source a b c --data.weights 2 --data.weights 0.5 1", "data.weights", (2.0, 0.5, 1.0)),
        ("--decode.banned x --decode.banned=--y", "decode.banned", ("x", "--y")),
    ],
)
def test_overrides_by_dotted_name(call, arguments: str, name: str, value: object) -> None:
    shown = flatten(show(call, *arguments.split()))
    assert shown[name] == value
    assert type(shown[name]) is type(value)
    # Nothing else has changed.
    default = flatten(runpy.run_path(QUICKSTART)["config"])
    assert {n for n in shown if shown[n] != default[n]} <= {word[2:].split("=")[0] for word in arguments.split()}


def test_an_unknown_name_stops_with_the_nearest_known_ones(call) -> None:
    arguments = ("--config", QUICKSTART, "--workdir", "x")
    assert "unknown option --train.stps; did you mean --train.steps" in refused(
        call, "train.py", *arguments, "--train.stps", 3
    )
    assert "did you mean --model.d_model" in refused(call, "train.py", *arguments, "--model.d_modle=3")
    assert "did you mean --train.steps" in refused(call, "train.py", *arguments, "--steps", 3)
    assert "did you mean --workdir" in refused(call, "train.py", "--config", QUICKSTART, "--workdr", "x")
    assert "did you mean --print-config" in refused(call, "train.py", *arguments, "--print_config")
    assert "--help lists every option" in refused(call, "train.py", *arguments, "--qqqqqq")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--train.steps abc", "--train.steps"),
        ("--train.steps 1.5", "--train.steps"),
        ("--train.steps", "--train.steps"),
        ("--train.steps None", "--train.steps"),
        ("--train.steps 0", "train.steps = 0: must be at least 1"),
        ("--data.languages None", "data.languages = None: must name source and target language for data.corpus = 'phr"),
        ("--model.pre_norm maybe", "--model.pre_norm"),
        ("--model.positions alibi", "--model.positions"),
        ("--data.languages en", "--data.languages"),
        ("--data.languages en-th", "--data.languages: give None or STR STR, not 'en-th'"),
        ("--data.weights x", "--data.weights"),
        ("rubbish", "rubbish"),
        ("--config", "--config"),
        ("--dry-run=yes", "--dry-run"),
    ],
)
def test_a_wrong_value_is_told_in_one_line(call, arguments: str, told: str) -> None:
    assert told in refused(call, "train.py", "--config", QUICKSTART, "--workdir", "x", *arguments.split())


@pytest.mark.parametrize(
    ("program", "arguments", "told"),
    [
        ("train.py", "", "--config is missing"),
        ("train.py", "--config configs/quickstart.py", "--workdir is missing"),
        ("train.py", "--config configs/quickstrat.py --workdir x", "no such file; did you mean configs/quickstart.py?"),
        ("train.py", "--config nowhere/at_all.py --workdir x", "--config nowhere/at_all.py: no such file"),
        (
            "train.py",
            "--config configs --workdir x",
            "--config configs: a folder; name a config file, such as",
        ),
        ("train.py", "--config /dev/null --workdir x", "--config /dev/null: not a regular file"),
        ("evaluate.py", "", "--workdir is missing"),
        ("evaluate.py", "--workdir nowhere", "nowhere: no complete checkpoint there"),
        ("evaluate.py", "--workdir nowhere --source a", "a: no such file"),
        ("evaluate.py", "--workdir foo://x", "foo://x: unknown kind of storage; give a gs:// or s3:// bucket, or"),
        ("train.py", f"--config {QUICKSTART} --workdir file:///tmp/x", "file:///tmp/x: unknown kind of storage"),
        ("transformer", "translate foo://x", "foo://x: unknown kind of storage"),
        ("transformer", "convert foo://x y --kv-heads 1", "foo://x: unknown kind of storage"),
        ("evaluate.py", "--workdir", "--workdir"),
        ("transformer", "translate", "translate runs/quickstart"),
        ("transformer", "translate nowhere", "nowhere: no complete checkpoint there"),
        ("transformer", "translate --decode.beam_size 1 nowhere", "the workdir comes first"),
        ("transformer", "average", "workdir"),
        ("transformer", "average nowhere", "nowhere: no complete checkpoint there"),
        ("transformer", "average nowhere --last 0", "argument --last: '0' is not a whole number from 1 to 1000000; "),
        ("transformer", "average nowhere --last 99999999", "argument --last: '99999999' is not a whole number from"),
        ("transformer", "translate nowhere --checkpoint ² --checkpoint 3", "--checkpoint is given twice"),
        ("transformer", "average nowhere --last two", "'two'"),
        ("transformer", "describe", "--config is missing"),
        ("transformer", "describe --config configs/quickstart.py --model.d_modle 3", "did you mean --model.d_model"),
        ("transformer", "describe --config configs/quickstart.py --model.heads 3", "model.heads = 3: must divide"),
        (
            "transformer",
            "trnslate x",
            "unknown verb 'trnslate'; the verbs are translate, generate, score, predict, parse",
        ),
        (  # it would wait for standard input
            "transformer",
            "attention runs/x --decode.beam_size 2 text --output a.html",
            "Unrecognized options: text; python -m transformer attention --help lists every option",
        ),
    ],
)
def test_a_users_mistake_is_one_line(call, monkeypatch, program: str, arguments: str, told: str) -> None:
    monkeypatch.chdir(ROOT)
    assert told in refused(call, program, *arguments.split())


def test_an_argument_that_is_no_option_is_told() -> None:
    """Above all a file or a text, given instead of standard input."""
    read = r"^'in\.txt' is no option; text is read from standard input, as in python -m transformer parse WORKDIR < F"
    with pytest.raises(UserError, match=read):
        override(Config(), ["in.txt", "--decode.beam_size", "2"], "python -m transformer parse")
    with pytest.raises(UserError, match=r"^--input is no option; text is read from standard input, as in python -m tr"):
        override(Config(), ["--input", "in.txt"], "python -m transformer parse")
    with pytest.raises(UserError, match=r"^'x' is no option; --help lists every option$"):
        override(Config(), ["x"], "train.py")


@pytest.mark.parametrize("verb", ["predict", "embed", "fill"])
def test_a_text_as_an_argument_of_a_verb_is_told(call, monkeypatch, verb: str) -> None:
    monkeypatch.chdir(ROOT)
    read = f"'the cat' is no option; text is read from standard input, as in python -m transformer {verb} WORKDIR < F"
    assert read in refused(call, "transformer", verb, "runs/x", "the cat")
    read = read.replace("the cat", "--input")
    assert read in refused(call, "transformer", verb, "runs/x", "--input", "x.txt")
    assert "unrecognized arguments: the --cat; " in refused(call, "transformer", verb, "runs/x", "the", "--cat")


@pytest.mark.parametrize("first", ["--{} 1", "--{}=1", "--{dashed} 1"])
@pytest.mark.parametrize("second", ["--{} 1", "--{}=2", "--{dashed}=2"])
@pytest.mark.parametrize("name", ["train.batch_tokens", "decode.beam_size"])
def test_an_option_that_is_no_list_is_refused_when_given_twice(call, name: str, first: str, second: str) -> None:
    """Tyro would silently use the last one."""
    given = " ".join((first, second)).format(*(name, name), dashed=name.replace("_", "-")).split()
    told = refused(call, "train.py", "--config", QUICKSTART, "--workdir", "x", *given)
    assert told == f"error: --{name} is given twice; leave one of the two out\n"


@pytest.mark.parametrize("name", flatten(Config()))
def test_each_field_adds_up_or_is_refused(name: str) -> None:
    """Depending on its type: lists are tuples of any length."""
    value = {"data.weights": "1.5"}.get(name, "a")
    given = [f"--{name}", value, f"--{name}", value]
    if name in ("data.source", "data.target", "data.weights", "decode.banned"):
        assert len(flatten(override(Config(), given, "x"))[name]) == 2
    else:
        with pytest.raises(UserError, match=f"^--{name} is given twice"):
            override(Config(), given, "x")


@pytest.mark.parametrize(
    ("program", "arguments", "name"),
    [
        ("train.py", "--config a --config a", "--config"),
        ("train.py", f"--config {QUICKSTART} --workdir a --workdir=b", "--workdir"),
        ("train.py", f"--config {QUICKSTART} --dry-run --dry-run", "--dry-run"),
        ("train.py", f"--config {QUICKSTART} --wait-minutes 60 --wait-minutes 60", "--wait-minutes"),
        ("train.py", f"--config {QUICKSTART} --batch auto --batch auto", "--batch"),
        ("evaluate.py", "--workdir a --workdir b", "--workdir"),
        ("evaluate.py", "--workdir a --source b --source c --reference d", "--source"),
        ("evaluate.py", "--workdir a --json --json", "--json"),
        ("transformer", "translate a --jsonl --jsonl", "--jsonl"),
        ("transformer", "translate a --input b --output c --input b", "--input"),
        ("transformer", "score a --checkpoint 3 --checkpoint 3", "--checkpoint"),
        ("transformer", "average a --last 5 --last 5", "--last"),
        ("transformer", "describe --config a --config b", "--config"),
        ("transformer", "convert a b --kv-heads 1 --kv-heads 1", "--kv-heads"),
        ("transformer", "export a b --to hf-marian --to hf-marian", "--to"),
        ("transformer", "plan --mesh 1,1,1 --mesh 1,1,1", "--mesh"),
    ],
)
def test_a_programs_own_option_is_refused_when_given_twice(call, program: str, arguments: str, name: str) -> None:
    told = refused(call, program, *arguments.split())
    assert told == f"error: {name} is given twice; leave one of the two out\n"


@pytest.mark.parametrize("text", ["²", "٣", "9" * 5000, "-1", "1e3", "1_0", "0x1", " 1", "1.0", ""])
def test_what_only_looks_like_a_number_is_told_in_one_line(call, trained, text: str) -> None:
    assert whole_number(text) is None
    assert "--last" in refused(call, "transformer", "average", trained, f"--last={text}")
    assert f"--checkpoint {text}: not in {trained}" in refused(
        call, "transformer", "translate", trained, f"--checkpoint={text}"
    )
    for option, told in (("--profile={}:3", "--profile"), ("--profile=3:{}", "--profile"), ("--process={}/2", "-")):
        arguments = ("--config", QUICKSTART, "--workdir", "x", option.format(text), "--coordinator", "localhost:1")
        assert told in refused(call, "train.py", *arguments)
    with pytest.raises(UserError, match=r"--share .*must be I/N"):
        shares.parse(f"{text}/4")


# ---- Config files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it must define `config = transformer.config.Config(...)`"),
        ("config = {'train': {}}", "it must define `config = transformer.config.Config(...)`"),
        ("config = 1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("from transformer.config import *\nconfig = Config(model=ModelConfig(d_modle=3))", "d_modle"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys\nsys.exit(0)", "it ends the program (SystemExit: 0); it must only define `config`"),
        ("exit('over')", "it ends the program (SystemExit: over)"),
        ("raise BaseException('x')", "BaseException: x"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("f = lambda: f()\nf()", "RecursionError"),
        ("import runpy\nrunpy.run_path(__file__)", "RecursionError"),
        ("config = [0] * 10**15", "MemoryError"),
        ("\0", "null bytes"),
        ("raise OSError(28, 'No space left', 'x')", "OSError: [Errno 28] No space left: 'x'"),
        ("raise ValueError('\\x1b[2J\\r')", "ValueError: \\x1b[2J"),
        ("from transformer.config import *\nconfig = Config(model=None)", "model: must be a ModelConfig, not NoneType"),
        ("from transformer.config import *\nconfig = Config(train=DataConfig())", "train: must be a TrainConfig, not"),
        (
            "from transformer.config import *\nconfig = Config(model=ModelConfig(cross_attention=3))",
            "model.cross_attention: must be a AttentionConfig, not int 3",
        ),
        (
            "import numpy\nfrom transformer.config import *\nconfig = Config(model=ModelConfig(dtype=numpy.ones(3)))",
            "model.dtype = array([1., 1., 1.]): must be one of",
        ),
        (
            "from transformer.config import *\nconfig = Config(train=TrainConfig(log_every=-10**6000))",
            "train.log_every = <int that cannot be shown: ",
        ),
        (
            "from transformer.config import *\nconfig = Config(data=DataConfig(source='a' * 10_000))",
            "data.source = 'aaa",
        ),
        ("from transformer.config import *\nconfig = Config(train=TrainConfig(steps='9'))", "train.steps = '9'"),
        ("from transformer.config import *\nconfig = Config(data=DataConfig(source='a'))", "data.source = 'a'"),
    ],
)
def test_a_broken_config_file_is_told_in_one_line(call, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    warnings.simplefilter("error")  # a warning would be a second line
    assert told in refused(call, "train.py", "--config", tmp_path / "mine.py", "--workdir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(b"config = 1"), "compressed by gzip, not a config file; decompress it first: gzip -dc "),
        (bz2.compress(b"config = 1"), "compressed by bzip2, not a config file; decompress it first: bzip2 -dc "),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed by zstd, not a config file; decompress it first: zstd -d "),
        (b"PK\x03\x04" + bytes(40), "a zip archive, not a config file; unpack it first (unzip "),
        ("config = 1\n".encode("utf-16"), "UTF-16, not a config file; convert it first: iconv -f utf-16 -t utf-8 "),
        (b"<html><body>404</body></html>", "a page of HTML, not a config file; did a download go wrong?"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not a config file; fetch"),
        (b"model:\n  heads: [8\n", "a config file is Python that defines `config`, such as configs/quickstart.py"),
    ],
    ids=["gzip", "bzip2", "zstd", "zip", "utf-16", "html", "lfs", "yaml"],
)
@pytest.mark.parametrize("name", ["a b.py", "config.json"])
def test_a_config_file_of_another_kind_is_told_with_its_tool(call, tmp_path: Path, content, told: str, name) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "w.json").write_text(to_json(Config()))
    assert "w.json: a config file is Python" in refused(call, "train.py", "--config", tmp_path / "w.json")
    for program, *verb in (("train.py",), ("transformer", "describe"), ("transformer", "plan")):
        message = refused(call, program, *verb, "--config", tmp_path / name)
        assert message.startswith(f"error: --config {tmp_path / name}: ") and told in message


def test_what_a_config_file_prints_goes_to_standard_error(call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from transformer.config import Config\nprint('hello')\nconfig = Config()")
    done = call("train.py", "--config", tmp_path / "mine.py", "--print-config")
    assert (done.code, done.err) == (0, "hello\n")
    assert from_json(done.out) == Config()


def test_a_users_mistake_in_a_config_file_keeps_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from transformer.config import UserError\nraise UserError('set DATA first')")
    with pytest.raises(UserError, match=r"^set DATA first$"):
        config_file(str(tmp_path / "mine.py"))


# ---- Help -----------------------------------------------------------------------------------------------------------


def test_help_of_train_names_every_option(call) -> None:
    done = call("train.py", "--help")
    assert (done.code, done.err) == (0, "")
    missing = [name for name in flatten(Config()) if f"--{name} " not in done.out]
    assert missing == []
    for option in ("--config", "--workdir", "--print-config", "--dry-run"):
        assert f"  {option}" in done.out
    # With a config file, its values are the defaults.
    of_quickstart = f"(default: {config_file(QUICKSTART).train.steps})"
    assert of_quickstart in call("train.py", "--config", QUICKSTART, "--help").out
    assert of_quickstart not in done.out


@pytest.mark.parametrize(
    ("program", "verb", "options"),
    [
        (
            "evaluate.py",
            (),
            "--workdir --source --reference --checkpoint --against --json --evaluate.bleu_tokenize --evaluate.metric "
            "--data.fields --data.languages",
        ),
        ("transformer", ("translate",), "workdir --checkpoint --ensemble --jsonl --details"),
        ("transformer", ("score",), "workdir --checkpoint --ensemble"),
        ("transformer", ("generate",), "workdir --checkpoint --ensemble --prompt --stop --samples --jsonl"),
    ],
)
def test_help_of_the_commands_that_translate_names_every_option(call, program, verb, options: str) -> None:
    done = call(program, *verb, "--help")
    assert (done.code, done.err) == (0, "")
    for option in [*options.split(), *(f"--decode.{name}" for name in flatten(DecodeConfig()))]:
        assert option in done.out
    said = " ".join(done.out.replace("│", " ").split())
    # How score, log-probability and length are related.
    assert "'paper' = ((5 + length) / 6)^alpha, 'fairseq' = length^alpha, 'none' = 1." in said
    # Which weights give the alignment.
    aligned = "cross-attention weight in the last decoder layer but one, averaged over heads"
    assert (aligned in said) == (verb in (("translate",), ("score",)))


def test_help_of_describe_names_every_field(call) -> None:
    done = call("transformer", "describe", "--help")
    assert (done.code, done.err) == (0, "")
    assert [name for name in ("config", *flatten(Config())) if f"--{name} " not in done.out] == []
    of_quickstart = f"(default: {config_file(QUICKSTART).train.steps})"
    assert of_quickstart in call("transformer", "describe", "--config", QUICKSTART, "--help").out


def test_describe_tells_how_parameters_start(call) -> None:
    lines = call("transformer", "describe", "--config", QUICKSTART).out.splitlines()
    assert lines[0].endswith("start (scaled)")
    starts = {line.split()[0]: line for line in lines[1:] if len(line.split()) > 4}
    # 512 rows, and 4 sub-layers in the encoder.
    assert starts["encoder/layers/*/feed_forward/w2"].endswith(f"uniform, +-{(3 / 512 / 4) ** 0.5:.4f}")
    assert starts["embedding/table"].endswith(f"normal, {128**-0.5:.4f}")
    assert starts["encoder/layers/*/feed_forward/b1"].endswith("  0")


def test_describe_takes_the_vocabulary_that_the_model_is_given(call) -> None:
    done = call("transformer", "describe", "--config", QUICKSTART, "--model.vocab_size", 1_234)
    assert "1234x128" in done.out
    asked = ("--model.d_ff", 2**31 - 1, "--kv")
    assert "the parameters need at least" in call("transformer", "describe", "--config", QUICKSTART, *asked).err


def test_a_cache_that_cannot_be_written_gives_one_warning(call, workdir, tmp_path, monkeypatch) -> None:
    """Not one for each program that JAX compiles."""
    import jax

    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "compiled").symlink_to("/proc")  # not even the superuser can write there
    monkeypatch.setenv("TRANSFORMER_CACHE", str(tmp_path))
    done = call("evaluate.py", "--workdir", workdir, "--checkpoint", "last", "--decode.beam_size", 3)
    assert (done.code, done.err.count("warning: compiled programs are not cached: ")) == (0, 1)
    assert jax.config.jax_compilation_cache_dir == before


def test_deterministic_refuses_the_kernel_that_cannot_be(monkeypatch) -> None:
    model = ModelConfig(attention_kernel="cudnn", dtype="bfloat16")
    refuse_indeterminate(Config(model=model))  # not used on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"--model.attention_kernel plain"):
        refuse_indeterminate(Config(model=model))
    refuse_indeterminate(Config(model=dataclasses.replace(model, dtype="float32")))


def test_help_of_the_others(call) -> None:
    for verb in ("translate", "average", "describe"):
        assert verb in call("transformer").out
    done = call("transformer", "average", "--help")
    assert (done.code, done.err) == (0, "")
    assert "--last" in done.out


# ---- The parts ------------------------------------------------------------------------------------------------------


def test_decoding_options_are_checked_against_the_whole_config() -> None:
    learned = override(Config(), ["--model.positions", "learned", "--model.max_positions", "1075"], "x")
    assert decode_options(learned, ["--decode.beam_size", "9"], "x").beam_size == 9
    with pytest.raises(UserError, match=r"model.max_positions = 1075"):
        decode_options(learned, ["--decode.max_extra_length", "51"], "x")
    with pytest.raises(UserError, match=r"decode.beam_size = 0"):
        decode_options(Config(), ["--decode.beam_size", "0"], "x")


def test_the_parser_takes_no_abbreviations() -> None:
    parser = Parser("x", None)
    parser.add_argument("--workdir")
    assert parser.options() == ["help", "workdir"]
    assert parser.parse_known_args(["--work", "y"])[1] == ["--work", "y"]


def test_log_goes_to_standard_error_and_warnings_say_so(call, monkeypatch) -> None:
    import transformer.evaluation

    def talk(*_) -> None:
        logging.getLogger("transformer").info("a line")
        logging.getLogger("transformer").warning("careful")
        raise KeyboardInterrupt

    monkeypatch.setattr(transformer.evaluation, "set_up_jax", talk)
    done = call("evaluate.py", "--workdir", "x")
    assert done.code == 130
    assert done.out == ""
    assert done.err.splitlines()[:2] == ["a line", "warning: careful"]
    assert done.err.splitlines()[2] == "interrupted"


def test_an_error_of_ours_keeps_its_traceback(call, monkeypatch) -> None:
    import transformer.evaluation

    def fail(*_) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(transformer.evaluation, "set_up_jax", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        call("evaluate.py", "--workdir", "x")


# ---- In processes of their own --------------------------------------------------------------------------------------


def test_entry_points_as_processes(environment, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--config", QUICKSTART, "--train.stps", "3"],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown option --train.stps; did you mean --train.steps")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run(
        [sys.executable, ROOT / "evaluate.py", "--workdir", "none"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_reader_that_leaves_is_no_error(environment) -> None:
    help = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"PYTHONUNBUFFERED": "1"},
    )
    assert help.stdout.readline().startswith(b"usage: train.py")
    help.stdout.close()
    assert help.stderr.read() == b""
    assert help.wait() in (0, 141)  # 0 if everything was written before


# ---- Text of other forms --------------------------------------------------------------------------------------------


def sgml(path: Path, kind: str, lines: list[str]) -> Path:
    segments = "\n".join(f'<seg id="{i}">{line}</seg>' for i, line in enumerate(lines, 1))
    path.write_text(f'<{kind} setid="t"><doc sysid="ref" docid="d1">\n<p>\n{segments}\n</p>\n</doc></{kind}>\n')
    return path


def test_a_test_set_is_scored_whatever_it_is_packed_in(call, trained, tiny, tmp_path: Path) -> None:
    """Plain, in SGML, compressed under any name, or through a pipe: the scores are the same."""
    sides = {side: (tiny.folder / f"test.{side}").read_text() for side in ("en", "de")}
    for side, text in sides.items():
        (tmp_path / f"t.{side}").write_text(text)
        (tmp_path / f"packed.{side}").write_bytes(lzma.compress(text.encode()))
        sgml(tmp_path / f"t.{side}.sgm", {"en": "srcset", "de": "refset"}[side], text.splitlines())

    def scores(source: Path, reference: Path) -> tuple:
        done = call("evaluate.py", "--workdir", trained, "--source", source, "--reference", reference, "--json")
        assert done.code == 0, done.err
        result = json.loads(done.out)
        return tuple(result[name] for name in ("sentences", "bleu", "chrf", "signature"))

    expected = scores(tmp_path / "t.en", tmp_path / "t.de")
    assert expected[0] == 20 and expected[1] > 0
    for name in ("t.{}.sgm", "packed.{}"):
        assert scores(*(tmp_path / name.format(side) for side in ("en", "de"))) == expected
    for side in sides:
        os.mkfifo(tmp_path / f"pipe.{side}")
        thread = threading.Thread(target=(tmp_path / f"pipe.{side}").write_text, args=(sides[side],), daemon=True)
        thread.start()
    assert scores(tmp_path / "pipe.en", tmp_path / "pipe.de") == expected
    sgml(tmp_path / "t.de.sgm", "refset", sides["de"].splitlines()[1:])
    done = call(
        *("evaluate.py", "--workdir", trained),
        *("--source", tmp_path / "t.en.sgm", "--reference", tmp_path / "t.de.sgm"),
    )
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"error: {tmp_path / 't.en.sgm'} has 20 lines but ")


def test_standard_input_is_opened_by_its_content(call, trained, monkeypatch, tmp_path: Path) -> None:
    lines = ["the red cat sees", "a dog"]
    text = "".join(f"{line}\n" for line in lines).encode()
    out = []
    for content in (
        text,
        gzip.compress(text),
        bz2.compress(text),
        sgml(tmp_path / "t.sgm", "srcset", lines).read_bytes(),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        done = call("transformer", "translate", trained)
        assert done.code == 0, done.err
        out.append(done.out)
    assert out[0].count("\n") == 2 and out == out[:1] * 4
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x28\xb5\x2f\xfd" + bytes(100))))
    told = refused_after_log(call, "transformer", "translate", trained)
    assert told == "error: standard input: compressed by zstd, not plain text; decompress it first: zstd -d FILE"
    noise = random.Random(0).randbytes(5_000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x89PNG\r\n\x1a\n" + noise)))
    told = refused_after_log(call, "transformer", "translate", trained)
    assert told == "error: standard input: binary, not plain text; give the text that it was made from"


def test_training_refuses_a_pipe_at_once(call, tiny, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    arguments = ("--config", tiny.config, "--workdir", tmp_path / "run", "--data.source", tmp_path / "pipe")
    done = call("train.py", *arguments)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith(f"error: data.source: {tmp_path / 'pipe'} is a pipe or a device, but ")
    # It would wait for ever for somebody who writes to it.
    done = call("train.py", *arguments[:4], "--data.tokenizer", tmp_path / "pipe")
    assert done.err.splitlines()[-1].startswith(f"error: {tmp_path / 'pipe'} is a pipe or a device, but it is read ")
    assert not (tmp_path / "run/config.json").exists()


# ---- JSON lines -----------------------------------------------------------------------------------------------------


@pytest.fixture
def give(call, monkeypatch):
    """`give(objects or lines, "translate", ...)`: the verb with these lines as its input; the objects it writes."""

    def give(lines, *arguments) -> list[dict]:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        done = call("transformer", *arguments)
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.split("\n")[:-1]]

    return give


def test_translate_json_lines(give, trained) -> None:
    lines = [{"id": 1, "source": "the red cat sees"}, {"source": "", "id": 2}, {"source": "a dog", "prefix": "Katze"}]
    beam = ("--decode.beam_size", 3)
    found = give(lines, "translate", trained, "--jsonl", "--details", "--decode.n_best", 2, *beam)
    assert [{name: record[name] for name in line} for record, line in zip(found, lines, strict=True)] == lines
    assert found[1] == lines[1] | {"translation": "", "score": None, "n_best": []}
    for record in (found[0], found[2]):
        assert len(record["n_best"]) == 2
        assert record["n_best"][0] == {"translation": record["translation"], "score": record["score"]}
        assert len(record["pieces"]) == len(record["log_probs"]) == len(record["alignment"])
        assert "".join(record["source_pieces"]).replace("\u2581", " ") == f" {record['source']}</s>"
        assert set(record["alignment"]) <= set(range(len(record["source_pieces"])))
        length = len(record["pieces"])
        over = ((5 + length) / 6) ** 0.6
        assert sum(record["log_probs"]) / over == pytest.approx(record["score"], rel=1e-4)
    assert found[2]["translation"].startswith("Katze")
    # Scoring the given translation gives the same score.
    pairs = [{"source": record["source"], "target": record["translation"]} for record in found]
    scored = give(pairs, "score", trained)
    assert [list(record) for record in scored] == [
        ["source", "target", "score", "pieces", "log_probs", "source_pieces", "alignment"]
    ] * 3
    for i in (0, 2):
        if scored[i]["pieces"] == found[i]["pieces"]:
            assert scored[i]["score"] == pytest.approx(found[i]["score"], rel=1e-4)
    # An ensemble of the same run twice equals this run.
    (twice,) = give(lines[:1], "translate", trained, "--ensemble", trained, "--jsonl", *beam)
    assert twice["translation"] == found[0]["translation"]


def test_mistakes_are_told_before_the_model_is_loaded(call, trained, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Translator, "of", lambda *_: pytest.fail("it is loaded"))
    no_room = "error: --details and --decode.n_best need --jsonl: a line of text has no room for them"
    assert refused(call, "transformer", "translate", trained, "--details") == f"{no_room}\n"
    # This reads the workdir's config.
    assert refused_after_log(call, "transformer", "translate", trained, "--decode.n_best", 2) == no_room
    (tmp_path / "in").write_text("a\n")
    (tmp_path / "in.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    files = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    for arguments, told in (
        (files[:2], "--input and --output go together"),
        (("--share", "0/2"), "--share needs both"),
        ((*files, "--share", "2/2"), "--share 2/2: must be I/N"),
        (("--input", tmp_path / "no", *files[2:]), "/no: No such file or directory"),
        (("--input", tmp_path / "in.zst", *files[2:]), "/in.zst: compressed by zstd, not plain text; decompress"),
        ((*files[:3], tmp_path / "in"), "/in exists; name another file"),
        ((*files[:3], tmp_path / "no/out"), "/no/out: there is no folder"),
    ):
        assert told in refused(call, "transformer", "translate", trained, *arguments)


def test_shares_of_one_job_are_those_of_the_same_models_and_options(call, trained, workdir, monkeypatch) -> None:
    """Each model of an ensemble counts, by its content, not by its path."""
    asked, tally = [], Tally()
    of = lambda chosen, options: SimpleNamespace(names=[one.name for one in chosen], tally=tally)  # noqa: E731
    monkeypatch.setattr(Translator, "of", of)
    monkeypatch.setattr(shares, "translate_share", lambda *given: asked.append((given[5], given[0].args[0].names)))
    files = ("--input", trained / "config.json", "--output", workdir.parent / "out", "--share", "0/2")

    def about(first: Path, *arguments: object) -> str:
        done = call("transformer", "translate", first, *files, *arguments)
        assert done.code == 0, done.err
        told, names = asked.pop()
        # The log names each model.
        lines = [line for line in done.err.splitlines() if line.startswith("using checkpoint ")]
        assert [line.split()[2] for line in lines] == [str(name) for name in names]
        return told

    elsewhere = workdir.rename(workdir.with_name("elsewhere"))
    same, both = about(trained), about(trained, "--ensemble", elsewhere)
    assert len({same, both, about(trained, "--decode.beam_size", 3), about(trained, "--jsonl")}) == 4
    assert about(elsewhere) == same and about(elsewhere, "--ensemble", trained) == both
    assert about(trained, "--decode.streams", 1) == same
    assert len({same, about(trained, "--decode.dtype", "float32"), about(trained, "--decode.dtype", "int8")}) == 3
    with monkeypatch.context() as patch:  # on a GPU 'auto' is another type, so its shares differ from those of a CPU
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert about(trained) != same
    Checkpoints(elsewhere).average(2)
    now = about(trained, "--ensemble", elsewhere)
    Checkpoints(elsewhere).average(1)
    assert len({both, now, about(trained, "--ensemble", elsewhere)}) == 3


def test_a_broken_json_line_is_told_in_one_line(call, trained, monkeypatch) -> None:
    for verb, told in (("translate", "no field 'source'"), ("score", "no field 'source'")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"target": "x"}\n')))
        arguments = [verb, trained, *(["--jsonl"] if verb == "translate" else [])]
        assert refused_after_log(call, "transformer", *arguments).startswith(f"error: line 1: {told}")


def refused_after_log(call, program: str, *arguments: object) -> str:
    """As `refused`, if the log has already named the checkpoint."""
    done = call(program, *arguments)
    assert (done.code, done.out) == (2, "")
    first, told = done.err.splitlines()
    assert first.startswith("using checkpoint ")
    return told


@pytest.mark.parametrize(("platforms", "reason"), [("cuda", ""), ("foo", "Unable to initialize backend 'foo'")])
def test_devices_that_are_not_there_are_told_in_one_line(environment, tmp_path: Path, platforms, reason) -> None:
    """Before any other check of a command that computes."""
    command = [sys.executable, "-m", "transformer", "translate", str(tmp_path)]
    given = environment | {"JAX_PLATFORMS": platforms}
    done = subprocess.run(command, env=given, capture_output=True, text=True, input="a\n", timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: JAX cannot use the devices that JAX_PLATFORMS={platforms} asks for (")
    assert reason in error and error.endswith("set JAX_PLATFORMS=cpu to run on the CPU")


VARIABLES = [
    ("JAX_ENABLE_X64", "maybe", ["translate", "."]),
    ("JAX_DEFAULT_MATMUL_PRECISION", "bogus", ["export", ".", "out", "--to", "hf-marian"]),
    ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1s", ["describe", "--config", "quickstart", "--kv"]),
]


@pytest.mark.parametrize(("name", "value", "arguments"), VARIABLES)
def test_a_variable_that_jax_cannot_read_is_told_in_one_line(environment, name: str, value: str, arguments) -> None:
    given = environment | {name: value}
    command = [sys.executable, "-m", "transformer", *arguments]
    done = subprocess.run(command, env=given, capture_output=True, text=True, input="", timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: JAX cannot read its environment variables (")
    assert f"{name}={value}" in done.stderr and "correct or unset" in done.stderr


def test_help_fits_any_terminal(environment) -> None:
    command = [sys.executable, "-m", "transformer", "translate", "--help"]
    done = subprocess.run(command, env=environment | {"COLUMNS": "2"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--decode.beam_size" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_wrong_value_is_told_alike_in_every_encoding(environment, encoding: str) -> None:
    """Tyro draws boxes, of other characters where the output's encoding lacks those for it."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", QUICKSTART, "--workdir", "x", "--data.languages=en"]
    given = environment | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: --data.languages: give None or STR STR, not 'en'\n")


def test_64_bits_are_refused(call, trained) -> None:
    with jax.enable_x64(True):
        done = call("transformer", "translate", trained)
    assert done.code == 2
    assert done.err == "error: JAX_ENABLE_X64 is set, but this program computes in 32 bits; unset it, or set it to 0\n"


PAGES = """
import os, sys
from transformer.command_line import ask_for_huge_pages
if sys.argv[1:] == ["notebook"]:
    sys.argv[0] = "a cell"
ask_for_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:], sep="|")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_training_asks_for_large_pages_unless_the_variable_is_set(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PAGES)

    def output(*arguments: str, **variables: str) -> str:
        plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        command = [sys.executable, str(tmp_path / "program.py"), *arguments]
        return subprocess.run(command, env=plain | variables, capture_output=True, text=True, check=True).stdout

    assert output("a b", "c") == "glibc.malloc.hugetlb=1|a b|c\n"
    assert output("a", GLIBC_TUNABLES="glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0|a\n"
    assert output("notebook") == "None|notebook\n"


@pytest.mark.parametrize("name", ["quickstart", "gpt_files", "bert_files", "finetune_files"])
def test_too_little_memory_to_train_names_options_of_the_task(name: str, call, tmp_path: Path, monkeypatch) -> None:
    config = config_file(name)

    def ran_out(config: object) -> None:
        raise MemoryError

    monkeypatch.setitem(TASKS, config.task, lambda: SimpleNamespace(check_cache=ran_out))
    done = call("train.py", "--config", name, "--workdir", tmp_path / "run")
    told = done.err.splitlines()[-1]
    named = {*re.findall(r"\b(?:train|tune|data)\.[a-z_]+", told)}
    assert done.code == 2 and told.startswith("error: memory ran out (MemoryError); lower ")
    assert "train.accumulate" in named <= {*flatten(config)}
    assert ("tune.batch_rows" if config.task == "labels" else "train.batch_tokens") in named


@pytest.mark.parametrize(
    ("program", "arguments"),
    [("transformer", ["translate", "{}"]), ("evaluate.py", ["--workdir", "{}"])],
    ids=["translate", "evaluate"],
)
def test_too_little_memory_for_one_sentence_names_fewer_hypotheses(call, trained, monkeypatch, program, arguments):
    """10,000 beams of a single sentence: fewer sentences would not help."""

    def ran_out(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Translator, "of", ran_out)
    told = call(program, *(str(trained) if argument == "{}" else argument for argument in arguments)).err
    assert told.splitlines()[-1].startswith("error: memory ran out")
    for option in ("batch_tokens", "batch_sentences", "streams", "beam_size", "n_best"):
        assert f"--decode.{option}" in told


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_training_starts_where_standard_streams_are_closed(closed: str) -> None:
    """Whoever closes standard output may want the log and the checkpoints."""
    program = Path(__file__).parents[1] / "train.py"
    variables = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = f"{sys.executable} {program} --config quickstart --print-config {closed}"
    done = subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True)
    assert done.returncode == 2  # there is no place to print
    told = "error: standard output cannot be written (Bad file descriptor); make room there, or redirect it"
    assert done.stderr.splitlines() == ([] if "2>&-" in closed else [told])
