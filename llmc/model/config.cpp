#include "llmc/model/config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>

#include "llmc/model/blocks/kinds.h"

namespace llmc {

namespace {

constexpr size_t most_blocks = 10000;
constexpr int deepest_pattern = 64;  // ( in (

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
        if (!find_block_kind(word)) {
            at = begin;
            fail("expected " + block_kind_names() + " or ( ... )");
        }
        return word;
    }

    std::vector<std::string> sequence(int depth) {
        std::vector<std::string> blocks;
        for (skip_spaces(); at < text.size() && text[at] != ')'; skip_spaces()) {
            size_t n = repeat();
            std::vector<std::string> part;
            if (at < text.size() && text[at] == '(') {
                if (depth == deepest_pattern) fail(str("( is nested deeper than ", deepest_pattern));
                at++;
                part = sequence(depth + 1);
                at++;  // the ')'
            } else {
                part = {kind()};
            }
            if (n * part.size() + blocks.size() > most_blocks) fail(str("more than ", most_blocks, " blocks"));
            for (size_t i = 0; i < n; i++) blocks.insert(blocks.end(), part.begin(), part.end());
        }
        if (depth > 0 && at >= text.size()) fail("a ( is not closed");
        if (depth == 0 && at < text.size()) fail("a ) without its (");
        if (blocks.empty()) fail("no blocks");
        return blocks;
    }
};

}  // namespace

std::vector<std::string> parse_pattern(const std::string& pattern) {
    PatternParser parser{pattern};
    return parser.sequence(0);
}

bool has_block(const ModelConfig& config, const std::string& kind) {
    const std::vector<const BlockKind*> kinds = kinds_in(config);
    return std::find(kinds.begin(), kinds.end(), &block_kind(kind)) != kinds.end();
}

bool has_experts(const ModelConfig& config) {
    const std::vector<const BlockKind*> kinds = kinds_in(config);
    return std::any_of(kinds.begin(), kinds.end(), [](const BlockKind* kind) { return kind->has_experts(); });
}

bool mixtures_span_ranks(const ModelConfig& config) {
    bool some = false, all = true;
    for (const BlockKind* kind : kinds_in(config))
        if (kind->has_experts()) some = true, all = all && kind->group_ranks;
    return some && all;
}

int64_t rows_together(const ModelConfig& c) {
    int64_t rows = 1;
    for (const BlockKind* kind : kinds_in(c))
        if (kind->rows_together) rows = std::lcm(rows, kind->rows_together(c));
    return rows;
}

void check_rows(const ModelConfig& c, int64_t rows, int64_t group_size) {
    for (const BlockKind* kind : kinds_in(c))
        if (kind->check_rows) kind->check_rows(c, rows, group_size);
}

std::string sees_the_future(const ModelConfig& c) {
    for (const BlockKind* kind : kinds_in(c))
        if (kind->sees_the_future)
            if (std::string why = kind->sees_the_future(c); !why.empty()) return why;
    return "";
}

std::vector<std::string> warnings_of(const ModelConfig& c) {
    std::vector<std::string> list;
    for (const BlockKind* kind : kinds_in(c))
        if (kind->warnings)
            for (const std::string& warning : kind->warnings(c)) list.push_back(warning);
    return list;
}

bool is_gated(Hidden hidden) { return hidden == Hidden::swiglu || hidden == Hidden::geglu; }

Activation activation_of(Hidden hidden) {
    switch (hidden) {
        case Hidden::relu:
            return Activation::relu;
        case Hidden::gelu:
            return Activation::gelu;
        case Hidden::gelu_erf:
        case Hidden::geglu:
            return Activation::gelu_erf;
        case Hidden::silu:
        case Hidden::swiglu:
            return Activation::silu;
        case Hidden::linear:
            return Activation::none;
    }
    run_error("unknown activation ", int(hidden));
}

namespace {

const BlockKind& kind_with_experts(const std::string& name) {
    const BlockKind& kind = block_kind(name);
    if (!kind.has_experts()) run_error("blocks of kind ", name, " have no experts");
    return kind;
}

}  // namespace

double experts_of_a_token(const ModelConfig& c, const std::string& name) {
    const BlockKind& kind = kind_with_experts(name);
    return kind.experts_of_a_token(c) + (kind.shared_experts ? double(c.shared_experts) : 0);
}

