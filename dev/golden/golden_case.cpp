#include "dev/golden/golden_case.h"

#include <algorithm>
#include <iterator>

#include "llmc/model/config_fields.h"

namespace llmc {
namespace {

using Json = nlohmann::json;

Json parsed(const SafetensorsFile& file, const char* key) {
    auto text = file.metadata().find(key);
    if (text == file.metadata().end())
        input_error(file.path(), ": the metadata has no \"", key, "\": not a golden file");
    Json json = Json::parse(text->second, nullptr, false);
    if (!json.is_object()) input_error(file.path(), ": the metadata's \"", key, "\" is not a JSON object");
    return json;
}

// The fields of one JSON object, with errors that name file and field.
struct Fields {
    const GoldenCase& owner;
    const Json& json;

    template <class T>
    T get(const char* key) const {
        if (!json.contains(key)) owner.bad(str("the config has no \"", key, "\""));
        try {
            return json.at(key).get<T>();
        } catch (const Json::exception&) {
            owner.bad(str("the config's \"", key, "\" has the wrong type: ", json.at(key).dump()));
        }
    }
    template <class T>
    T get(const char* key, T otherwise) const {
        return json.contains(key) ? get<T>(key) : otherwise;
    }
    template <class E>
    E word(const char* key) const {
        try {
            return from_word<E>(get<std::string>(key));
        } catch (const InputError& error) {
            owner.bad(str("the config's \"", key, "\" is unknown: ", error.what()));
        }
    }
    template <class E>
    E word(const char* key, E otherwise) const {
        return json.contains(key) ? word<E>(key) : otherwise;
    }
    int64_t size(const char* key) const {
        int64_t n = get<int64_t>(key);
        if (n < 1 || n > (int64_t(1) << 31)) owner.bad(str("the config's \"", key, "\" is ", n, ", not a size"));
        return n;
    }
    Fields inside(const char* key) const {
        if (!json.contains(key) || !json.at(key).is_object()) owner.bad(str("the config has no object \"", key, "\""));
        return {owner, json.at(key)};
    }
};

void read_attention(GoldenCase& c, const Fields& f) {
    c.model.heads = f.size("n_heads");
    if (f.get<bool>("rope")) c.model.positions = Positions::rope;
    c.model.attention_bias = f.get("bias", false);
}

void read_ffn(GoldenCase& c, const Fields& f) {
    c.model.d_ff = f.size("d_ff");
    c.model.ffn_activation = f.word<Hidden>("activation");
}

void check_groups(const GoldenCase& c, const char* what, int64_t size) {
    if (c.B % size) c.bad(str("B ", c.B, " is not divisible by the ", what, " ", size));
}

void read_mot(GoldenCase& c, const Fields& f) {
    c.model.experts = f.size("n_experts");
    c.model.expert_size = f.size("expert_size");
    c.model.group_size = f.size("group_size");
    c.model.temperature = f.get<double>("temperature");
    c.model.expert_activation = f.word("activation", Hidden::relu);
    c.model.group_axis = f.word<GroupAxis>("group_axis");
    std::string emit = f.get<std::string>("emit");
    if (emit != "shared" && emit != "softmax_over_experts") c.bad("the config's \"emit\" is unknown: \"" + emit + "\"");
    c.model.emit = emit == "shared" ? Emit::shared : Emit::experts;
    c.discrete = f.get("discrete", false);
    c.forward_only = c.forward_only || c.discrete;
    if (c.model.group_axis == GroupAxis::batch) check_groups(c, "group size", c.model.group_size);
}

// Refuses to run a case whose field has another value than this version computes with.
template <class T>
void only(GoldenCase& c, const Fields& f, const char* key, const T& value) {
    if (f.get<T>(key, value) != value)
        c.unsupported = str("this version has no \"", key, "\" but ", Json(value).dump());
}

// A number of the file that follows from the configuration: of tokens an expert may take.
void check_tokens_per_expert(const GoldenCase& c, const Fields& f, const char* key,
                             int64_t (*count)(const ModelConfig&, int64_t), int64_t tokens) {
    try {
        const int64_t computed = count(c.model, tokens);
        if (f.get<int64_t>(key, computed) != computed)
            input_error("the config's \"", key, "\" is ", f.get<int64_t>(key), ", computed ", computed);
    } catch (const InputError& e) {
        c.bad(e.what());
    }
}

void read_experts(GoldenCase& c, const Fields& f) {
    c.model.experts = f.size("n_experts");
    c.model.expert_size = f.size("expert_size");
    c.model.expert_activation = f.word<Hidden>("activation");
    only(c, f, "z_loss_weight", 0.0);
}

void read_token_choice(GoldenCase& c, const Fields& f) {
    read_experts(c, f);
    c.model.top_k = f.size("top_k");
    c.model.capacity_factor = f.get<double>("capacity_factor");
    c.model.load_balancing_weight = f.get<double>("load_balancing_weight");
    only(c, f, "renormalise_top_k", false);
    check_tokens_per_expert(c, f, "capacity", expert_capacity, c.B * c.T);
}

void read_expert_choice(GoldenCase& c, const Fields& f) {
    read_experts(c, f);
    const int64_t simulated = f.get<int64_t>("simulate_group_size", 1);
    c.model.expert_choice_fraction = f.get<double>("top_k_fraction");
    c.model.simulate_group_size = simulated > 1 ? simulated : 0;
    only<std::string>(c, f, "group_by", "batch");
    only<std::string>(c, f, "softmax_over", "experts");
    only(c, f, "softmax_ungrouped", false);
    only<std::string>(c, f, "gate_value", "softmax_probability");
    only(c, f, "output_layer_norm", true);
    check_tokens_per_expert(c, f, "k_per_expert_per_position", expert_choices, simulated > 1 ? simulated : c.B);
    if (simulated > 1) check_groups(c, "simulated group size", simulated);
}

// How the files describe a kind of block. In a whole model's config, its fields lie among those of the model or
// (`own_object`) in an object of their own.
struct KindReader {
    const char* kind;
    bool own_object;
    void (*read)(GoldenCase&, const Fields&);  // null: a kind of later versions
};
constexpr KindReader kind_readers[] = {{"attention", false, read_attention},
                                       {"ffn", false, read_ffn},
                                       {"mot", true, read_mot},
                                       {"moe_token_choice", true, read_token_choice},
                                       {"moe_expert_choice", true, read_expert_choice},
                                       {"mamba", true, nullptr}};

// Null if the files have no such kind.
const KindReader* find_reader(const std::string& kind) {
    const auto found = std::find_if(std::begin(kind_readers), std::end(kind_readers),
                                    [&](const KindReader& reader) { return reader.kind == kind; });
    return found == std::end(kind_readers) ? nullptr : found;
}

// The blocks of a model, and in `unsupported` what this version lacks to run it.
std::vector<std::string> read_blocks(GoldenCase& c, const Fields& f) {
    std::vector<std::string> blocks = f.get<std::vector<std::string>>("blocks");
    for (const std::string& kind : blocks) {
        const KindReader* reader = find_reader(kind);
        if (!reader) c.bad("unknown block kind \"" + kind + "\"");
        if (!reader->read) c.unsupported = "this version has no blocks of kind " + kind;
    }
    if (f.get<std::string>("residual", "pre_norm") != "pre_norm")
        c.unsupported = "this version has only pre-norm residuals";
    if (f.get<double>("norm_eps", 1e-5) != 1e-5) c.unsupported = "this version's models have norm_eps 1e-5 only";
    return blocks;
}

void read_model(GoldenCase& c, const Fields& f) {
    std::vector<std::string> blocks = read_blocks(c, f);
    if (!c.unsupported.empty()) return;
    c.model.vocab_size = f.size("vocab");
    c.model.context = f.size("context");
    c.model.positions = f.get<bool>("position_embedding") ? Positions::learned : Positions::none;
    c.model.norm = f.word<Norm>("norm");
    c.model.final_norm = f.get<bool>("final_norm");
    c.model.tied_head = f.get<bool>("tied");
    c.model.pattern.clear();
    for (const std::string& kind : blocks) {
        c.model.pattern += (c.model.pattern.empty() ? "" : " ") + kind;
        const KindReader& reader = *find_reader(kind);
        reader.read(c, reader.own_object ? f.inside(reader.kind) : f);
    }
    if (f.get<int64_t>("d_model") != c.C) c.bad("the config's \"d_model\" and the shape's \"C\" differ");
    if (c.T > c.model.context) c.bad(str("T is ", c.T, ", more than the context of ", c.model.context));
}

void read_optimizer(GoldenCase& c, const Fields& f) {
    if (f.get<std::string>("algorithm") != "adamw") c.unsupported = "golden trajectories are those of adamw";
    c.train.micro_batch = c.B;
    c.train.steps = f.size("steps");
    c.train.lr = f.get<double>("lr");
    c.train.warmup_steps = f.get<int64_t>("lr_warmup_steps");
    c.train.decay_steps = f.get<int64_t>("final_lr_step");
    c.train.final_lr_fraction = f.get<double>("final_lr_fraction");
    c.train.weight_decay = f.get<double>("weight_decay");
    const std::string decayed = f.get<std::string>("weight_decay_on", "all parameters");
    c.train.decay = decayed == "all parameters" ? Decay::all : Decay::matrices;
    c.train.beta1 = f.get<double>("beta1");
    c.train.beta2 = f.get<double>("beta2");
    c.train.adam_eps = f.get<double>("eps");
    c.train.clip = f.get<double>("grad_clip");
    if (c.T != c.model.context) c.bad(str("a trajectory's T (", c.T, ") must be its context (", c.model.context, ")"));
}

}  // namespace

GoldenCase::GoldenCase(const std::string& path) : file(path) {
    auto block = file.metadata().find("block");
    if (block == file.metadata().end()) bad("the metadata has no \"block\": not a golden file");
    kind = block->second;
    const KindReader* reader = find_reader(kind);
    if (reader && !reader->read) {
        unsupported = "this version has no blocks of kind " + kind;
        return;
    }
    config = parsed(file, "config");
    Json shape = parsed(file, "shape");
    Fields sizes{*this, shape}, fields{*this, config};
    B = sizes.size("B"), T = sizes.size("T"), C = sizes.size("C");
    model.d_model = C, model.context = T, model.heads = 1;
    forward_only = fields.get("forward_only", false);
    if (kind == "model" || kind == "trajectory") {
        read_model(*this, fields);
        if (kind == "trajectory" && unsupported.empty()) read_optimizer(*this, fields.inside("optimizer"));
    } else if (reader) {
        model.pattern = kind;
        reader->read(*this, fields);
    } else if (kind != "layernorm") {
        bad("unknown block \"" + kind + "\"");
    }
    if (!unsupported.empty()) return;
    for_each_model_field(model, [&](const FieldInfo& info, const auto& field) { check_field(info, field, path); });
    try {
        model = resolved(model);
    } catch (const InputError& e) {
        bad(e.what());
    }
}

std::vector<double> GoldenCase::floats(const std::string& name, const Shape& shape) const {
    const SafetensorsEntry& entry = file.at(name);
    if (!(entry.shape == shape))
        bad("tensor " + name + " has shape " + entry.shape.text() + ", expected " + shape.text());
    std::vector<float> values = file.read<float>(name);
    return {values.begin(), values.end()};
}

std::vector<int32_t> GoldenCase::integers(const std::string& name, const Shape& shape) const {
    const SafetensorsEntry& entry = file.at(name);
    if (!(entry.shape == shape))
        bad("tensor " + name + " has shape " + entry.shape.text() + ", expected " + shape.text());
    std::vector<int32_t> values = file.read<int32_t>(name);
    for (int32_t v : values)
        if (v < 0 || v >= model.vocab_size)
            bad(str("tensor ", name, " holds ", v, ", the vocabulary has ", model.vocab_size));
    return values;
}

void GoldenCase::require_names(const std::string& prefix, const std::vector<std::string>& names) const {
    for (const std::string& name : names)
        if (!file.find(prefix + name)) bad("tensor " + prefix + name + " is missing");
    for (const SafetensorsEntry& entry : file.tensors()) {
        if (entry.name.compare(0, prefix.size(), prefix) != 0) continue;
        if (std::find(names.begin(), names.end(), entry.name.substr(prefix.size())) == names.end())
            bad("tensor " + entry.name + " belongs to nothing in the model that the config describes");
    }
}

}  // namespace llmc
