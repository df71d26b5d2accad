#include "llmc/model/config.h"

#include <algorithm>
#include <cctype>

#include "llmc/base/fields.h"

namespace llmc {

nlohmann::json to_json(const ModelConfig& config) {
    return fields_to_json([&](auto&& f) { for_each_model_field(config, f); });
}

ModelConfig model_config_from_json(const nlohmann::json& json, const std::string& where) {
    ModelConfig config;
    fields_from_json([&](auto&& f) { for_each_model_field(config, f); }, json, where);
    return config;
}

namespace {

const std::vector<std::string> block_kinds = {"attention", "ffn", "mot"};
constexpr size_t most_blocks = 10000;

// pattern := { [N "x"] ( "(" pattern ")" | kind ) }
struct PatternParser {
    const std::string& text;
    size_t at = 0;

    [[noreturn]] void fail(const std::string& what) const {
        input_error("--pattern \"", text, "\" does not parse at character ", at + 1, ": ", what);
    }
    void skip_spaces() {
        while (at < text.size() && std::isspace(static_cast<unsigned char>(text[at]))) at++;
    }
    bool digit() const { return at < text.size() && std::isdigit(static_cast<unsigned char>(text[at])); }

    size_t repeat() {  // "4x" -> 4; nothing -> 1
        if (!digit()) return 1;
        size_t n = 0;
        while (digit() && n <= most_blocks) n = n * 10 + size_t(text[at++] - '0');
        skip_spaces();
        if (at >= text.size() || text[at] != 'x') fail("a number must be followed by x");
        at++;
        if (n < 1 || n > most_blocks) fail(str("a repetition must be between 1 and ", most_blocks));
        skip_spaces();
        return n;
    }

    std::string kind() {
        size_t begin = at;
        while (at < text.size() && (std::isalpha(static_cast<unsigned char>(text[at])) || text[at] == '_')) at++;
        std::string word = text.substr(begin, at - begin);
        if (std::find(block_kinds.begin(), block_kinds.end(), word) == block_kinds.end()) {
            at = begin;
            fail("expected attention, ffn, mot or ( ... )");
        }
        return word;
    }

    std::vector<std::string> sequence(bool inside) {
        std::vector<std::string> blocks;
        for (skip_spaces(); at < text.size() && text[at] != ')'; skip_spaces()) {
            size_t n = repeat();
            std::vector<std::string> part;
            if (at < text.size() && text[at] == '(') {
                at++;
                part = sequence(true);
                at++;  // the ')'
            } else {
                part = {kind()};
            }
            if (n * part.size() + blocks.size() > most_blocks) fail(str("more than ", most_blocks, " blocks"));
            for (size_t i = 0; i < n; i++) blocks.insert(blocks.end(), part.begin(), part.end());
        }
        if (inside && at >= text.size()) fail("a ( is not closed");
        if (!inside && at < text.size()) fail("a ) without its (");
        if (blocks.empty()) fail("no blocks");
        return blocks;
    }
};

}  // namespace

std::vector<std::string> parse_pattern(const std::string& pattern) {
    PatternParser parser{pattern};
    return parser.sequence(false);
}

bool has_mot(const ModelConfig& config) {
    std::vector<std::string> blocks = parse_pattern(config.pattern);
    return std::find(blocks.begin(), blocks.end(), "mot") != blocks.end();
}

Activation activation_of(const std::string& word) {
    if (word == "relu") return Activation::relu;
    if (word == "gelu") return Activation::gelu;
    if (word == "gelu_erf") return Activation::gelu_erf;
    if (word == "silu" || word == "swiglu") return Activation::silu;
    input_error("unknown activation \"", word, "\"");
}

ModelConfig resolved(ModelConfig c) {
    if (c.d_model % c.heads) input_error("--d-model ", c.d_model, " is not divisible by --heads ", c.heads);
    if (c.positions == "rope" && (c.d_model / c.heads) % 2)
        input_error("--positions rope needs an even head size, but --d-model ", c.d_model, " / --heads ", c.heads,
                    " is ", c.d_model / c.heads);
    if (c.d_ff == 0) c.d_ff = 4 * c.d_model;
    if (has_mot(c)) {
        if (c.expert_size == 0) {
            int64_t width = c.d_ff * (c.flop_matched ? c.group_size : 1);
            if (width % c.experts)
                input_error("--experts ", c.experts, " does not divide the layer's width of ", width, " (d_ff ", c.d_ff,
                            c.flop_matched ? str(" x group_size ", c.group_size) : "", "): set --expert-size");
            c.expert_size = width / c.experts;
        }
        if (c.group_axis == "sequence" && c.context % c.group_size)
            input_error("--group-size ", c.group_size, " does not divide --context ", c.context,
                        " (--group-axis sequence)");
    }
    return c;
}

}  // namespace llmc
