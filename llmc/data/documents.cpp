#include "llmc/data/documents.h"

#include <simdjson.h>

#include <cstring>
#include <vector>

#include "llmc/base/errors.h"
#include "llmc/base/gzip.h"
#include "llmc/data/pretokenize.h"

namespace llmc {

namespace {

constexpr std::string_view separator = "<|endoftext|>";
constexpr size_t text_piece = size_t(1) << 20;       // text comes in parts of about this many bytes
constexpr size_t longest_uncut = size_t(1) << 24;    // text without a good place to cut is cut anywhere after this many
constexpr size_t longest_json_line = size_t(1) << 30;

enum class Kind { unknown, json, text };

Kind kind_of(std::string_view path) {
    if (path.ends_with(".gz")) path.remove_suffix(3);
    if (path.ends_with(".json") || path.ends_with(".jsonl")) return Kind::json;
    return path.ends_with(".txt") ? Kind::text : Kind::unknown;
}

// Lines of a plain or gzipped file.
struct LineReader {
    GunzipReader file;
    std::vector<char> buffer = std::vector<char>(size_t(1) << 20);
    size_t begin = 0, end = 0;    // unread bytes of the buffer
    bool at_end = false;          // no more bytes come
    int64_t line_number = 0;      // of the line last returned

    explicit LineReader(const std::string& path) : file(path) {}

    void read_more() {
        if (begin > 0) std::memmove(buffer.data(), buffer.data() + begin, end - begin);
        end -= begin;
        begin = 0;
        if (end + simdjson::SIMDJSON_PADDING >= buffer.size()) buffer.resize(buffer.size() * 2);
        size_t n = file.read(buffer.data() + end, buffer.size() - end - simdjson::SIMDJSON_PADDING);
        end += n;
        at_end = n == 0;
    }

    // The next line without its line break, or a part of at least `longest` bytes of a longer one (then ends_line is
    // false and the rest follows). SIMDJSON_PADDING readable bytes follow it. False at the end of the file; a last
    // line that was cut off because the stream broke is not returned.
    bool next(std::string_view& line, bool& starts_line, bool& ends_line, size_t longest) {
        starts_line = last_ended_line;
        size_t searched = 0;
        for (;;) {
            const char* from = buffer.data() + begin;
            const void* found = std::memchr(from + searched, '\n', end - begin - searched);
            size_t length = found ? size_t(static_cast<const char*>(found) - from) : end - begin;
            searched = length;
            if (!found && length < longest && !at_end) {
                read_more();
                continue;
            }
            if (!found && at_end && (length == 0 || !file.failure().empty())) return false;
            line = {from, length};
            ends_line = found || at_end;
            begin += length + (found ? 1 : 0);
            line_number += starts_line;
            last_ended_line = ends_line;
            return true;
        }
    }

private:
    bool last_ended_line = true;
};

// A JSON line with every \uD800..\uDFFF escape that is not half of a pair replaced by \ufffd, and with valid UTF-8:
// what can be read of a line that a careless program wrote.
std::string repaired_json(std::string_view line) {
    std::string storage;
    std::string fixed(valid_utf8(line, storage));
    auto code_unit = [&](size_t i) -> int {  // of the escape \uXXXX at i, or -1
        if (i + 6 > fixed.size() || fixed[i] != '\\' || fixed[i + 1] != 'u') return -1;
        std::string digits = fixed.substr(i + 2, 4);
        return digits.find_first_not_of("0123456789abcdefABCDEF") == digits.npos ? std::stoi(digits, nullptr, 16) : -1;
    };
    for (size_t i = 0; i < fixed.size(); i++) {
        if (fixed[i] != '\\') continue;
        int unit = code_unit(i), following = code_unit(i + 6);
        bool high = unit >= 0xD800 && unit < 0xDC00, low = unit >= 0xDC00 && unit < 0xE000;
        if (high && following >= 0xDC00 && following < 0xE000) {
            i += 11;
            continue;
        }
        if (high || low) fixed.replace(i, 6, "\\ufffd");
        i += unit >= 0 ? 5 : 1;  // an escape is two characters, or six
    }
    return fixed;
}

// The last place where a long text may be cut: before ASCII white space that follows something else. A pre-token
// begins there whatever comes before and after. 0 if there is none.
size_t last_cut(std::string_view text) {
    for (size_t i = text.size() - 1; i > 0; i--) {
        if (text[i] != ' ' && text[i] != '\n') continue;
        size_t start = i - 1;  // of the character before
        while (start > 0 && i - start < 4 && (text[start] & 0xC0) == 0x80) start--;
        uint32_t c = uint8_t(text[start]);
        if (i - start > 1) {
            c &= 0xFFu >> (i - start + 1);
            for (size_t k = start + 1; k < i; k++) c = c << 6 | (uint8_t(text[k]) & 63);
        }
        if (class_of(c) != CharClass::space) return i;
    }
    return 0;
}

}  // namespace

struct DocumentReader::State {
    std::string path, text_key;
    bool skip_bad;
    Kind kind;
    LineReader lines;
    simdjson::dom::parser parser;
    std::string repaired;
    int64_t bad = 0;
    bool finished = false;

