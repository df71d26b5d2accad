#include "llmc/model/config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>

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

const std::vector<std::string> block_kinds = {"attention", "ffn", "mot", "moe_token_choice", "moe_expert_choice"};
constexpr size_t most_blocks = 10000;

}  // namespace

bool is_block_kind(const std::string& word) {
    return std::find(block_kinds.begin(), block_kinds.end(), word) != block_kinds.end();
}

namespace {

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
        if (!is_block_kind(word)) {
            at = begin;
            fail("expected attention, ffn, mot, moe_token_choice, moe_expert_choice or ( ... )");
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

bool has_block(const ModelConfig& config, const std::string& kind) {
    std::vector<std::string> blocks = parse_pattern(config.pattern);
    return std::find(blocks.begin(), blocks.end(), kind) != blocks.end();
}
bool has_mot(const ModelConfig& config) { return has_block(config, "mot"); }
bool has_moe(const ModelConfig& config) {
    return has_block(config, "moe_token_choice") || has_block(config, "moe_expert_choice");
}

int64_t rows_together(const ModelConfig& c) {
    int64_t rows = has_mot(c) ? c.group_size : 1;
    if (has_block(c, "moe_expert_choice") && c.expert_choice_over == "batch" && c.simulate_group_size)
        rows = std::lcm(rows, c.simulate_group_size);
    return rows;
}

std::string sees_the_future(const ModelConfig& c) {
    if (has_mot(c) && c.group_axis == "sequence")
        return "whose MoT groups lie within a sequence (--group-axis sequence)";
    if (has_block(c, "moe_expert_choice") && c.expert_choice_over == "all")
        return "whose experts choose among all positions (--expert-choice-over all)";
    return "";
}

int64_t competing_sequences(const ModelConfig& c, int64_t rows) {
    if (c.expert_choice_over == "all") return 0;
    return c.simulate_group_size ? c.simulate_group_size : rows;
}

int64_t expert_capacity(const ModelConfig& c, int64_t tokens) {
    const double slots = c.capacity_factor * double(tokens) * double(c.top_k) / double(c.experts);
    if (!(slots >= 1))
        input_error("--capacity-factor ", c.capacity_factor, " gives each of the ", c.experts,
                    " experts a capacity of 0 for ", tokens, " tokens: make the factor or the micro-batch larger");
    return slots < double(tokens) ? int64_t(slots) : tokens;
}

int64_t expert_choices(const ModelConfig& c, int64_t candidates) {
    const double k = std::nearbyint(c.expert_choice_fraction * double(candidates));  // half to even
    if (!(k >= 1))
        input_error("--expert-choice-fraction ", c.expert_choice_fraction, " of ", candidates,
                    " candidates rounds to 0 tokens per expert: make it or the number of sequences larger");
    return k < double(candidates) ? int64_t(k) : candidates;
}

bool is_gated(const std::string& activation) { return activation == "swiglu" || activation == "geglu"; }

Activation activation_of(const std::string& word) {
    if (word == "relu") return Activation::relu;
    if (word == "gelu") return Activation::gelu;
    if (word == "gelu_erf" || word == "geglu") return Activation::gelu_erf;
    if (word == "silu" || word == "swiglu") return Activation::silu;
    if (word == "linear") return Activation::none;
    input_error("unknown activation \"", word, "\"");
}

double experts_of_a_token(const ModelConfig& c, const std::string& kind) {
    if (kind == "moe_token_choice") return double(c.top_k + c.shared_experts);
    if (kind == "moe_expert_choice") return c.expert_choice_fraction * double(c.experts) + double(c.shared_experts);
    return double(c.experts) / double(c.group_size);
}

int64_t outputs_that_add_up(const ModelConfig& c, const std::string& kind) {
    std::string rule = c.expert_down_init;
    if (rule == "default") rule = kind == "mot" ? "one" : kind == "moe_token_choice" ? "all" : "chosen";
    if (rule == "all") return c.experts;
    const double shared = kind == "mot" ? 0 : double(c.shared_experts);  // a sum of their own
    return rule == "one" ? 1 : std::max<int64_t>(1, std::llround(experts_of_a_token(c, kind) - shared));
}

double aux_loss_weight(const ModelConfig& c, const std::string& metric) {
    if (metric == "z_loss") return c.router_z_loss_weight;
    if (metric != "balance_loss") return 0;
    const std::vector<std::string> blocks = parse_pattern(c.pattern);
    const auto layers = std::count(blocks.begin(), blocks.end(), "moe_token_choice");
    return c.load_balancing_over == "mean" ? c.load_balancing_weight / double(layers) : c.load_balancing_weight;
}

namespace {

// The hidden size at which an expert layer costs as much as a dense one, or (not flop_matched) has its parameters.
int64_t default_expert_size(const ModelConfig& c, const std::string& kind) {
    if (kind == "mot" || !c.flop_matched) {
        const bool by_group = kind == "mot" && c.flop_matched;
        const int64_t width = c.d_ff * (by_group ? c.group_size : 1);
        if (width % c.experts)
            input_error("--experts ", c.experts, " does not divide the layer's width of ", width, " (d_ff ", c.d_ff,
                        by_group ? str(" x group_size ", c.group_size) : "", "): set --expert-size");
        return width / c.experts;
    }
    const double per_token = experts_of_a_token(c, kind);
    const double size = double(c.d_ff) / per_token, whole = std::round(size);
    if (whole < 1 || std::abs(size - whole) > 1e-9 * size)
        input_error("d_ff ", c.d_ff, " is not divisible among the ", per_token, " experts that a token of ", kind,
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

void check_moe(const ModelConfig& c) {
    if (c.top_k > c.experts)
        input_error("--top-k ", c.top_k, " is more than there are experts (--experts ", c.experts, ")");
    if (!(c.capacity_factor > 0)) input_error("--capacity-factor is ", c.capacity_factor, ", it must be positive");
    if (c.router_z_loss_weight > 0 && has_block(c, "moe_expert_choice") && c.expert_choice_softmax == "tokens")
        input_error(
            "--router-z-loss-weight needs a softmax over experts: it cannot be used with --expert-choice-softmax "
            "tokens");
    if (c.expert_choice_over == "all" && c.simulate_group_size)
        input_error("--simulate-group-size ", c.simulate_group_size, " is about choosing among sequences at one "
                    "position, not among all tokens (--expert-choice-over all)");
    if (!has_block(c, "moe_token_choice")) {
        const char* flag = c.dropless            ? "--dropless"
                           : c.balanced_routing  ? "--balanced-routing"
                           : c.renormalize_gates ? "--renormalize-gates"
                                                 : nullptr;
        if (flag) input_error(flag, " is for token choice, and the pattern has no moe_token_choice");
        return;
    }
    if (c.balanced_routing && c.renormalize_gates)
        input_error("--renormalize-gates divides by the gates of chosen experts, but with --balanced-routing these "
                    "are any experts and their gates may all be 0");
    if (c.renormalize_gates && c.top_k == 1)
        input_error("--renormalize-gates makes the only gate of --top-k 1 a constant: the router would learn nothing");
    if (c.dropless && c.drop_order == "gate")
        input_error("--drop-order gate orders dropped tokens, but with --dropless there are none");
}

ModelConfig with_experts(ModelConfig c) {
    c = with_granularity(c);
    if (has_moe(c)) {
        check_moe(c);
        if (c.expert_choice_fraction == 0) c.expert_choice_fraction = double(c.top_k) / double(c.experts);
    }
    if (c.expert_size) return c;
    for (const char* kind : {"mot", "moe_token_choice", "moe_expert_choice"}) {
        if (!has_block(c, kind)) continue;
        const int64_t size = default_expert_size(c, kind);
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
    if (c.positions == "rope" && (c.d_model / c.heads) % 2)
        input_error("--positions rope needs an even head size, but --d-model ", c.d_model, " / --heads ", c.heads,
                    " is ", c.d_model / c.heads);
    if (c.d_ff == 0) c.d_ff = 4 * c.d_model;
    if (has_mot(c)) check_mot_variants(c);
    if (has_mot(c) && c.group_axis == "sequence" && c.context % c.group_size)
        input_error("--group-size ", c.group_size, " does not divide --context ", c.context,
                    " (--group-axis sequence)");
    return with_experts(c);
}

}  // namespace llmc
