// The design variants of MoT: every legal combination against plain float64 loops of its formulas, gradients against
// differences of those loops; identities between variants.
#include "dev/test/mot_oracle.h"

namespace llmc::test {
namespace {

// f' at x[i] by central differences.
double slope(const std::function<double()>& f, double& x) {
    const double old = x, h = 1e-5;
    x = old + h;
    const double up = f();
    x = old - h;
    const double down = f();
    x = old;
    return (up - down) / (2 * h);
}

void expect_like_oracle(const ModelConfig& c) {
    SCOPED_TRACE(text_of(c));
    Variant lab(c);
    Params params = lab.parameters();
    Vector x = lab.input;
    const Oracle oracle{lab.config, params, Variant::rows, 3};
    ASSERT_TRUE(close(lab.run(), oracle(x), 1e-12));
    const Vector dx = lab.backward(lab.dout);
    auto loss = [&] { return dot(lab.dout, oracle(x)); };
    auto expect_slope = [&](double got, double& at, double scale, const std::string& name) {
        const double want = slope(loss, at);
        EXPECT_NEAR(got, want, 1e-6 * scale + 1e-9) << name;
    };
    for (double i : random_integers(3, 0, int64_t(x.size()), 1))
        expect_slope(dx[size_t(i)], x[size_t(i)], largest(dx), "x");
    for (auto& [name, values] : params) {
        const Vector gradient = lab.grad(name.c_str());
        const int64_t n = int64_t(values.size());
        for (double i : n <= 5 ? Vector{0, double(n - 1)} : random_integers(3, 0, n, 2))
            expect_slope(gradient[size_t(i)], values[size_t(i)], largest(gradient), name);
        EXPECT_GT(largest(gradient), 1e-6) << name;
    }
}

TEST(MotVariants, EveryCombinationMatchesItsFormulasAndTheirDifferences) {
    const std::vector<ModelConfig> all = combinations();
    EXPECT_GT(all.size(), small_sizes() ? 60u : 400u);
    for (const ModelConfig& c : all) {
        expect_like_oracle(c);
        if (HasFailure()) return;  // one is enough
    }
}

// The gradients of a second micro-batch are added to those of the first.
TEST(MotVariants, GradientsAccumulate) {
    for (const ModelConfig& c : combinations()) {
        if (c.group_size == 4 || c.group_axis == GroupAxis::sequence) continue;
        SCOPED_TRACE(text_of(c));
        Variant lab(c);
        lab.run();
        lab.backward(lab.dout);
        std::map<std::string, Vector> once;
        for (const std::string& name : lab.names()) once[name] = lab.grad(name.c_str());
        lab.pass.accumulate = true;
        lab.backward(lab.dout);
        for (auto& [name, values] : once) {
            for (double& v : values) v *= 2;
            EXPECT_TRUE(close(lab.grad(name.c_str()), values, 1e-13)) << name;
        }
    }
}

// In f32 and bf16 the same numbers as in f64, up to the rounding of what is stored on the way: about ten tensors in
// each direction, and divisions by temperatures and deviations below one that make the errors before them larger. In
// f32 the rounding of the sums adds to it.
TEST(MotVariants, OtherPrecisionsAreClose) {
    for (const ModelConfig& c : combinations()) {
        if (c.group_size == 4) continue;
        SCOPED_TRACE(text_of(c));
        for (const char* precision : {"fp32", "bf16"}) {
            Variant low(c, precision), exact(c);
            const DType act = low.precision.act;
            for (const auto& [name, values] : low.parameters()) exact.set_param(name.c_str(), values);
            const Vector x = rounded(act, low.input), dout = rounded(act, low.dout);
            const double tol = (act == DType::bf16 ? 40 : 96) * roundoff(act);
            const Vector out = low.forward(x), exact_out = exact.forward(x);
            EXPECT_TRUE(close(out, exact_out, tol)) << precision;
            const Vector dx = low.backward(dout), exact_dx = exact.backward(dout);
            EXPECT_TRUE(close(dx, exact_dx, tol)) << precision;
        }
    }
}

TEST(MotVariants, DiscreteWeights) {
    for (Emit emit : values_of<Emit>())
        for (GroupOrder order : values_of<GroupOrder>()) {
            ModelConfig c = small_mot(4);
            c.emit = emit, c.group_order = order;
            if (c.emit == Emit::group) c.controllers = Controllers::separate;
            Variant lab(c);
            lab.pass.discrete = true;
            const Params params = lab.parameters();
            EXPECT_TRUE(close(lab.run(), Oracle{lab.config, params, Variant::rows, 3, true}(lab.input), 1e-12)) << emit;
        }
}

// ---------------------------------------------------------------------------------------------------------- identities
// The outputs and input gradients of two variants, with what `set` makes of the parameters of the first.
void expect_same(ModelConfig a, ModelConfig b, const std::function<void(Params&)>& set, double tol = 1e-13) {
    SCOPED_TRACE(text_of(a) + "\nand " + text_of(b));
    Variant first(a), second(b);
    Params params = second.parameters();
    for (const auto& [name, values] : first.parameters())
        if (!params.count(name)) params[name] = values;
    set(params);
    for (const std::string& name : first.names()) first.set_param(name.c_str(), params.at(name));
    for (const std::string& name : second.names()) second.set_param(name.c_str(), params.at(name));
    EXPECT_TRUE(close(first.run(), second.run(), tol));
    EXPECT_TRUE(close(first.backward(first.dout), second.backward(second.dout), tol));
}

ModelConfig with(const std::function<void(ModelConfig&)>& change) {
    ModelConfig c = small_mot(4);
    change(c);
    return c;
}

TEST(MotIdentities, TemperatureOneIsNone) {
    for (TemperatureForm form : values_of<TemperatureForm>())
        for (bool per_expert : {false, true})
            expect_same(with([&](ModelConfig& c) {
                            c.learn_temperature = LearnTemperature::tied, c.temperature_form = form;
                            c.temperature_per_expert = per_expert;
                        }),
                        small_mot(4),
                        [](Params& p) { std::fill(p["temperature"].begin(), p["temperature"].end(), 1.0); });
}

TEST(MotIdentities, ALearnedTemperatureIsAFactorOfTheGiven) {
    expect_same(with([](ModelConfig& c) { c.learn_temperature = LearnTemperature::tied; }),
                with([](ModelConfig& c) { c.temperature = 0.7; }), [](Params& p) { p["temperature"] = {0.7}; });
}

TEST(MotIdentities, EqualControllersAreOne) {
    auto equal = [](Params& p) { p["emit_controller.weight"] = p["controller.weight"]; };
    expect_same(with([](ModelConfig& c) { c.emit = Emit::group, c.controllers = Controllers::separate; }), small_mot(4),
                equal);
    expect_same(with([](ModelConfig& c) { c.emit = Emit::experts, c.controllers = Controllers::separate; }),
                with([](ModelConfig& c) { c.emit = Emit::experts; }), equal);
}

TEST(MotIdentities, EqualTemperaturesAreOne) {
    expect_same(with([](ModelConfig& c) { c.emit = Emit::group, c.learn_temperature = LearnTemperature::separate; }),
                with([](ModelConfig& c) { c.learn_temperature = LearnTemperature::tied; }),
                [](Params& p) { p["emit_temperature"] = p["temperature"]; });
}

TEST(MotIdentities, NoBaseIsSeparate) {
    for (Emit emit : {Emit::group, Emit::experts}) {
        auto variant = [&](Controllers controllers) {
            return with([&](ModelConfig& c) { c.emit = emit, c.controllers = controllers; });
        };
        expect_same(variant(Controllers::common_base), variant(Controllers::separate),
                    [](Params& p) { std::fill_n(p["base_controller.weight"].begin(), 15, 0.0); });
        auto ones = [](Params& p) { p["controller_mix"] = p["emit_controller_mix"] = {1}; };
        expect_same(variant(Controllers::weighted), variant(Controllers::separate), ones);
        expect_same(variant(Controllers::weighted_common), variant(Controllers::separate), ones);
        expect_same(variant(Controllers::weighted), variant(Controllers::weighted_common),
                    [](Params& p) { p["emit_controller_mix"] = p["controller_mix"]; });
    }
}

// With one group over the whole batch, every order is the same group.
TEST(MotIdentities, AnOrderInsideOneGroupChangesNothing) {
    auto whole = [](GroupOrder order) {
        ModelConfig c = small_mot(Variant::rows);
        c.group_order = order;
        return c;
    };
    expect_same(whole(GroupOrder::random), whole(GroupOrder::consecutive), [](Params&) {});
    Variant random(with([](ModelConfig&c) { c.group_order = GroupOrder::random; })), consecutive(small_mot(4));
    EXPECT_TRUE(different(random.run(), consecutive.run(), 1e-3));
    Variant other(with([](ModelConfig& c) { c.group_order = GroupOrder::random; }), "fp64", 4);
    EXPECT_TRUE(different(random.run(), other.run(), 1e-3));
    EXPECT_TRUE(identical(random.run(), random.run()));
}

}  // namespace
}  // namespace llmc::test