    std::string pending;          // text of the present document that has not been handed out
    std::string piece;            // what was handed out last
    bool in_document = false;     // some of the present document has been seen

    State(const std::string& path_, const std::string& key, bool skip)
        : path(path_), text_key(key), skip_bad(skip), kind(kind_of(path_)), lines(path_) {}

    // Counts something that cannot be read, or refuses it.
    void reject(const std::string& why) {
        if (!skip_bad) input_error(path, ": line ", lines.line_number, ": ", why, " (--skip-bad goes on without it)");
        bad++;
    }

    // At the end of the file: whole, broken or empty?
    void finish() {
        finished = true;
        std::string failure = lines.file.failure();
        if (failure.empty() && lines.file.input_bytes() == 0) failure = "the file is empty";
        if (failure.empty()) return;
        lines.line_number++;  // the line that could not be read
        reject(failure);
    }
};

DocumentReader::DocumentReader(const std::string& path, const std::string& text_key, bool skip_bad) {
    if (!is_document_file(path))
        input_error(path, ": the name must end in .json, .jsonl or .txt, or one of these and .gz");
    state = std::make_unique<State>(path, text_key, skip_bad);
}

DocumentReader::~DocumentReader() = default;

bool DocumentReader::next(Piece& piece) {
    if (state->finished) return false;
    return state->kind == Kind::json ? next_json(piece) : next_text(piece);
}

int64_t DocumentReader::bad() const { return state->bad; }
int64_t DocumentReader::input_bytes() const { return state->lines.file.input_bytes(); }

bool DocumentReader::next_json(Piece& piece) {
    State& s = *state;
    std::string_view line;
    bool starts_line, ends_line;
    while (s.lines.next(line, starts_line, ends_line, longest_json_line)) {
        if (!ends_line || !starts_line) {
            if (ends_line) s.reject("the line is longer than 1 GiB");
            continue;
        }
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        simdjson::dom::element object;
        auto error = s.parser.parse(line.data(), line.size(), false).get(object);
        if (error == simdjson::UTF8_ERROR || error == simdjson::STRING_ERROR) {
            s.repaired = repaired_json(line);
            error = s.parser.parse(s.repaired).get(object);
        }
        if (error) {
            s.reject(str("not valid JSON: ", simdjson::error_message(error)));
            continue;
        }
        if (object[s.text_key].get_string().get(piece.text)) {
            s.reject(str("not a JSON object with a string \"", s.text_key, '"'));
            continue;
        }
        if (piece.text.empty()) continue;
        piece.ends_document = true;
        return true;
    }
    s.finish();
    return false;
}

bool DocumentReader::next_text(Piece& piece) {
    State& s = *state;
    auto hand_out = [&](size_t size, bool ends_document) {
        s.piece.assign(s.pending, 0, size);
        s.pending.erase(0, size);
        piece = {s.piece, ends_document};
        s.in_document = !ends_document;
        return true;
    };
    std::string_view line;
    bool starts_line, ends_line;
    bool has_lines =
        s.in_document;  // the present document has a line already, so the next needs a line break before it
    while (s.lines.next(line, starts_line, ends_line, text_piece)) {
        std::string_view bare = line.ends_with('\r') ? line.substr(0, line.size() - 1) : line;
        if (starts_line && ends_line && bare == separator) {
            bool empty = s.pending.empty() && !s.in_document;
            if (!empty) return hand_out(s.pending.size(), true);
            has_lines = false;
            continue;
        }
        if (starts_line && has_lines) s.pending += '\n';
        has_lines = true;
        s.pending += line;
        if (s.pending.size() < text_piece) continue;
        size_t cut = last_cut(s.pending);
        if (cut == 0 && s.pending.size() >= longest_uncut) {
            cut = s.pending.size();
            while (cut > s.pending.size() - 3 && (s.pending[cut - 1] & 0x80)) cut--;  // not inside a character
            while (cut < s.pending.size() && (s.pending[cut] & 0xC0) == 0x80) cut++;
        }
        if (cut > 0) return hand_out(cut, false);
    }
    s.finish();
    if (s.pending.empty() && !s.in_document) return false;
    return hand_out(s.pending.size(), true);
}

bool is_document_file(const std::string& path) { return kind_of(path) != Kind::unknown; }

}  // namespace llmc
