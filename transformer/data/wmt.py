"""WMT14 German-English and French-English as plain text, through TFDS's own builder and without TensorFlow.

TFDS downloads the archives, checks their sha256, reads and shuffles them. It needs TensorFlow for two things, which are
done here instead: to unpack the archives, and to write the files in which it sorts more than 1 GB.

The test set is all of newstest2014, sacreBLEU's `wmt14/full`. TFDS takes it from WMT19's dev.tgz, whose De-En and Fr-En
files have 3,003 segments each (mtdata's issue 3 and Hugging Face's wmt14 card, which is made from that archive, count
the same; this module counts them again). Some papers score En-De on 2,737 lines, which come from WMT14's
test-filtered.tgz; this module does not read that file.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import logging
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformer.config import UserError
from transformer.data.text import Corpora, Parallel, count_lines
from transformer.files import cached, compared, manifest, write_file
from transformer.packages import require

logger = logging.getLogger("transformer")

DEV, TEST = "newstest2013", "newstest2014"
_COUNTS = "lines.json"
SEGMENTS = {DEV: 3_000, TEST: 3_003}


def write(folder: Path, languages: tuple[str, str], tfds_dir: str | None = None) -> Corpora:
    """The training text, newstest2013 and newstest2014 of De-En or Fr-En, in either direction.

    They are written once, to `folder`/de-en or `folder`/fr-en: train.de, train.en, newstest2013.de, ... Training pairs
    have TFDS's fixed shuffled order. Development and test pairs have the order of the corpus, with entities decoded and
    no pair left out. Archives and prepared data stay in `tfds_dir` (None: TFDS's default, ~/tensorflow_datasets).
    De-En takes about 1.7 GB of download, 10 GB of disk and 4 GB of memory; Fr-En takes 6.7, 60 and 32 GB, because TFDS
    reads whole corpora into memory.

    Raises `UserError` for other languages, and for an archive that can't be downloaded; the message names the path
    where the user can put it by hand.
    """
    if tuple(sorted(languages)) not in (("de", "en"), ("en", "fr")):
        raise UserError(
            f"data.languages = {tuple(languages)!r}: WMT14 is read as ('en', 'de'), ('de', 'en'), ('en', 'fr') or "
            "('fr', 'en'); choose one of these, or set data.corpus to 'text' and name your own files"
        )
    foreign = next(code for code in languages if code != "en")
    folder = Path(folder) / f"{foreign}-en"
    digests = cached(folder, lambda new: _prepare(new, folder, foreign, tfds_dir), manifest, "the text of WMT14")
    for name, count in json.loads((folder / _COUNTS).read_text()).items():
        logger.info("%s: %s lines, sha256 %s", folder / name, f"{count:,}", digests[name]["sha256"])

    source, target = languages
    train, dev, test = (
        Parallel(str(folder / f"{stem}.{source}"), str(folder / f"{stem}.{target}")) for stem in ("train", DEV, TEST)
    )
    return Corpora((train,), dev, test, DEV, f"{TEST} (full)")


def _prepare(new: Path, folder: Path, foreign: str, tfds_dir: str | None) -> None:
    """Download and prepare what is missing, and write the text to `new`, which is renamed to `folder` afterwards."""
    require("the download of WMT14", "tensorflow_datasets", "importlib_resources")
    pair = (foreign, "en")
    with _tfds():
        from tensorflow_datasets.translate.wmt import DATASET_MAP
        from tensorflow_datasets.translate.wmt14 import Wmt14Translate

        root = Path(tfds_dir).expanduser() if tfds_dir else None
        wmt14 = partial(Wmt14Translate, config=f"{foreign}-en", file_format="array_record", data_dir=root)
        try:
            builder = wmt14()
        except ValueError as error:  # prepared earlier in a format that only TensorFlow reads
            raise UserError(f"data.tfds_dir: wmt14_translate/{foreign}-en: {error}; name another folder") from None

        prepared = builder.data_path.exists()
        names = (DEV, TEST) if prepared else [name for split in builder.subsets.values() for name in split]
        urls = {name: DATASET_MAP[name].get_url(foreign)[0] for name in names}
        unpacked = _download(builder, dict.fromkeys(urls.values()))
        if not prepared:
            logger.info("WMT14 %s-%s: TFDS prepares %s", *pair, builder.data_path)
            try:
                builder.download_and_prepare()
            except FileExistsError:
                if not builder.data_path.exists():
                    raise
                builder = wmt14()  # another process was faster

        size = builder.info.splits["train"].num_examples
        logger.info("WMT14 %s-%s: writing %s training pairs to %s", *pair, f"{size:,}", folder)
        _write_pairs(new / "train", pair, _prepared_pairs(builder, "train", pair))
        for name, split in ((DEV, "validation"), (TEST, "test")):
            paths = [unpacked[urls[name]] / path for path in DATASET_MAP[name].get_path(foreign)]
            pairs = list(zip(*map(_segments, paths), strict=True))
            if len(pairs) != SEGMENTS[name]:
                logger.warning("%s has %d segments instead of %d: %s", name, len(pairs), SEGMENTS[name], paths[0])
            # TFDS shuffles the pairs and drops those with an empty side; otherwise its split must be the same.
            if Counter(_prepared_pairs(builder, split, pair)) - Counter(pairs):
                raise UserError(f"{builder.data_path}: its {name} is not that of {paths[0]}; delete it and run again")
            _write_pairs(new / name, pair, ([_decode(text) for text in texts] for texts in pairs))

    counts = {path.name: count_lines(path) for path in sorted(new.iterdir())}
    write_file(new / _COUNTS, (json.dumps(counts, indent=2) + "\n").encode())


def _download(builder: Any, urls: Iterable[str]) -> dict[str, Path]:
    """Download and unpack the archives that are missing, one at a time because the servers ask for this. Returns URL ->
    unpacked folder."""
    from tensorflow_datasets import download
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    folder = Path(builder.data_dir_root) / "downloads"
    try:
        manager = download.DownloadManager(
            download_dir=folder, manual_dir=folder / "manual", dataset_name=builder.name, url_infos=builder.url_infos
        )
    except OSError as error:
        raise UserError(f"data.tfds_dir: {error}; name a folder that can be written") from None
    unpacked = {}
    for url in urls:
        manual = folder / "manual" / url.rsplit("/", 1)[1]
        before = set(folder.glob("*/*.tmp.*"))
        logger.info("%s: downloading, unless it is in %s already", url, folder)
        try:
            archive = manager.download(url)
        except (download.DownloadError, NonMatchingChecksumError, OSError) as error:
            for unfinished in set(folder.glob("*/*.tmp.*")) - before:
                shutil.rmtree(unfinished, ignore_errors=True)
            reason = " ".join(str(error).split("To debug")[0].split())
            if manual.exists():
                raise UserError(f"{manual}: {reason}; delete it, or put a good copy of {url} there") from None
            raise UserError(
                f"cannot download {url} ({reason}); get it by hand, there or from {builder.builder_config.url}, "
                f"put it at {manual} and run again"
            ) from None
        # TFDS's builder looks here before it unpacks the archive itself, for which it needs TensorFlow.
        unpacked[url] = folder / "extracted" / f"{download.Resource(path=archive).extract_method.name}.{archive.name}"
        _unpack(archive, unpacked[url])
    return unpacked


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar or .tgz to `folder`, completely or not at all. Raises `UserError` for a damaged archive and for one
    that would write outside the folder."""

    def make(new: Path) -> None:
        logger.info("unpacking %s", archive)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(new, filter="data")  # refuses absolute paths, .., devices and links that lead out
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(f"{archive}: cannot be unpacked ({error}); delete it and run again") from None

    cached(folder, make, manifest, f"the unpacked {archive.name}")


@contextlib.contextmanager
def _tfds() -> Iterator[None]:
    """Change TFDS for the length of a block: it works without TensorFlow, logs errors only, and prints nothing."""
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import downloader
    from tensorflow_datasets.core.utils import tqdm_utils

    # TFDS sorts a split of more than shuffle.MAX_MEM_BUFFER_SIZE (1 GB) in files. `except ():` catches nothing.
    gfile = SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
    tensorflow = SimpleNamespace(io=SimpleNamespace(gfile=gfile), errors=SimpleNamespace(ResourceExhaustedError=()))
    changes = (
        (shuffle, "tf", tensorflow),
        (shuffle, "BUCKETS_NUMBER", 128),  # all these files are open at once; many systems allow 256
        (downloader, "MAX_RETRIES", 6),  # without a network, 6 take 12 seconds, and TFDS's default of 10 takes 200
        (tqdm_utils, "_active", sys.stderr.isatty()),
    )
    before = [getattr(owner, name) for owner, name, _ in changes]
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [noisy.level for noisy in loggers]
    silent = logging.NullHandler()  # without it, absl's first message would add a permanent handler to the root logger
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        for noisy in loggers:
            noisy.setLevel(logging.ERROR)
        logging.root.addHandler(silent)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.removeHandler(silent)
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)
        for (owner, name, _), value in zip(changes, before, strict=True):
            setattr(owner, name, value)


