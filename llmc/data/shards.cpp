#include "llmc/data/shards.h"

#include <glob.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "llmc/base/errors.h"
#include "llmc/base/json_text.h"
#include "llmc/data/tokenizer.h"

namespace llmc {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

static_assert(std::endian::native == std::endian::little, "shards are mapped as they are: little-endian");

constexpr int32_t shard_magic = 20240520, shard_version = 1;
constexpr size_t header_ints = 256, header_bytes = header_ints * sizeof(int32_t);
constexpr int gpt2_vocab = 50257, gpt2_eot = 50256;

Shard open_shard(const std::string& path) {
    Shard shard;
    shard.path = path;
    shard.map = MappedFile(path);
    size_t size = shard.map.size();
    if (size == 0) input_error(path, " is empty");
    if (size < header_bytes)
        input_error(path, " has ", size, " bytes, less than a shard's header of ", header_bytes,
                    ": it is truncated or not a shard");
    int32_t header[3];
    std::memcpy(header, shard.map.data(), sizeof header);
    if (header[0] != shard_magic)
        input_error(path, " is not a token shard: it starts with ", header[0], " instead of ", shard_magic);
    if (header[1] != shard_version)
        input_error(path, " is a token shard of version ", header[1], "; this program reads version ", shard_version);
    shard.count = header[2];
    if (shard.count < 1) input_error(path, " holds no tokens: its header says ", shard.count);
    size_t expected = header_bytes + size_t(shard.count) * sizeof(uint16_t);
    if (size != expected)
        input_error(path, size < expected ? " is truncated: " : " is too long: ", size, " bytes, but the ", shard.count,
                    " tokens of its header need ", expected);
    shard.tokens = reinterpret_cast<const uint16_t*>(shard.map.data() + header_bytes);
    return shard;
}

void check_range(const Shard& shard, int vocab_size) {
    const uint16_t* end = shard.tokens + shard.count;
    const uint16_t* bad = std::find_if(shard.tokens, end, [&](uint16_t id) { return id >= vocab_size; });
    if (bad != end)
        input_error(shard.path, ": token ", bad - shard.tokens, " is ", *bad, ", but the vocabulary has ", vocab_size,
                    " tokens", vocab_size == gpt2_vocab ? " (shards without dataset.json must be GPT-2's)" : "");
}

std::vector<std::string> matching_files(const std::string& pattern) {
    glob_t found{};
    std::vector<std::string> paths;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0)
        paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);  // sorted
    globfree(&found);
    return paths;
}

Dataset open_bare_shards(const std::string& path, bool reads_tokens) {
    Dataset data;
    data.path = path;
    data.bare = true;
    data.vocab_size = data.train.vocab_size = gpt2_vocab;
    data.eot_id = gpt2_eot;
    data.tokenizer_file = gpt2_rank_file();
    std::string ranks = read_file_gunzip(data.tokenizer_file);
    data.tokenizer_crc32 = crc32_of(ranks.data(), ranks.size());
    data.train.name = path;
    std::vector<std::string> files = path_exists(path) ? std::vector{path} : matching_files(path);
    if (files.empty())
        input_error("there is no data at ", path, ": give a directory made by data/prepare, or token shards (*.bin)");
    for (const std::string& file : files) {
        data.train.shards.push_back(open_shard(file));
        if (reads_tokens) check_range(data.train.shards.back(), gpt2_vocab);
        data.train.tokens += data.train.shards.back().count;
    }
    return data;
}

uint32_t parse_hex32(const std::string& text) {
    size_t used = 0;
    unsigned long value = text.size() == 8 ? std::stoul(text, &used, 16) : 0;
    if (used != 8) throw std::invalid_argument("\"" + text + "\" is not a checksum of 8 hex digits");
    return uint32_t(value);
}

Split open_split(const std::string& directory, const std::string& name, const Json& json, int vocab_size) {
    Split split;
    split.name = name;
    split.vocab_size = vocab_size;
    split.documents = json.at("documents").get<int64_t>();
    split.text_bytes = json.at("text_bytes").get<int64_t>();
    for (const Json& entry : json.at("shards")) {
        Shard shard = open_shard(directory + "/" + entry.at("file").get<std::string>());
        auto count = entry.at("tokens").get<int64_t>();
        if (shard.count != count)
            input_error(shard.path, " has ", shard.count, " tokens, but dataset.json says ", count,
                        ": the directory mixes two datasets");
        shard.crc32 = parse_hex32(entry.at("crc32").get<std::string>());
        split.tokens += count;
        split.shards.push_back(std::move(shard));
    }
    if (split.tokens != json.at("tokens").get<int64_t>())
        throw std::invalid_argument("the tokens of split " + name + " are not the sum of its shards'");
    return split;
}

