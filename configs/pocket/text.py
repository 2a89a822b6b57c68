"""Text of the pocket decoder: two public-domain translations of the Bible, read from Debian packages.

    apt-get install bible-kjv bible-kjv-text sword-text-web

`chapters()` gives both as lists of verses under the same canonical chapter number, so that a chapter held out is held
out in both. Fails with the package to install when one is missing.
"""

import re
import shutil
import struct
import subprocess
import zlib
from collections import namedtuple
from pathlib import Path

WEB = Path("/usr/share/sword/modules/texts/ztext/engWEB2015eb")
# One chapter in HELD_OUT_EVERY is held out, in both translations.
HELD_OUT_EVERY, HELD_OUT_AT = 53, 17

BOOKS = (
    "Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth 1_Samuel 2_Samuel 1_Kings 2_Kings 1_Chronicles "
    "2_Chronicles Ezra Nehemiah Esther Job Psalms Proverbs Ecclesiastes Song_of_Solomon Isaiah Jeremiah Lamentations "
    "Ezekiel Daniel Hosea Joel Amos Obadiah Jonah Micah Nahum Habakkuk Zephaniah Haggai Zechariah Malachi Matthew Mark "
    "Luke John Acts Romans 1_Corinthians 2_Corinthians Galatians Ephesians Philippians Colossians 1_Thessalonians "
    "2_Thessalonians 1_Timothy 2_Timothy Titus Philemon Hebrews James 1_Peter 2_Peter 1_John 2_John 3_John Jude "
    "Revelation"
).split()
BOOKS = [name.replace("_", " ") for name in BOOKS]
OSIS = (
    "Gen Exod Lev Num Deut Josh Judg Ruth 1Sam 2Sam 1Kgs 2Kgs 1Chr 2Chr Ezra Neh Esth Job Ps Prov Eccl Song Isa Jer Lam "
    "Ezek Dan Hos Joel Amos Obad Jonah Mic Nah Hab Zeph Hag Zech Mal Matt Mark Luke John Acts Rom 1Cor 2Cor Gal Eph Phil "
    "Col 1Thess 2Thess 1Tim 2Tim Titus Phlm Heb Jas 1Pet 2Pet 1John 2John 3John Jude Rev"
).split()

# Books outside both canons that are used; the Greek Daniel and Esther repeat canonical chapters and are left out.
FURTHER = {
    "Tob": "Tobit", "Jdt": "Judith", "Wis": "Wisdom", "Sir": "Sirach", "Bar": "Baruch", "1Macc": "1 Maccabees",
    "2Macc": "2 Maccabees", "3Macc": "3 Maccabees", "4Macc": "4 Maccabees", "2Esd": "2 Esdras", "PrMan": "Prayer of Manasses",
}

# `number` counts canonical chapters from 0, None for the deuterocanon (training only).
Chapter = namedtuple("Chapter", "title verses number")


def chapters():
    """(World English Bible, King James Bible): lists of `Chapter` in the order of the books."""
    numbers = {}
    kjv = _kjv(numbers)
    return _web(numbers), kjv


def held_out(chapter):
    return chapter.number is not None and chapter.number % HELD_OUT_EVERY == HELD_OUT_AT


def document(chapter):
    return chapter.title + "\n" + "\n".join(chapter.verses) + "\n"


def _kjv(numbers):
    if shutil.which("bible") is None:
        raise SystemExit("the King James text is missing: apt-get install bible-kjv bible-kjv-text")
    dump = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    found, book, last = [], -1, None
    for line in dump.stdout.decode("latin-1").splitlines():
        match = re.match(r"\s*(\d?[A-Za-z]+)\s*(\d+):(\d+)\s+(.*)", line)
        if match is None:
            continue
        name, chapter, _, verse = match.groups()
        if name != last:
            book, last = book + 1, name
        key = (OSIS[book], int(chapter))
        if key not in numbers:
            numbers[key] = len(numbers)
            found.append(Chapter(f"{BOOKS[book]} {chapter}", [], numbers[key]))
        found[-1].verses.append(verse.strip())
    if len(numbers) != 1189:
        raise SystemExit(f"the King James text has {len(numbers)} chapters instead of 1189: another version of bible-kjv-text?")
    return found


def _web(numbers):
    if not WEB.is_dir():
        raise SystemExit("the World English Bible is missing: apt-get install sword-text-web")
    found, current = [], None
    for entry in _sword_entries("ot") + _sword_entries("nt"):
        start = re.search(r'<chapter n="\d+" osisID="(\w+)\.(\d+)"', entry)
        if start:
            book, chapter = start.group(1), int(start.group(2))
            name = BOOKS[OSIS.index(book)] if book in OSIS else FURTHER.get(book)
            current = Chapter(f"{name} {chapter}", [], numbers.get((book, chapter))) if name else None
            found.extend([current] if name else [])
            entry = entry[start.start() :]
        verse = _plain(entry)
        if current is not None and verse and "x-importer" not in entry and 'type="introduction"' not in entry:
            current.verses.append(verse)
    found = [c for c in found if c.verses]
    if sum(c.number is not None for c in found) != 1189:
        raise SystemExit("the World English Bible lacks chapters: another version of sword-text-web?")
    return found


def _sword_entries(testament):
    """Entries of a zText module: blocks (.bzs: offset, length, size), verses (.bzv: block, offset, length)."""
    starts, verses, data = ((WEB / f"{testament}.{end}").read_bytes() for end in ("bzs", "bzv", "bzz"))
    blocks = [zlib.decompress(data[o : o + n]) for o, n, _ in struct.iter_unpack("<III", starts)]
    return [blocks[b][o : o + n].decode() for b, o, n in struct.iter_unpack("<IIH", verses) if n]


def _plain(osis):
    """OSIS to text: notes, headings and variants go, words stay."""
    osis = re.sub(r"<(note|title|rdg|speaker)\b.*?</\1>", " ", osis, flags=re.S)
    osis = re.sub(r"<(l|lb|lg|div|item)\b[^>]*>", " ", osis)
    text = re.sub(r"<[^>]+>", "", osis)
    text = text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return re.sub(r" ([,.;:!?”])", r"\1", re.sub(r"\s+", " ", text)).strip()
