// Reading documents and making data directories: what goes in comes out, bytes do not depend on threads, and broken
// input is named and leaves nothing behind.
#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>

#include "dev/test/temp_dir.h"
#include "llmc/base/errors.h"
#include "llmc/base/files.h"
#include "llmc/data/documents.h"
#include "llmc/data/output_directory.h"
#include "llmc/data/prepare.h"
#include "llmc/data/pretokenize.h"
#include "llmc/data/tokenizer.h"

using namespace llmc;
namespace fs = std::filesystem;

namespace {

void write_gz(const std::string& path, const std::string& bytes) {
    gzFile file = gzopen(path.c_str(), "wb");
    ASSERT_EQ(gzwrite(file, bytes.data(), unsigned(bytes.size())), int(bytes.size()));
    gzclose(file);
}

std::vector<std::string> documents_of(const std::string& path, bool skip_bad = false, int64_t* bad = nullptr) {
    DocumentReader reader(path, "text", skip_bad);
    DocumentReader::Piece piece;
    std::vector<std::string> documents;
    bool begins = true;
    while (reader.next(piece)) {
        if (begins) documents.emplace_back();
        documents.back() += piece.text;
        begins = piece.ends_document;
    }
    EXPECT_TRUE(begins);
    if (bad) *bad = reader.bad();
    return documents;
}

template <class F>
void expect_input_error(F f, const std::vector<std::string>& parts) {
    try {
        f();
        ADD_FAILURE() << "no InputError; expected one with: " << parts[0];
    } catch (const InputError& e) {
        for (auto& part : parts) EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
}

PrepareResult prepare(const PrepareOptions& options, int stop_signal = 0) {
    volatile std::sig_atomic_t stop = stop_signal;
    return prepare_dataset(options, [](const PrepareProgress&) {}, stop);
}

std::string random_words(std::mt19937& random, int words) {
    static const char* some[] = {"the",  "whale", "of",   "a",       "sea",   "that",
                                 "It's", "1851,", "and—", "ship.\n", "naïve", "42"};
    std::string text;
    for (int i = 0; i < words; i++) {
        if (i) text += ' ';
        text += some[random() % 12];
    }
    return text;
}

std::map<std::string, std::string> files_in(const std::string& directory) {
    std::map<std::string, std::string> files;
    for (auto& entry : fs::directory_iterator(directory))
        files[entry.path().filename()] = read_file(entry.path().string());
    return files;
}

}  // namespace

TEST(Documents, JsonLines) {
    TempDir dir;
    std::string lines = R"({"text":"plain","timestamp":"2019-04-25T12:57:54Z","url":"http://x"})" "\n"
                        R"({"url":"u", "text": "a\nb\t\"c\" \\ \/ \u00e9\ud83d\ude00 é" })" "\r\n\n  \n"
                        R"({"text":""})" "\n"
                        R"({"text":"lone \ud800 and \udc00\ud83d, \\ud800"})" "\n"
                        "{\"text\":\"bad \xff byte\"}\n"
                        R"({"text":"no line break at the end"})";
    std::vector<std::string> expected = {"plain", "a\nb\t\"c\" \\ / é😀 é", "lone \uFFFD and \uFFFD\uFFFD, \\ud800",
                                         "bad \uFFFD byte", "no line break at the end"};
    write_file_atomic(dir / "a.jsonl", lines);
    EXPECT_EQ(documents_of(dir / "a.jsonl"), expected);
    write_gz(dir / "a.json.gz", lines);
    EXPECT_EQ(documents_of(dir / "a.json.gz"), expected);
}

TEST(Documents, TextWithAndWithoutSeparators) {
    TempDir dir;
    auto read = [&](const std::string& text) {
        write_file_atomic(dir / "a.txt", text);
        return documents_of(dir / "a.txt");
    };
    using Strings = std::vector<std::string>;
    EXPECT_EQ(read("one\n\ntwo\n"), Strings{"one\n\ntwo"});
    EXPECT_EQ(read("one"), Strings{"one"});
    EXPECT_EQ(read("one\n<|endoftext|>\ntwo\n<|endoftext|>\n"), (Strings{"one", "two"}));
    EXPECT_EQ(read("<|endoftext|>\n<|endoftext|>\r\none\nx <|endoftext|>\n<|endoftext|>\n\n<|endoftext|>"),
              Strings{"one\nx <|endoftext|>"});
    EXPECT_EQ(read("\none"), Strings{"\none"});
    EXPECT_EQ(read("\n"), Strings{});
}

