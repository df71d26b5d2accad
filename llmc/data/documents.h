// Reads the documents of one input file as a stream, in constant memory: C4's *.json.gz, .jsonl, .json and .txt, each
// plain or gzipped (told apart by content).
//
//   JSON lines   one object per line; its member `text_key` (a string) is the document. Blank lines are skipped.
//   text         a line that is only <|endoftext|> ends a document; a file without one is one document. The line break
//                before such a line, and the last one of the file, are not part of a document.
// Empty documents are skipped.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace llmc {

class DocumentReader {
public:
    // A document, or a part of a long one. Long text is split where a pre-token begins, so the tokens of the parts
    // together are the tokens of the whole. (Text with more than 16 MiB without white space is split anywhere.)
    struct Piece {
        std::string_view text;  // valid until the next call of next()
        bool ends_document = false;
    };

    // InputError if the file cannot be opened or its name has none of the endings above.
    DocumentReader(const std::string& path, const std::string& text_key, bool skip_bad);
    ~DocumentReader();

    // Gets the next piece; false at the end of the file. InputError naming file and line for a line that is not such a
    // JSON object, or a gzip stream that is damaged or truncated. With skip_bad these are counted and skipped (a
    // damaged stream to its end).
    bool next(Piece& piece);

    int64_t bad() const;          // number of lines or streams skipped so far
    int64_t input_bytes() const;  // bytes read so far from the file, before unpacking

private:
    struct State;
    std::unique_ptr<State> state;
    bool next_json(Piece& piece);
    bool next_text(Piece& piece);
};

// True if the name says that DocumentReader can read the file.
bool is_document_file(const std::string& path);

}  // namespace llmc
