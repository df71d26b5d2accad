#include "llmc/checkpoint/convert.h"

#include <algorithm>
#include <cctype>
#include <cmath>

namespace llmc {

namespace {

constexpr const char* controller = ".controller.weight";
constexpr const char* router = ".router.weight";

// `name`, or with the last part `from` the same with `to`.
std::string with_ending(const std::string& name, const std::string& from, const std::string& to) {
    return name.ends_with(from) ? name.substr(0, name.size() - from.size()) + to : name;
}

// The other word for the same tensor.
std::string counterpart(const std::string& name) {
    return name.ends_with(router) ? with_ending(name, router, controller) : with_ending(name, controller, router);
}

// The pattern with the block `to` wherever `from` stands. A word may follow its count, "4 xmot": then its first letter
// is the x.
std::string replace_block(const std::string& pattern, const std::string& from, const std::string& to) {
    auto letter = [](char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; };
    std::string result;
    for (size_t i = 0; i < pattern.size();) {
        size_t end = i;
        while (end < pattern.size() && letter(pattern[end])) end++;
        std::string word = pattern.substr(i, end - i);
        const size_t before = result.find_last_not_of(" \t\n\v\f\r");
        const bool counted = before != std::string::npos && std::isdigit(static_cast<unsigned char>(result[before]));
        if (counted && !word.empty()) result += word[0], word.erase(0, 1);
        result += word == from ? to : word;
        if (end < pattern.size()) result += pattern[end++];
        i = end;
    }
    std::vector<std::string> want = parse_pattern(pattern);
    std::replace(want.begin(), want.end(), from, to);
    if (parse_pattern(result) != want) run_error("pattern \"", pattern, "\" with ", to, " became \"", result, "\"");
    return result;
}

// What makes a Mixture of Tokens more than one router with a softmax: no sparse block can be initialised from it.
void check_convertible(const ModelConfig& c, const std::string& where) {
    auto refuse = [&](const std::string& flag, const char* why) {
        input_error("the model in ", where, " has ", flag, ": it cannot become a sparse mixture, ", why);
    };
    if (c.router != Router::learned)
        refuse(str("--router ", c.router), "because it has no controller to make a router of");
    if (c.controllers != Controllers::shared) refuse(str("--controllers ", c.controllers), "which has one router");
    if (c.emit != Emit::shared) refuse(str("--emit ", c.emit), "which has one gate a token and expert");
    if (!c.merge_softmax) refuse("--no-merge-softmax", "whose gates are a softmax");
    if (c.learn_temperature != LearnTemperature::no)
        refuse(str("--learn-temperature ", c.learn_temperature), "which has no temperature");
    if (c.mixture_norm) refuse("--mixture-norm", "which has no such norms");
    if (c.group_axis != GroupAxis::batch) refuse(str("--group-axis ", c.group_axis), "which is to be causal");
}

ModelConfig to_sparse(ModelConfig c, Mixture to, const std::string& where) {
    check_convertible(c, where);
    c.pattern = replace_block(c.pattern, "mot", block_of(to));
    c.temperature = 1;
    c.granularity = c.expansion = 0;  // number and size of the experts are given
    c.top_k = std::clamp<int64_t>(std::llround(double(c.experts) / double(c.group_size)), 1, c.experts);
    c.shared_experts = 0;
    if (to == Mixture::expert_choice) {
        c.simulate_group_size = c.group_size;
        c.expert_choice_fraction = 1.0 / double(c.group_size);
        c.expert_choice_over = Candidates::batch;
        c.expert_choice_norm = false;  // it would change the size of what the layers above were trained on
    }
    return c;
}

ModelConfig to_mot(ModelConfig c, int64_t group_size, const std::string& where) {
    if (c.shared_experts)
        input_error("the model in ", where, " has --shared-experts ", c.shared_experts,
                    ": a Mixture of Tokens has no shared experts");
    for (Mixture sparse : {Mixture::token_choice, Mixture::expert_choice})
        c.pattern = replace_block(c.pattern, block_of(sparse), "mot");
    if (group_size) c.group_size = group_size;
    c.granularity = c.expansion = 0;
    return c;
}

}  // namespace

const char* block_of(Mixture mixture) {
    return mixture == Mixture::mot            ? "mot"
           : mixture == Mixture::token_choice ? "moe_token_choice"
                                              : "moe_expert_choice";
}

ModelConfig converted(const ModelConfig& from, Mixture to, int64_t group_size, const std::string& where) {
    if (has_mot(from) && has_moe(from))
        input_error("the model in ", where,
                    " has both Mixture-of-Tokens and sparse blocks: only one kind is converted");
    if (!has_mot(from) && !has_moe(from))
        input_error("the model in ", where, " has no Mixture-of-Tokens block (--pattern \"", from.pattern,
                    "\"): there is nothing to convert");
    const ModelConfig mot = has_mot(from) ? from : to_mot(from, group_size, where);
    return resolved(to == Mixture::mot ? mot : to_sparse(mot, to, where));
}

std::unique_ptr<Model> model_as(const ModelConfig& other, const Model& source, Context& ctx) {
    auto model = std::make_unique<Model>(other, source.precision, true, ctx);
    for (Unit& unit : model->table.units) {
        const Unit* lies_in = source.table.find_unit(unit.name);
        if (!lies_in) input_error("the checkpoint has no parameters ", unit.name);
        unit.offset = lies_in->offset, unit.size = lies_in->size;
        for (ParamSpec& spec : unit.params) {
            const auto same = std::find_if(lies_in->params.begin(), lies_in->params.end(), [&](const ParamSpec& s) {
                return (s.name == spec.name || s.name == counterpart(spec.name)) && s.shape == spec.shape;
            });
            if (same == lies_in->params.end())
                input_error("the checkpoint has no parameter ", spec.name, " of shape ", spec.shape.text());
            spec.offset = same->offset;
        }
    }
    model->table.size = source.table.size;
    model->params = source.params, model->compute = source.compute;
    model->find_places();
    return model;
}

void load_converted(const Checkpoint& checkpoint, const char* file, const std::vector<NamedTensor>& tensors,
                    Context& ctx, World& world) {
    const nlohmann::json& saved = checkpoint.state.at("files").at(file).at("tensors");
    std::vector<NamedTensor> wanted;
    for (NamedTensor t : tensors) {
        if (!saved.contains(t.name) && t.name.find(".output_norm.") != std::string::npos) continue;
        if (!saved.contains(t.name)) t.name = counterpart(t.name);
        wanted.push_back(t);
    }
    load_tensors(checkpoint, file, wanted, ctx, world);
}

namespace {

template <class T>
void scale(const Tensor& tensor, double factor, Context& ctx) {
    std::vector<T> values(size_t(tensor.numel()));
    download(values.data(), tensor, ctx);
    for (T& value : values) {
        if constexpr (std::is_same_v<T, double>)
            value = value * factor;
        else
            value = float(double(float(value)) * factor);
    }
    upload(tensor, values.data(), ctx);
}

}  // namespace

void scale_routers(const std::vector<NamedTensor>& tensors, double factor, Context& ctx) {
    for (const NamedTensor& t : tensors) {
        if (factor == 1 || (!t.name.ends_with(controller) && !t.name.ends_with(router))) continue;
        switch (t.tensor.dtype) {
            case DType::f32: scale<float>(t.tensor, factor, ctx); break;
            case DType::bf16: scale<bf16>(t.tensor, factor, ctx); break;
            case DType::f64: scale<double>(t.tensor, factor, ctx); break;
            case DType::i32: run_error("router ", t.name, " cannot be ", name_of(t.tensor.dtype));
        }
    }
}

}  // namespace llmc