Dataset open_directory(const std::string& directory) {
    std::string file = directory + "/dataset.json";
    if (!path_exists(file))
        input_error(directory, " has no dataset.json: it was not made by data/prepare, or data/prepare did not finish");
    try {
        Json json = parse_json<Json>(read_file(file), file);
        int version = json.at("format_version").get<int>();
        if (version != dataset_format_version)
            input_error(file, " has format version ", version, "; this program reads version ", dataset_format_version);
        const Json& tokenizer = json.at("tokenizer");
        Dataset data;
        data.path = directory;
        data.tokenizer_file = directory + "/" + tokenizer.at("file").get<std::string>();
        data.tokenizer_crc32 = parse_hex32(tokenizer.at("crc32").get<std::string>());
        data.vocab_size = tokenizer.at("vocab_size").get<int>();
        data.eot_id = tokenizer.at("eot_id").get<int>();
        if (data.vocab_size < 1 || data.vocab_size > 65535 || data.eot_id < 0 || data.eot_id >= data.vocab_size)
            throw std::invalid_argument(
                str("a vocabulary of ", data.vocab_size, " tokens with end-of-text ", data.eot_id));
        std::string ranks = read_file_gunzip(data.tokenizer_file);
        if (crc32_of(ranks.data(), ranks.size()) != data.tokenizer_crc32)
            input_error(data.tokenizer_file, " is not the tokenizer this data was made with: its checksum differs");
        const Json& splits = json.at("splits");
        data.train = open_split(directory, "train", splits.at("train"), data.vocab_size);
        if (splits.contains("val")) data.val = open_split(directory, "val", splits["val"], data.vocab_size);
        data.val.name = "val";
        return data;
    } catch (const InputError&) {
        throw;
    } catch (const std::exception& e) {  // not JSON, a key missing or of another type
        input_error(file, " is damaged: ", e.what());
    }
}

}  // namespace

Dataset open_dataset(const std::string& path, bool reads_tokens) {
    std::error_code error;
    return fs::is_directory(path, error) ? open_directory(path) : open_bare_shards(path, reads_tokens);
}

void check_vocabulary(const Dataset& dataset, int64_t model_vocab_size) {
    if (dataset.vocab_size != model_vocab_size)
        input_error("the data in ", dataset.path, " has a vocabulary of ", dataset.vocab_size,
                    dataset.bare ? " (GPT-2)" : "", ", the model one of ", model_vocab_size, ": they must be equal");
}

void read_tokens(int32_t* out, const Split& split, size_t shard, int64_t from, int64_t count) {
    const uint16_t* tokens = split.shards[shard].tokens + from;
    int32_t largest = -1;
    for (int64_t i = 0; i < count; i++) {
        out[i] = tokens[i];
        largest = std::max(largest, out[i]);
    }
    if (largest < split.vocab_size) return;
    input_error(split.shards[shard].path, ": token ", from + (std::find(tokens, tokens + count, largest) - tokens),
                " is ", largest, ", but the vocabulary has ", split.vocab_size, " tokens: the shard is damaged");
}

void verify_dataset(const Dataset& dataset) {
    for (const Split* split : {&dataset.train, &dataset.val})
        for (const Shard& shard : split->shards) {
            if (!dataset.bare && crc32_of(shard.map.data(), shard.map.size()) != shard.crc32)
                input_error(shard.path, " is damaged: its checksum differs from dataset.json's");
            check_range(shard, dataset.vocab_size);
        }
}

ShardWriter::ShardWriter(std::string directory_, std::string split_, int64_t shard_tokens_)
    : directory(std::move(directory_)), split(std::move(split_)), shard_tokens(shard_tokens_) {
    if (shard_tokens < 1 || shard_tokens > INT32_MAX)
        input_error("shards of ", shard_tokens, " tokens are impossible: choose 1 to ", INT32_MAX);
}

void ShardWriter::write(std::span<const uint16_t> tokens) {
    while (!tokens.empty()) {
        if (!file) {
            std::string number = std::to_string(entries.size());
            std::string name =
                split + "_" + std::string(number.size() < 6 ? 6 - number.size() : 0, '0') + number + ".bin";
            file = std::make_unique<AtomicFile>(directory + "/" + name);
            entries.push_back({name, 0, 0});
            in_shard = 0;
            tokens_crc32 = 0;
            int32_t header[header_ints] = {};
            file->write(header, header_bytes);  // written again when the count is known
        }
        auto piece = tokens.first(size_t(std::min(int64_t(tokens.size()), shard_tokens - in_shard)));
        file->write(piece.data(), piece.size_bytes());
        tokens_crc32 = crc32_of(piece.data(), piece.size_bytes(), tokens_crc32);
        in_shard += int64_t(piece.size());
        tokens = tokens.subspan(piece.size());
        if (in_shard == shard_tokens) close_shard();
    }
}

void ShardWriter::close_shard() {
    int32_t header[header_ints] = {shard_magic, shard_version, int32_t(in_shard)};
    file->write_at(0, header, header_bytes);
    file->commit();
    file.reset();
    entries.back().tokens = in_shard;
    entries.back().crc32 =
        crc32_append(crc32_of(header, header_bytes), tokens_crc32, in_shard * int64_t(sizeof(uint16_t)));
}

std::vector<ShardWriter::Entry> ShardWriter::finish() {
    if (file) close_shard();
    return entries;
}

void write_dataset_json(const std::string& directory, const std::string& rank_file, int vocab_size,
                        const SplitSummary& train, const SplitSummary& val) {
    write_file_atomic(directory + "/tokenizer.tiktoken", rank_file);
    Json json;
    json["format_version"] = dataset_format_version;
    json["tokenizer"] = {{"file", "tokenizer.tiktoken"},
                         {"crc32", hex32(crc32_of(rank_file.data(), rank_file.size()))},
                         {"vocab_size", vocab_size},
                         {"eot_id", vocab_size - 1}};
    auto describe = [](const SplitSummary& split) {
        Json shards = Json::array();
        for (const auto& entry : split.shards)
            shards.push_back({{"file", entry.file}, {"tokens", entry.tokens}, {"crc32", hex32(entry.crc32)}});
        return Json{{"documents", split.documents}, {"text_bytes", split.text_bytes}, {"tokens", split.tokens},
                    {"shards", shards}};
    };
    json["splits"]["train"] = describe(train);
    if (!val.shards.empty()) json["splits"]["val"] = describe(val);
    write_file_atomic(directory + "/dataset.json", json.dump(2) + "\n");
}

}  // namespace llmc
