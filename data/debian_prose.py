"""Takes English prose out of unpacked Debian packages (called by data/debian_prose).

usage: debian_prose.py DIRECTORY OUT    DIRECTORY has one sub-directory for each unpacked package

Three sources are understood: HTML pages, SWORD texts (the Bible) and R data sets (novels). Documents in OUT are
separated by a line that is only <|endoftext|>. Needs nothing but Python's standard library.
"""
import gzip
import html
import lzma
import os
import re
import struct
import sys
import zlib

SEPARATOR = "<|endoftext|>"
BOOK_DOCUMENT = 6000  # books are cut at paragraph ends near so many characters
SHORTEST_DOCUMENT = 200

BLOCK_TAG = re.compile(r"</?(?:p|div|ul|ol|li|dl|dt|dd|td|th|tr|h[1-6]|blockquote|br|hr|section|article|header|aside|"
                       r"body)\b[^>]*>", re.I)
NO_PROSE = re.compile(r"<!--.*?-->|<(script|style|head|pre|nav|footer|svg|math|table)\b.*?</\1\s*>", re.S | re.I)
ANY_TAG = re.compile(r"<[a-z/!?][^>]*>", re.I)


def html_blocks(page):
    """The text of each block element (paragraph, list item, ...) of a page. Tags are found by pattern, not parsed:
    ten times as fast, and what slips through is no prose."""
    page = BLOCK_TAG.sub("\0", NO_PROSE.sub("\0", page))
    for block in html.unescape(ANY_TAG.sub("", page)).split("\0"):
        if len(block) >= 60:
            yield " ".join(block.split())


def is_prose(text):
    """A sentence or more of running text, not a heading, a list entry, code or a table."""
    if len(text) < 60 or len(text.split()) < 8 or not re.search(r"[.!?:;][\"')\]”’]*$", text):
        return False
    return sum(c.isalpha() or c == " " for c in text) >= 0.78 * len(text)


def read_text(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as file:
        return file.read().decode("utf-8", "replace").replace("\u00b6", "")  # Sphinx marks headings with a pilcrow


def html_documents(root):
    names = re.compile(r"\.html?(\.gz)?$")
    skipped = re.compile(r"(^|/)(genindex|changelog|search|contents|index-|py-modindex|glossary-all)[^/]*$", re.I)
    for path in find(root, names):
        if skipped.search(path):
            continue
        yield [block for block in html_blocks(read_text(path)) if is_prose(block)]


def sword_documents(root):
    """SWORD's zText: OSIS markup in zlib blocks (.bzz) with an index of their offsets and sizes (.bzs)."""
    for path in find(root, re.compile(r"\.bzz$")):
        with open(path, "rb") as file, open(path[:-1] + "s", "rb") as index_file:
            data, index = file.read(), index_file.read()
        blocks = (data[offset:offset + size] for offset, size, _ in struct.iter_unpack("<III", index))
        text = b"".join(map(zlib.decompress, blocks)).decode("utf-8", "replace")
        text = re.sub(r"<(note|title|head)\b[^>]*(?<!/)>.*?</\1>", " ", text, flags=re.S)
        for chapter in re.split(r"<chapter [^>]*>", text):
            verses = re.sub(r"<[^>]*>", " ", chapter)
            verses = re.sub(r"([“‘])\s+", r"\1", re.sub(r"\s+([,.;:!?”’])", r"\1", verses))
            yield [" ".join(verses.split())]


def r_records(data):
    """The objects of an R lazy-load database: big-endian length, then zlib data, or a letter and xz data."""
    while len(data) > 5:
        try:
            if data[4:5] == b"Z":
                stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
                yield stream.decompress(data[5:])
            else:
                stream = zlib.decompressobj()
                yield stream.decompress(data[4:])
        except (lzma.LZMAError, zlib.error):
            return
        data = stream.unused_data


def r_strings(record):
    """The strings (type CHARSXP, 9) of an object serialised by R, in order: flags, length, bytes."""
    at, flags = 0, re.compile(rb"\x00[\x00\x04][\x00\x80]\x09")
    while match := flags.search(record, at):
        at = match.end() + 4
        length = int.from_bytes(record[match.end():at], "big")
        if length < 1 << 24 and at + length <= len(record):
            yield record[at:at + length].decode("utf-8", "replace")
            at += length


def r_documents(root):
    """R data sets of novels: lines of text, an empty string between paragraphs; or whole books in one string."""
    for path in find(root, re.compile(r"/data/Rdata\.rdb$")):
        with open(path, "rb") as file:
            records = list(r_records(file.read()))
        for record in records:
            lines = "\n".join(r_strings(record)).replace("\r", "").split("\n")
            paragraphs = [" ".join(p.split()) for p in "\n".join(lines).split("\n\n")]
            yield from cut_book([p for p in paragraphs if p])


def cut_book(paragraphs):
    if sum(map(len, paragraphs)) < 10 * BOOK_DOCUMENT:  # meta-data, not a book
        return
    document, size = [], 0
    for paragraph in paragraphs:
        document.append(paragraph)
        size += len(paragraph)
        if size >= BOOK_DOCUMENT:
            yield document
            document, size = [], 0
    yield document


def find(root, pattern):
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if pattern.search(path) and os.path.isfile(path) and not os.path.islink(path):
                found.append(path)
    return sorted(found)


def main(directory, out):
    seen = set()  # paragraphs: pages repeat their introductions
    with open(out, "w", encoding="utf-8", newline="\n") as file:
        for package in sorted(os.listdir(directory)):
            root, documents, characters = os.path.join(directory, package), 0, 0
            for source in html_documents, sword_documents, r_documents:
                for paragraphs in source(root):
                    fresh = [p for p in paragraphs if len(p) < 60 or p not in seen]
                    seen.update(fresh)
                    text = "\n".join(fresh)
                    if len(text) < SHORTEST_DOCUMENT:
                        continue
                    file.write(text + "\n" + SEPARATOR + "\n")
                    documents += 1
                    characters += len(text)
            print(f"{package}: {documents} documents, {characters / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