TEST(Documents, LongTextIsCutWithoutChangingTokens) {
    TempDir dir;
    std::mt19937 random(1);
    Tokenizer gpt2 = Tokenizer::load(gpt2_rank_file());
    std::string text = random_words(random, 50000);
    // One line much longer than the parts the reader makes, mostly runs of white space, inside which no part may end.
    std::string run = "ab";
    for (int i = 0; i < 10; i++) run += "\u3000 ";
    for (int i = 0; i < 120000; i++) text += run;
    text += std::string(300000, 'x');
    for (int i = 0; i < 60000; i++) text += "\u00a0\u3000 y"[random() % 7];  // also broken characters
    text += " the end";
    write_file_atomic(dir / "a.txt", text);
    DocumentReader reader(dir / "a.txt", "text", false);
    DocumentReader::Piece piece;
    std::string joined;
    std::vector<uint16_t> ids;
    Encoder encoder(gpt2);
    size_t pieces = 0, pretoken = 0;  // pretoken: where the whole text's first pre-token not yet joined begins
    for (; reader.next(piece); pieces++) {
        joined += piece.text;
        encoder.encode(piece.text, ids);
        while (pretoken < joined.size()) pretoken = pretoken_end(text, pretoken);
        EXPECT_EQ(pretoken, joined.size()) << "part " << pieces << " ends inside a pre-token";
    }
    EXPECT_GE(pieces, 3u);
    EXPECT_TRUE(joined == text);
    EXPECT_TRUE(ids == gpt2.encode(text));
}

TEST(Documents, BrokenInputIsNamedOrSkipped) {
    TempDir dir;
    std::string good = R"({"text":"good"})" "\n", many;
    for (int i = 0; i < 5000; i++) many += "{\"text\":\"document number " + std::to_string(i * 7919) + "\"}\n";
    auto expect = [&](const std::string& name, const std::vector<std::string>& parts, size_t documents, int64_t bad) {
        expect_input_error([&] { documents_of(dir / name); }, parts);
        int64_t counted = 0;
        EXPECT_EQ(documents_of(dir / name, true, &counted).size(), documents) << name;
        EXPECT_EQ(counted, bad) << name;
    };
    write_file_atomic(dir / "a.jsonl",
                      good + "\n{\"text\": \"cut\n" + good + "[1]\n{\"text\":5}\n{\"other\":\"x\"}\n" + good);
    expect("a.jsonl", {"a.jsonl", "line 3", "not valid JSON", "--skip-bad"}, 3, 4);
    write_file_atomic(dir / "b.jsonl", good + "{\"content\":\"x\"}\n");
    expect("b.jsonl", {"line 2", "string \"text\""}, 1, 1);

    write_gz(dir / "whole.json.gz", many);
    std::string packed = read_file(dir / "whole.json.gz");
    write_file_atomic(dir / "cut.json.gz", packed.substr(0, packed.size() - 20));
    expect_input_error([&] { documents_of(dir / "cut.json.gz"); }, {"cut.json.gz", "line ", "ends early"});
    int64_t bad = 0;
    size_t kept = documents_of(dir / "cut.json.gz", true, &bad).size();
    EXPECT_EQ(bad, 1);
    EXPECT_GT(kept, 4000u);
    EXPECT_LT(kept, 5001u);
    packed[packed.size() / 2] ^= 0x55;
    write_file_atomic(dir / "flipped.json.gz", packed);
    expect_input_error([&] { documents_of(dir / "flipped.json.gz"); }, {"flipped.json.gz", "line "});
    packed = read_file(dir / "whole.json.gz");
    packed[packed.size() - 6] ^= 1;  // only the checksum at the end tells
    write_file_atomic(dir / "checksum.json.gz", packed);
    expect("checksum.json.gz", {"line 5001", "damaged"}, 5000, 1);

    write_file_atomic(dir / "empty.json.gz", "");
    expect("empty.json.gz", {"empty.json.gz", "is empty"}, 0, 1);
    write_gz(dir / "nothing.json.gz", "");
    EXPECT_TRUE(documents_of(dir / "nothing.json.gz").empty());
    write_file_atomic(dir / "page.json.gz", "<html>404</html>\n");
    expect("page.json.gz", {"line 1", "not valid JSON"}, 0, 1);
    write_file_atomic(dir / "deep.json", "{\"text\": " + std::string(100000, '[') + std::string(100000, ']') + "}");
    expect("deep.json", {"line 1", "not valid JSON"}, 0, 1);
    expect_input_error([&] { documents_of(dir / "missing.txt"); }, {"missing.txt", "No such file"});
    expect_input_error([&] { documents_of(dir / "a.pdf"); }, {"a.pdf", ".jsonl"});
}

