// Reads the documents of one input file as a stream, in constant memory: C4's *.json.gz, .jsonl, .json and .txt, each
// plain or gzipped (told apart by content).
//
//   JSON lines   one object a line; its member `text_key` (a string) is the document. Blank lines are skipped.
//   text         a line that is only <|endoftext|> ends a document; a file without one is one document. The line break
//                before such a line, and the last one of the file, belong to no document.
// Empty documents are left out.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace llmc {

class DocumentReader {
public:
    // A document, or a part of a long one. Long text is cut where a new pre-token begins, so tokenising the parts gives
    // the tokens of the whole (unless 16 MiB have no white space at all: then anywhere).
    struct Piece {
        std::string_view text;  // valid until the next call of next()
        bool ends_document = false;
    };

    // InputError if the file cannot be opened or its name has none of the endings above.
    DocumentReader(const std::string& path, const std::string& text_key, bool skip_bad);
    ~DocumentReader();

    // False at the end of the file. A line that is no such JSON object, or a gzip stream that is damaged or cut off, is
    // an InputError naming file and line; with skip_bad it is counted and left out (with the rest of a damaged stream).
    bool next(Piece& piece);

    int64_t bad() const;         // left out so far
    int64_t input_bytes() const; // read so far of the file as it lies on disk

private:
    struct State;
    std::unique_ptr<State> state;
    bool next_json(Piece& piece);
    bool next_text(Piece& piece);
};

// True if the name says that DocumentReader can read the file.
bool is_document_file(const std::string& path);

}  // namespace llmc