def _prepared_pairs(builder: Any, split: str, pair: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    """Yield the pairs of a prepared split in TFDS's order, with a thousand in memory at a time."""
    records = builder.as_data_source(split)
    for start in range(0, len(records), 1_000):
        for example in records.__getitems__(range(start, min(start + 1_000, len(records)))):
            yield tuple(example[language].decode() for language in pair)


def _segments(path: Path) -> list[str]:
    """The segments of an SGML file, or the lines of any other file, in order, with entities not decoded."""
    text = path.read_bytes().decode()
    if path.suffix == ".sgm":
        return re.findall(r"<seg\b[^>]*>(.*?)</seg>", text, re.DOTALL)
    return text.removesuffix("\n").split("\n")


def _decode(text: str) -> str:
    """Decode complete entities (&amp;); other ampersands, as in AT&T, stay."""
    return re.sub(r"&#?\w+;", lambda entity: html.unescape(entity[0]), text)


def _write_pairs(stem: Path, pair: tuple[str, str], pairs: Iterable[Iterable[str]]) -> None:
    """Write `stem`.de and `stem`.en, a sentence a line; a line feed inside a sentence becomes a space."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(compared(Path(f"{stem}.{language}"))) for language in pair]
        for count, texts in enumerate(pairs, 1):
            for file, text in zip(files, texts, strict=True):
                file.write((text.replace("\n", " ") + "\n").encode())
            if count % 1_000_000 == 0:
                logger.info("%s: %s pairs written", stem.name, f"{count:,}")