TEST(Prepare, TokensAreTheDocumentsInOrder) {
    TempDir dir;
    std::vector<std::string> texts = {"First one.", "The second, don't you know?", "3rd", "last — ünïcode"};
    write_file_atomic(dir / "a.txt", texts[0] + "\n<|endoftext|>\n" + texts[1]);
    write_gz(dir / "b.json.gz",
             nlohmann::json{{"text", texts[2]}}.dump() + "\n" + nlohmann::json{{"text", texts[3]}}.dump());
    PrepareOptions options;
    options.inputs = {dir / "a.txt", dir / "b.json.gz"};
    options.out = dir / "out";
    options.val_fraction = 0;
    options.shard_tokens = 10;
    PrepareResult result = prepare(options);

    Tokenizer gpt2 = Tokenizer::load(gpt2_rank_file());
    std::vector<uint16_t> expected, got;
    size_t bytes = 0;
    for (auto& text : texts) {
        for (uint16_t id : gpt2.encode(text)) expected.push_back(id);
        expected.push_back(50256);
        bytes += text.size();
    }
    Dataset data = open_dataset(dir / "out");
    verify_dataset(data);
    for (auto& shard : data.train.shards) got.insert(got.end(), shard.tokens, shard.tokens + shard.count);
    EXPECT_EQ(got, expected);
    EXPECT_EQ(data.train.shards.size(), (expected.size() + 9) / 10);
    EXPECT_EQ(data.train.text_bytes, int64_t(bytes));
    EXPECT_EQ(data.train.documents, 4);
    EXPECT_EQ(result.train.tokens, int64_t(expected.size()));
    EXPECT_TRUE(data.val.shards.empty());
    EXPECT_EQ(read_file(data.tokenizer_file), gpt2.rank_file());
}

TEST(Prepare, BytesDoNotDependOnThreads) {
    TempDir dir;
    std::mt19937 random(5);
    make_directories(dir / "in");
    for (int file = 0; file < 12; file++) {
        std::string lines;
        for (int i = 0; i < 20 + file * 10; i++)
            lines += nlohmann::json{{"text", random_words(random, 5 + int(random() % 60))}}.dump() + "\n";
        if (file == 3) lines += nlohmann::json{{"text", random_words(random, 30000)}}.dump() + "\n";
        write_file_atomic(dir / ("in/" + std::to_string(100 + file) + ".jsonl"), lines);
    }
    PrepareOptions options;
    options.inputs = {dir / "in"};
    options.val_fraction = 0.1;
    options.shard_tokens = 20000;
    options.tokens_in_memory = 3000;  // so that the tokens of some files, but not of all, wait on disk
    std::map<std::string, std::string> first;
    for (int threads : {1, 2, 5}) {
        options.threads = threads;
        options.out = dir / ("out" + std::to_string(threads));
        PrepareResult result = prepare(options);
        int64_t documents = result.train.documents + result.val.documents;
        EXPECT_EQ(documents, 12 * 20 + 10 * 66 + 1);
        EXPECT_NEAR(double(result.val.documents), 0.1 * double(documents), 12);  // within one a file
        EXPECT_GE(result.train.shards.size(), 3u);
        if (first.empty()) first = files_in(options.out);
        EXPECT_TRUE(files_in(options.out) == first) << threads << " threads";
    }
}

TEST(Prepare, ValidationIsSpreadEvenly) {
    for (double fraction : {0.01, 0.05, 0.3}) {
        for (int64_t file : {0, 1, 17}) {
            int64_t chosen = 0, longest_gap = 0, gap = 0;
            for (int64_t i = 0; i < 10000; i++) {
                bool val = in_validation(file, i, fraction);
                chosen += val;
                gap = val ? 0 : gap + 1;
                longest_gap = std::max(longest_gap, gap);
            }
            EXPECT_NEAR(double(chosen), 10000 * fraction, 1);
            EXPECT_LE(double(longest_gap), 1 / fraction);
        }
    }
    EXPECT_FALSE(in_validation(3, 5, 0.0));
}

