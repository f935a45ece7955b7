"""Small WMT14 archives with the real names and inner layout and a few hundred made-up sentences, served on loopback.

    with serve(pack(files())) as server:
        subprocess.run(server.command("train.py", "--config", "configs/wmt14_en_de.py", ...), env=server.environment())

All URLs are plain http, so `http_proxy` leads them here. TFDS knows the size and sha256 of the real archives: run as a
script, this file registers those of the small ones instead (in that process only) and then runs the script it is given.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import runpy
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

EUROPARL = "http://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz"
COMMONCRAWL = "http://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz"
NEWS_COMMENTARY = "http://www.statmt.org/wmt14/training-parallel-nc-v9.tgz"
UN = "http://www.statmt.org/wmt13/training-parallel-un.tgz"
GIGA_FREN = "http://www.statmt.org/wmt10/training-giga-fren.tar"
DEV = "http://data.statmt.org/wmt19/translation-task/dev.tgz"

# English, German, French: number, who, does, what, when.
_NUMBERS = """two zwei deux, three drei trois, four vier quatre, five fünf cinq, six sechs six, seven sieben sept,
    eight acht huit, nine neun neuf, ten zehn dix, eleven elf onze, twelve zwölf douze, twenty zwanzig vingt"""
_WHO = """dogs Hunde chiens, cats Katzen chats, children Kinder enfants, teachers Lehrer professeurs,
    doctors Ärzte médecins, farmers Bauern paysans, students Schüler élèves, neighbours Nachbarn voisins,
    soldiers Soldaten soldats, painters Maler peintres, sisters Schwestern sœurs, brothers Brüder frères,
    judges Richter juges, ministers Minister ministres, bakers Bäcker boulangers, birds Vögel oiseaux"""
_DO = """see sehen voient, buy kaufen achètent, find finden trouvent, sell verkaufen vendent, lose verlieren perdent,
    love lieben aiment, draw zeichnen dessinent, bring bringen apportent"""
_WHAT = """trees Bäume arbres, houses Häuser maisons, books Bücher livres, flowers Blumen fleurs,
    letters Briefe lettres, apples Äpfel pommes, chairs Stühle chaises, tables Tische tables,
    bottles Flaschen bouteilles, boats Boote bateaux, windows Fenster fenêtres, keys Schlüssel clés,
    pictures Bilder tableaux, gardens Gärten jardins, streets Straßen rues, bridges Brücken ponts"""
_WHEN = "today heute aujourd'hui, tomorrow morgen demain, often oft souvent, again wieder encore, here hier ici"
_SLOTS = [[entry.split() for entry in words.split(",")] for words in (_NUMBERS, _WHO, _DO, _NUMBERS, _WHAT, _WHEN)]
_SENTENCES = 12 * 16 * 8 * 12 * 16 * 5  # all combinations


def sentence(index: int) -> dict[str, str]:
    """Sentence `index` in English, German and French; no two are the same below index 1,474,560."""
    rest, words = index * 1_000_003 % _SENTENCES, []  # 1,000,003 is prime: a permutation
    for slot in _SLOTS:
        rest, choice = divmod(rest, len(slot))
        words.append(slot[choice])
    number, who, do, other, what, when = words
    order = {
        "en": (number, who, do, other, what, when),
        "de": (number, who, do, when, other, what),
        "fr": (number, who, do, when, other, what),
    }
    text = {language: " ".join(word[column] for word in order[language]) for column, language in enumerate(order)}
    return {language: words[0].upper() + words[1:] + "." for language, words in text.items()}


def sgml(sentences: list[str], language: str) -> str:
    """WMT's SGML: documents of ten segments, numbered from 1 in each document."""
    lines = [f'<refset setid="newstest2014" srclang="any" trglang="{language}">']
    for start in range(0, len(sentences), 10):
        lines += [f'<doc sysid="ref" docid="{start}.{language}" genre="news" origlang="{language}">', "<p>"]
        for number, text in enumerate(sentences[start : start + 10], 1):
            lines.append(f'<seg id="{number}">{escape(text)}</seg>')
        lines += ["</p>", "</doc>"]
    return "\n".join([*lines, "</refset>", ""])


