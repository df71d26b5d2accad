// What a configuration says about Mixtures of Tokens: the functions of their row in kind_table.h.
#include "llmc/model/blocks/kind_table.h"
#include "llmc/model/config.h"

namespace llmc {

namespace {

// A fixed router has no logits for these options to change.
void check_uniform(const ModelConfig& c) {
    const char* flag = c.controllers != Controllers::shared                ? "--controllers"
                       : c.learn_temperature != LearnTemperature::no       ? "--learn-temperature"
                       : c.temperature != 1                                ? "--temperature"
                       : !c.merge_softmax                                  ? "--no-merge-softmax"
                       : c.emit != Emit::shared && c.emit != Emit::experts ? "--emit"
                                                                           : nullptr;
    if (flag)
        input_error(flag, " changes what the controller learns, but --router uniform has none: choose one of the two");
}

void check_emit(const ModelConfig& c) {
    const bool softmax = c.emit == Emit::group || c.emit == Emit::experts;
    const bool own_controller = c.controllers != Controllers::shared,
               own_temperature = c.learn_temperature == LearnTemperature::separate;
    if (c.emit == Emit::group && !own_controller && !own_temperature)
        input_error(
            "--emit group equals --emit shared when merge and emit have the same logits: give emit its own controller "
            "(--controllers) or temperature (--learn-temperature separate)");
    if (!softmax && own_controller)
        input_error("--controllers ", c.controllers, " gives emit a controller, but --emit ", c.emit,
                    " does not use one: choose --emit group or experts");
    if (!softmax && own_temperature)
        input_error("--learn-temperature separate gives emit a temperature, but --emit ", c.emit,
                    " has no softmax of its own: choose --emit group or experts, or --learn-temperature tied");
}

void check_temperature(const ModelConfig& c) {
    if (c.learn_temperature != LearnTemperature::no) return;
    const char* flag = c.temperature_per_expert                       ? "--temperature-per-expert"
                       : c.temperature_form != TemperatureForm::plain ? "--temperature-form"
                       : c.temperature_start != 0                     ? "--temperature-start"
                                                                      : nullptr;
    if (flag) input_error(flag, " needs a learned temperature: set --learn-temperature tied or separate");
}

void check_no_softmax(const ModelConfig& c) {
    if (c.emit != Emit::shared)
        input_error("--no-merge-softmax uses the logits as weights of both merge and emit: --emit ", c.emit,
                    " cannot be used with it");
    if (c.learn_temperature != LearnTemperature::no || c.temperature != 1)
        input_error("--no-merge-softmax has no softmax for ",
                    c.temperature != 1 ? "--temperature" : "--learn-temperature", " to change");
}

}  // namespace

bool has_mot(const ModelConfig& config) { return has_block(config, "mot"); }
bool shuffles_groups(const ModelConfig& config) { return config.group_order == GroupOrder::random && has_mot(config); }

double mot_experts_of_a_token(const ModelConfig& c) { return double(c.experts) / double(c.group_size); }
int64_t mot_group_size(const ModelConfig& c) { return c.group_size; }

void resolve_mot(ModelConfig& c) {
    if (c.router == Router::uniform) check_uniform(c);
    check_emit(c);
    check_temperature(c);
    if (!c.merge_softmax) check_no_softmax(c);
    if (c.group_axis == GroupAxis::sequence && c.context % c.group_size)
        input_error("--group-size ", c.group_size, " does not divide --context ", c.context,
                    " (--group-axis sequence)");
}

void check_mot_rows(const ModelConfig& c, int64_t rows, int64_t group_size) {
    const int64_t g = group_size ? group_size : c.group_size;
    if (c.group_axis == GroupAxis::batch && rows % g)
        input_error("a batch of ", rows, " sequences cannot be cut into MoT groups of ", g, ": make the micro-batch (",
                    rows, ") a multiple of the group size (", g, ")");
    if (c.group_axis == GroupAxis::sequence && c.context % g)
        input_error("a sequence of ", c.context, " tokens cannot be cut into MoT groups of ", g,
                    ": choose a group size that divides it");
}

std::string mot_sees_the_future(const ModelConfig& c) {
    return c.group_axis == GroupAxis::sequence ? "whose MoT groups lie within a sequence (--group-axis sequence)" : "";
}

std::vector<std::string> mot_warnings(const ModelConfig& c) {
    if (c.group_axis != GroupAxis::sequence) return {};
    return {"--group-axis sequence mixes positions of one sequence: the model sees its own future"};
}

void check_discrete(const ModelConfig& c) {
    if (has_mot(c) && (!c.merge_softmax || c.router == Router::uniform))
        input_error("discrete evaluation puts a one at the maximum of each softmax, but this model has none (",
                    c.merge_softmax ? "--router uniform" : "--no-merge-softmax", ")");
}

}  // namespace llmc