TEST(Prepare, TrainsItsOwnVocabulary) {
    TempDir dir;
    std::mt19937 random(6);
    std::string text;
    for (int i = 0; i < 200; i++) text += random_words(random, 50) + "\n<|endoftext|>\n";
    write_file_atomic(dir / "a.txt", text);
    PrepareOptions options;
    options.inputs = {dir / "a.txt"};
    options.out = dir / "out";
    options.train_bpe = 300;
    prepare(options);
    Dataset data = open_dataset(dir / "out");
    EXPECT_EQ(data.vocab_size, 300);
    Tokenizer tokenizer = Tokenizer::load(data.tokenizer_file);
    EXPECT_EQ(tokenizer.encode(" the whale").size(), 2u);  // words so frequent are single tokens
    std::vector<int32_t> ids(data.train.shards[0].tokens, data.train.shards[0].tokens + data.train.shards[0].count);
    EXPECT_EQ(tokenizer.decode(ids).substr(0, 100), text.substr(0, 100));
    EXPECT_EQ(ids.back(), 299);

    options.out = dir / "again";
    options.train_bpe = 0;
    options.tokenizer = data.tokenizer_file;
    prepare(options);
    EXPECT_TRUE(files_in(dir / "out") == files_in(dir / "again"));
}

TEST(Prepare, FailureLeavesNothing) {
    TempDir dir;
    write_file_atomic(dir / "good.jsonl", "{\"text\":\"fine\"}\n");
    write_file_atomic(dir / "bad.jsonl", "{\"text\":\"fine\"}\n{\"text\":\n");
    PrepareOptions options;
    options.out = dir / "out";
    options.inputs = {dir / "good.jsonl", dir / "bad.jsonl"};
    expect_input_error([&] { prepare(options); }, {"bad.jsonl", "line 2"});
    options.inputs = {dir / "missing.jsonl"};
    expect_input_error([&] { prepare(options); }, {"missing.jsonl"});
    write_file_atomic(dir / "empty.txt", "\n");
    options.inputs = {dir / "empty.txt"};
    expect_input_error([&] { prepare(options); }, {"no text"});
    options.inputs = {dir / "good.jsonl"};
    EXPECT_THROW(prepare(options, SIGINT), Interrupted);
    EXPECT_FALSE(path_exists(dir / "out"));
    EXPECT_FALSE(path_exists(dir / "out.tmp"));

    options.inputs = {dir / "good.jsonl", dir / "bad.jsonl"};
    options.skip_bad = true;
    PrepareResult result = prepare(options);
    EXPECT_EQ(result.bad, 1);
    EXPECT_EQ(result.train.documents + result.val.documents, 2);
}

TEST(Prepare, ExistingDataIsKeptUnlessOverwritten) {
    TempDir dir;
    write_file_atomic(dir / "one.jsonl", "{\"text\":\"one\"}\n");
    write_file_atomic(dir / "two.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\"}\n");
    PrepareOptions options;
    options.inputs = {dir / "one.jsonl"};
    options.out = dir / "out";
    prepare(options);
    auto before = files_in(dir / "out");
    options.inputs = {dir / "two.jsonl"};
    expect_input_error([&] { prepare(options); }, {"already holds a dataset", "--overwrite"});
    EXPECT_TRUE(files_in(dir / "out") == before);
    options.overwrite = true;
    prepare(options);
    EXPECT_EQ(open_dataset(dir / "out").train.documents, 2);
    EXPECT_FALSE(path_exists(dir / "out.old"));

    make_directories(dir / "mine");
    write_file_atomic(dir / "mine/precious", "x");
    options.out = dir / "mine";
    expect_input_error([&] { prepare(options); }, {"not empty"});
    EXPECT_EQ(read_file(dir / "mine/precious"), "x");
    make_directories(dir / "empty");
    options.out = dir / "empty/";
    prepare(options);
    EXPECT_EQ(open_dataset(dir / "empty").train.documents, 2);

    OutputDirectory held(dir / "busy", "dataset.json", false);
    options.out = dir / "busy";
    EXPECT_THROW(prepare(options), RunError);
}