def files(pairs: int = 120, dev: int = 20, test: int = 23) -> dict[str, dict[str, str]]:
    """URL -> name inside the archive -> text, for De-En and Fr-En with `pairs` sentence pairs a training corpus."""
    archives: dict[str, dict[str, str]] = {url: {} for url in (EUROPARL, COMMONCRAWL, NEWS_COMMENTARY, UN, GIGA_FREN)}
    for foreign in ("de", "fr"):
        names = {
            EUROPARL: f"training/europarl-v7.{foreign}-en.",
            COMMONCRAWL: f"commoncrawl.{foreign}-en.",
            NEWS_COMMENTARY: f"training/news-commentary-v9.{foreign}-en.",
        }
        if foreign == "fr":
            names |= {UN: "un/undoc.2000.fr-en.", GIGA_FREN: "giga-fren.release2.fixed."}
        for corpus, (url, stem) in enumerate(names.items()):
            for language in (foreign, "en"):
                name = stem + language + (".gz" if url == GIGA_FREN else "")
                archives[url][name] = _text(range(corpus * pairs, (corpus + 1) * pairs), language)
    archives[COMMONCRAWL]["commoncrawl.de-en.annotation"] = "not text\n"

    archives[DEV] = {f"dev/newstest2013.{lang}": _text(range(900_000, 900_000 + dev), lang) for lang in _LANGUAGES}
    for foreign in ("de", "fr"):
        for kind, language in (("src", foreign), ("ref", "en"), ("src", "en"), ("ref", foreign)):
            held_out = [sentence(i)[language] for i in range(950_000, 950_000 + test)]
            archives[DEV][f"dev/newstest2014-{foreign}en-{kind}.{language}.sgm"] = sgml(held_out, language)
    return archives


_LANGUAGES = ("en", "de", "fr")


def _text(indices: range, language: str) -> str:
    return "".join(sentence(i)[language] + "\n" for i in indices)


def pack(archives: dict[str, dict[str, str]]) -> dict[str, bytes]:
    """URL -> bytes of the .tgz or .tar; the same bytes for the same content."""
    return {url: _tar(content, gzipped=url.endswith(".tgz")) for url, content in archives.items()}


def _tar(content: dict[str, str], gzipped: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:  # TarInfo's owner and time are constants
        for name, text in content.items():
            data = text.encode()
            if name.endswith(".gz"):
                data = gzip.compress(data, mtime=0)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0) if gzipped else buffer.getvalue()


class Server:
    """An http proxy that answers only for `archives` (404 for the rest) and records the requested URLs."""

    def __init__(self, archives: dict[str, bytes], url: str):
        self.archives = archives
        self.url = url
        self.requests: list[str] = []
        self.registered = {u: [len(data), hashlib.sha256(data).hexdigest()] for u, data in archives.items()}
        """What TFDS expects: URL -> (size, sha256). Taken at the start, so that TFDS notices changed archives."""

    def command(self, script: str | Path, *arguments: str) -> list[str]:
        """The command line that runs `script` with the checksums of the small archives registered."""
        return [sys.executable, __file__, json.dumps(self.registered), str(script), *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment that directs http to this server, with `variables` added."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return kept | {"http_proxy": self.url} | variables


@contextlib.contextmanager
def serve(archives: dict[str, bytes]) -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)  # a proxy gets the whole URL
            data = server.archives.get(self.path)
            self.send_response(200 if data is not None else 404)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        server = Server(archives, f"http://127.0.0.1:{proxy.server_port}")
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            proxy.shutdown()
            thread.join()


def _run(registered: dict[str, tuple[int, str]], script: str) -> None:
    from tensorflow_datasets.core import units
    from tensorflow_datasets.core.download import checksums

    load = checksums.load_url_infos

    def load_url_infos(path: object) -> dict[str, checksums.UrlInfo]:
        infos = load(path)
        for url, (size, sha256) in registered.items():
            if url in infos:
                infos[url] = checksums.UrlInfo(units.Size(size), sha256, infos[url].filename)
        return infos

    checksums.load_url_infos = load_url_infos
    sys.path[0] = str(Path(script).resolve().parent)  # as `python script` sets it
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _registered, _script = json.loads(sys.argv[1]), sys.argv[2]
    del sys.argv[:2]
    _run(_registered, _script)