int64_t outputs_that_add_up(const ModelConfig& c, const std::string& name) {
    const BlockKind& kind = kind_with_experts(name);
    switch (c.expert_down_init == DownInit::of_kind ? kind.down_init : c.expert_down_init) {
        case DownInit::of_kind:  // no row of the table says so
        case DownInit::one:
            return 1;
        case DownInit::chosen:  // shared experts are a sum of their own
            return std::max<int64_t>(1, std::llround(kind.experts_of_a_token(c)));
        case DownInit::all:
            return c.experts;
    }
    run_error("unknown rule of initialisation ", int(c.expert_down_init));
}

namespace {

// The hidden size at which an expert layer costs as much as a dense one, or (not flop_matched) has its parameters.
int64_t default_expert_size(const ModelConfig& c, const BlockKind& kind) {
    if (kind.mixed_tokens || !c.flop_matched) {
        const int64_t tokens = c.flop_matched ? kind.mixed_tokens(c) : 1, width = c.d_ff * tokens;
        if (width % c.experts)
            input_error("--experts ", c.experts, " does not divide the layer's width of ", width, " (d_ff ", c.d_ff,
                        c.flop_matched ? str(" x group_size ", tokens) : "", "): set --expert-size");
        return width / c.experts;
    }
    const double per_token = experts_of_a_token(c, kind.name);
    const double size = double(c.d_ff) / per_token, whole = std::round(size);
    if (whole < 1 || std::abs(size - whole) > 1e-9 * size)
        input_error("d_ff ", c.d_ff, " is not divisible among the ", per_token, " experts that a token of ", kind.name,
                    " has on average: set --expert-size");
    return int64_t(whole);
}

// `field` follows from granularity and expansion: InputError if it was set to another value.
template <class T>
void derive(T& field, T value, T unset, const char* flag, const ModelConfig& c) {
    if (field != unset && field != value)
        input_error("--granularity ", c.granularity, " and --expansion ", c.expansion, " mean ", flag, " ", value,
                    ", but it is set to ", field);
    field = value;
}

// Fine-grained experts (Krajewski et al. 2024, arXiv 2402.07871): a dense layer's parameters X times, cut into experts
// of 1/G of its size, G of which work on a token.
ModelConfig with_granularity(ModelConfig c) {
    if (!c.granularity && !c.expansion) return c;
    if (!c.granularity || !c.expansion)
        input_error("--granularity and --expansion must be set together: ",
                    c.granularity ? "--expansion" : "--granularity", " is missing");
    if (c.d_ff % c.granularity)
        input_error("--granularity ", c.granularity, " does not divide d_ff ", c.d_ff);
    const ModelConfig unset;
    derive(c.experts, c.granularity * c.expansion, unset.experts, "--experts", c);
    derive(c.expert_size, c.d_ff / c.granularity, unset.expert_size, "--expert-size", c);
    if (has_mot(c)) derive(c.group_size, c.expansion, unset.group_size, "--group-size", c);
    if (has_moe(c)) {
        derive(c.top_k, c.granularity, unset.top_k, "--top-k", c);
        derive(c.expert_choice_fraction, 1 / double(c.expansion), unset.expert_choice_fraction,
               "--expert-choice-fraction", c);
    }
    return c;
}

ModelConfig with_expert_size(ModelConfig c) {
    if (c.expert_size) return c;
    for (const BlockKind* kind : kinds_in(c)) {
        if (!kind->has_experts()) continue;
        const int64_t size = default_expert_size(c, *kind);
        if (c.expert_size && size != c.expert_size)
            input_error("the pattern's kinds of experts would have hidden sizes of ", c.expert_size, " and ", size,
                        ": set --expert-size");
        c.expert_size = size;
    }
    return c;
}

}  // namespace

ModelConfig resolved(ModelConfig c) {
    if (c.d_model % c.heads) input_error("--d-model ", c.d_model, " is not divisible by --heads ", c.heads);
    if (c.positions == Positions::rope && (c.d_model / c.heads) % 2)
        input_error("--positions rope needs an even head size, but --d-model ", c.d_model, " / --heads ", c.heads,
                    " is ", c.d_model / c.heads);
    if (c.d_ff == 0) c.d_ff = 4 * c.d_model;
    c = with_granularity(c);
    for (const BlockKind* kind : kinds_in(c))
        if (kind->resolve) kind->resolve(c);
    return with_expert_size(c);
}

}  // namespace llmc
