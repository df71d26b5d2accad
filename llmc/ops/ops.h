// The op contract: every operation a model is made of. Each backend (ops/cpu/, ops/cuda/) implements all of it; one is
// chosen at link time.
//
// Rules. Outputs come first, then inputs, then what shapes cannot say, then the Context. Ops only enqueue work. They
// check shapes and dtypes and name the tensor that is wrong (RunError). A default-constructed Tensor means "not given".
// Zero rows are legal. Aliasing is forbidden unless stated. `accumulate` = false overwrites a gradient, true adds to
// it.
//
// Letters. B sequences, T positions, C = d_model, H heads, D = C / H, F hidden size of a feed-forward, V vocabulary, E
// experts, g group size, R = B*T/g rows of mixed tokens per expert.
//
// Types. "act" is the activation type (f32, bf16 or f64); weights have the same type as the activations they meet.
// Gradients of parameters and everything marked f32 below are f32, except that all of them are f64 when act is f64.
// bf16 is storage: arithmetic is f32. Sums over long axes are deterministic: fixed chunks, whatever the number of
// threads.
#pragma once
#include "llmc/ops/context.h"

namespace llmc {

// ------------------------------------------------------------------------------------------------------ memory
// Device memory, at least 256-byte aligned, contents undefined. RunError if there is not enough. While counting: a fake
// address.
void* device_alloc(int64_t bytes, Context& ctx);
void device_free(void* data, int64_t bytes, Context& ctx);
int64_t device_memory_available(Context& ctx);  // bytes that could still be allocated now; -1: there is no device

void upload(Tensor dst, const void* host, Context& ctx);  // dst.bytes() bytes from the host
void download(void* host, Tensor src, Context& ctx);      // waits until src is final, then copies src.bytes() bytes
void fill(Tensor t, double value, Context& ctx);          // any dtype, contiguous
void copy(Tensor dst, Tensor src, Context& ctx);          // equal numel, contiguous; converts between float types
void swap_axes(Tensor out, Tensor in, Context& ctx);      // out [b,a,n] = in [a,b,n], any dtype
void synchronize(Context& ctx);

bool backend_supports(DType act);                    // as the type of activations: f64 is for the CPU only
std::string backend_description(Context& ctx);       // e.g. "cpu, 2 threads, AVX-512, oneDNN 2.6.3"
// The most FLOP/s that matrix products with these activations could reach.
struct Peak {
    double flops;     // 0: unknown
    std::string how;  // "measured now" (a loop of multiply-adds, about 0.1 s), or whose datasheet says so
};
Peak peak_flops(DType act, Context& ctx);
// The most bytes a second that device memory could deliver and take: passes over arrays much larger than the caches,
// for 0.2 s. Needs up to a quarter of the free memory for that while.
struct Bandwidth {
    double bytes;  // read and written
    std::string how;
};
Bandwidth peak_bandwidth(Context& ctx);

// --------------------------------------------------------------------------------------------------- embedding
// out[b,t,:] = token_table[tokens[b,t],:] + position_table[first_position + t,:]
// out [B,T,C] act; tokens [B,T] i32; token_table [V,C]; position_table [context,C] or not given
// A token outside the vocabulary is refused; by a GPU, which cannot say so in time, its row is made NaN and its
// gradient left out.
void embedding_forward(Tensor out, Tensor tokens, Tensor token_table, Tensor position_table, int64_t first_position,
                       Context& ctx);
// dtoken_table [V,C] f32 (+)= rows of dout by token; dposition_table [context,C] f32 (rows >= T get zero unless
// accumulating).
void embedding_backward(Tensor dtoken_table, Tensor dposition_table, Tensor dout, Tensor tokens, bool accumulate_token,
                        bool accumulate_position, Context& ctx);

// -------------------------------------------------------------------------------------------------------- norm
enum class Norm { layernorm, rmsnorm };
// layernorm: out = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(var + eps), var divides by C   (Ba et al. 2016)
// rmsnorm:   out = x * rstd * weight (+ bias),         rstd = 1 / sqrt(mean(x^2) + eps)               (Zhang & Sennrich
// 2019) x, out [..., C] act; mean, rstd [...] f32 (mean is not given for rmsnorm); weight [C]; bias [C] or not given.
void norm_forward(Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias, Norm kind, double eps,
                  Context& ctx);
// sum = x + branch; then as above with x = sum. One pass over memory. `sum` may alias `x`.
void residual_norm_forward(Tensor sum, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor branch, Tensor weight,
                           Tensor bias, Norm kind, double eps, Context& ctx);
// dx += (accumulate_dx) or = gradient through the norm; dweight, dbias [C] f32 (dbias not given if there is no bias).
// dx may alias dout, unless it accumulates.
void norm_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                   Tensor weight, Norm kind, bool accumulate_dx, bool accumulate, Context& ctx);
// out = a + b, elementwise. out may alias a.
void add(Tensor out, Tensor a, Tensor b, Context& ctx);

// ------------------------------------------------------------------------------------------------------ matmul
enum class Activation { none, relu, gelu, gelu_erf, silu };  // gelu is the tanh form

struct MatmulOptions {
    bool transpose_a = false, transpose_b = false;
    int64_t expected_rows = 0;                 // ragged: rows that FLOPs are counted for; 0: as many as there may be
    bool accumulate = false;                   // out += instead of out =; not together with any of the following
    Tensor bias{};                             // [N], added to every row
    Activation activation = Activation::none;  // applied after the bias
    Activation backward = Activation::none;    // out *= f'(pre): back through the activation f
    // Like out. With `activation`, if given, it gets the values before the activation; with `backward` it holds them
    // (for relu, the activation's output will do).
    Tensor pre{};
    Tensor value{};  // like out; with `backward`, if given, it gets f(pre) again, of pre as it is stored
};
// out = act(op(a) op(b) + bias), row-major, op transposes if asked.
// If out, a and b all have rank 3, the first axis is a batch: out [n,M,N], a [n,M,K], b [n,K,N].
// Otherwise each is folded into rows x columns: x [B,T,C] times weight [O,C] (transpose_b) gives [B,T,O].
// a and b have one float type; out has the same, or f32 for bf16 inputs. With an activation, out is contiguous.
void matmul(Tensor out, Tensor a, Tensor b, const MatmulOptions& options, Context& ctx);

// dbias [N] f32 (+)= column sums of dout [..., N].
void bias_backward(Tensor dbias, Tensor dout, bool accumulate, Context& ctx);

// ------------------------------------------------------------------------------------------------- activations
// out = f(x). gelu: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))  (Hendrycks & Gimpel 2016); silu: x sigmoid(x).
// out may alias x.
void activation_forward(Tensor out, Tensor x, Activation kind, Context& ctx);
// dx = dout * f'(x); value, if given, gets f(x) again. For relu, x may be the output as well as the input. dx may alias
// dout.
void activation_backward(Tensor dx, Tensor value, Tensor dout, Tensor x, Activation kind, Context& ctx);
// out = f(gate) * up: SwiGLU with f = silu (Shazeer 2020).
void gated_forward(Tensor out, Tensor gate, Tensor up, Activation kind, Context& ctx);
// value, if given, gets f(gate) * up again. dup may alias dout.
void gated_backward(Tensor dgate, Tensor dup, Tensor value, Tensor dout, Tensor gate, Tensor up, Activation kind,
                    Context& ctx);

// --------------------------------------------------------------------------------------------------- attention
// Causal multi-head attention without a T x T matrix in memory (Dao et al. 2022): tiles, online softmax.
// qkv [B,T,3C] = rows of Q | K | V, each H heads of size D; out [B,T,C]; lse [B,H,T] f32 = log-sum-exp of the scaled
// scores.
void attention_forward(Tensor out, Tensor lse, Tensor qkv, int64_t heads, Context& ctx);
void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse, int64_t heads, Context& ctx);
// Rotary position embedding (Su et al. 2021) of Q and K in place, base 10000, pairs (i, i + D/2), position =
// first_position + t: (a, b) -> (a cos - b sin, b cos + a sin). inverse = true rotates back, which is the backward of
// the same op on dqkv.
void rope(Tensor qkv, int64_t heads, int64_t first_position, bool inverse, Context& ctx);
// Generation: puts K and V of n new positions (qkv [B,n,3C], rotated already) into keys, values [B,context,C] at
// first_position and attends from the new positions to all up to themselves. out [B,n,C].
void attention_extend(Tensor out, Tensor keys, Tensor values, Tensor qkv, int64_t first_position, int64_t heads,
                      Context& ctx);

// -------------------------------------------------------------------------------------------------------- head
// losses[n] = logsumexp(logits_n) - logits_n[target_n], logits = x weight^T; x [N,C] act; weight [V,C]; targets [N]
// i32, -1: loss 0 and no gradient; losses [N] f32. If dx [N,C] act and dweight [V,C] f32 are given, also their
// gradients for d(total)/d(losses[n]) = dloss. Works in chunks of rows of logits: the full [N,V] never exists. dx is
// overwritten.
void head_loss(Tensor losses, Tensor dx, Tensor dweight, Tensor x, Tensor weight, Tensor targets, double dloss,
               bool accumulate, Context& ctx);

// --------------------------------------------------------------------------------------------------------- MoT
// A group is g tokens. Over the batch: rows j*g .. j*g+g-1 at one position t; its row is r = j*T + t. Within a
// sequence: positions j*g .. j*g+g-1 of row b; r = b*(T/g) + j. Weights have one value per (token, expert): [B,T,E],
// f32.
// Formulas: docs/mot.md (Antoniak et al. 2023).
struct Group {
    int64_t size = 1;
    bool within_sequence = false;
};
enum class SoftmaxOver { group, experts };

// weights = softmax of logits / temperature over the g tokens of a group (per expert), or over the experts (per token).
void mot_softmax_forward(Tensor weights, Tensor logits, SoftmaxOver over, Group group, double temperature,
                         Context& ctx);
// dlogits (+)= w (dw - sum w dw) / temperature.
void mot_softmax_backward(Tensor dlogits, Tensor dweights, Tensor weights, SoftmaxOver over, Group group,
                          double temperature, bool accumulate, Context& ctx);
// In place: 1 at the maximum of each softmax, 0 elsewhere; ties go to the lowest index.
void mot_discretize(Tensor weights, SoftmaxOver over, Group group, Context& ctx);

// slots[e,r,:] = sum over tokens i of the group: weights[i,e] tokens[i,:].    slots [E,R,C] act, tokens [B,T,C] act
// Merge tokens forward; also the gradient of mot_emit with respect to slots.
void mot_merge(Tensor slots, Tensor weights, Tensor tokens, Group group, Context& ctx);
// tokens[i,:] (+)= sum over experts e: weights[i,e] slots[e,r,:].
// Emit expert outputs; also the gradient of mot_merge with respect to tokens.
void mot_emit(Tensor tokens, Tensor weights, Tensor slots, Group group, bool accumulate, Context& ctx);
// dweights[i,e] (+)= <tokens[i,:], slots[e,r,:]>: the gradient of merge (slots = dslots) and emit (tokens = dtokens)
// for weights.
void mot_weights_backward(Tensor dweights, Tensor tokens, Tensor slots, Group group, bool accumulate, Context& ctx);

// Learnable temperatures: scaled[i,e] = logits[i,e] / tau_e, tau = p, or exp(p - 1) which is positive whatever p.
// logits, scaled [..., E] f32; p [1] act (one for all) or [E] act. scaled may alias logits.
void temperature_forward(Tensor scaled, Tensor logits, Tensor p, bool exponential, Context& ctx);
// dlogits = dscaled / tau, dp (+)= its gradient -sum dscaled scaled / tau * dtau/dp, f32. dlogits may alias dscaled.
void temperature_backward(Tensor dlogits, Tensor dp, Tensor dscaled, Tensor scaled, Tensor p, bool exponential,
                          bool accumulate, Context& ctx);
// mean [1] f64 = mean of tau over the elements of p: for the log.
void temperature_mean(Tensor mean, Tensor p, bool exponential, Context& ctx);

// out = w a + (1 - w) b with a learnable scalar w [1] act; out, a, b of one shape, act.
void interpolate(Tensor out, Tensor a, Tensor b, Tensor w, Context& ctx);
// da (+)= w dout, db (+)= (1 - w) dout, dw [1] (+)= <dout, a - b>; dout and the gradients f32; a, b, w act.
struct InterpolateAccumulate {
    bool a = false, b = false, w = false;
};
void interpolate_backward(Tensor da, Tensor db, Tensor dw, Tensor dout, Tensor a, Tensor b, Tensor w,
                          InterpolateAccumulate accumulate, Context& ctx);

// A random order of a batch: with a permutation `order` of the sequences, position t of sequence order[b] comes to
// stand at (b,t); within_sequence: with one of the positions, position order[t] of sequence b. The tables are a routing
// of one expert, for moe_gather (to the new places) and moe_scatter (back): slots [1,B*T] i32 = the token that comes to
// stand at n, where [B,T,1] i32 = the place of the token.
// order sorts the lines l by 64 random bits, words 1 and 0 of the Philox block with counter (l, 0, draw, 0) and key
// seed; ties: the lower l first. draw [1] i32 lies in device memory: a new one for every micro-batch.
void random_order(Tensor slots, Tensor where, Tensor draw, uint64_t seed, bool within_sequence, Context& ctx);

// stats [4] f64 = mean and standard deviation of the softmax entropy divided by log(axis length) (1 if the length is
// 1), then mean and standard deviation of the logits.
void mot_statistics(Tensor stats, Tensor weights, Tensor logits, SoftmaxOver over, Group group, Context& ctx);

// --------------------------------------------------------------------------------------------------- sparse MoE
// Sparsely activated experts (Shazeer et al. 2017). N = B*T tokens n = b*T + t; E experts; the inputs and outputs of
// all experts are matrices of R rows, [R,C]:
//   with a capacity   every expert owns S rows ("slots"), e*S .. e*S + S-1, filled or not: R = E*S, and [R,C] may be
//                     written [E,S,C];
//   dropless          expert e owns rows offsets[e] .. offsets[e+1]-1, as many as it needs, rounded up to a multiple of
//                     ragged_tile(). offsets [E+1] i32 lies in device memory; R = ragged_rows(pairs, E) is the most
//                     there can be, and rows from offsets[E] on belong to nobody.
// A routing is a decision, told twice: slots i32, R elements = the pair n*E + e whose row this is, or -1 for an empty
// row; where [B,T,E] i32 = the row of the pair, -1 if the token has not chosen the expert, -2 if it was dropped. probs
// [B,T,E] f32 = softmax over experts of the router's logits (mot_softmax_forward does it).
int64_t ragged_tile();  // a property of the backend: 1 on the CPU
inline int64_t ragged_rows(int64_t pairs, int64_t experts) { return pairs + experts * (ragged_tile() - 1); }

enum class DropOrder { position, gate };
struct ExpertChoices {
    int64_t k = 1;  // experts of a token
    DropOrder order = DropOrder::position;
    bool balanced = false;  // ignore probs: token n goes to experts (n*k + i) mod E, i < k. For timings and tests.
};
// Token choice (Fedus et al. 2021, Switch; k > 1: Lepikhin et al. 2020): every token goes to the k experts with its
// largest probs, ties to the lowest index. With a capacity, slots [E,S]: an expert keeps the first S that come, in the
// order of n, or the S with the largest probs (ties: lowest n). With offsets (dropless), slots [ragged_rows(N*k, E)]:
// it keeps all. Rows are filled in the order of n, then -1. counts [E] i32 = tokens per expert before dropping.
void moe_choose_experts(Tensor slots, Tensor where, Tensor counts, Tensor offsets, Tensor probs,
                        const ExpertChoices& choices, Context& ctx);
// Expert choice (Zhou et al. 2022): an expert takes the k tokens with the largest probs out of a candidate set; ties go
// to the lowest index. group = 0: one set, all tokens (S = k; a token then sees the future). group > 0: at every
// position t one set per group, whose sequences are b = j, j + B/group, j + 2 B/group, ... for j < B/group (causal;
// S = T * (B/group) * k, slot (t * (B/group) + j) * k + rank of the sequence among the chosen, ascending in b).
void moe_choose_tokens(Tensor slots, Tensor where, Tensor probs, int64_t k, int64_t group, Context& ctx);

// gathered[r,:] = weights[n,e] x[n,:] with the pair (n,e) of row r, 0 for an empty row; without weights the factor is
// 1. gathered R rows of C act, x [B,T,C] act, slots R elements, weights [B,T,E] f32. Also the gradient of moe_scatter
// with respect to y.
void moe_gather(Tensor gathered, Tensor x, Tensor slots, int64_t experts, Tensor weights, Context& ctx);
// out[n,:] (+)= sum over the experts e with r = where[n,e] >= 0, ascending, of weights[n,e] y[r,:]; without weights
// the factor is 1. out [B,T,C] act, y R rows of C act. Also the gradient of moe_gather with respect to x.
void moe_scatter(Tensor out, Tensor y, Tensor where, Tensor weights, bool accumulate, Context& ctx);
// dweights[n,e] (+)= <dout[n,:], y[where[n,e],:]>, 0 where the token has no row: the gradient of moe_scatter for its
// weights. dweights [B,T,E] f32.
void moe_weights_backward(Tensor dweights, Tensor dout, Tensor y, Tensor where, bool accumulate, Context& ctx);

// Products of ragged rows with a matrix per expert (offsets as above), as `matmul` with the same options otherwise:
//   out [R,N] = a [R,K] b_e, b [E,K,N] ([E,N,K] with transpose_b): every row times the matrix of its expert;
//   out [E,M,N] (+)= a_e^T b_e, a [R,M] with transpose_a, b [R,N]: for every expert a sum over its rows (0 for none).
// Rows that belong to nobody are neither read nor, in out, pre and value, defined.
void matmul_ragged(Tensor out, Tensor a, Tensor b, Tensor offsets, const MatmulOptions& options, Context& ctx);

// Gates that sum to one: gates[n,e] = probs[n,e] / sum of probs[n,:] over the chosen experts (where != -1), 0 for all
// others (Shazeer et al. 2017). All [B,T,E].
void moe_renormalize(Tensor gates, Tensor probs, Tensor where, Context& ctx);
// dprobs = its gradient: (dgates[n,e] - sum over the chosen of gates dgates) / the same sum, 0 for experts not chosen.
// dprobs may alias dgates.
void moe_renormalize_backward(Tensor dprobs, Tensor dgates, Tensor gates, Tensor probs, Tensor where, Context& ctx);

// Load balancing (Fedus et al. 2021): loss = E * sum_e (counts_e / N) * (1/N) sum_n probs[n,e], counts being constant.
// stats [4] f64 = loss, share of dropped (token, expert) pairs, smallest and largest counts_e * E / sum of counts.
void moe_balance(Tensor stats, Tensor probs, Tensor counts, Tensor slots, Context& ctx);
// dprobs[n,e] += scale * E * counts_e / N^2: its gradient, times scale.
void moe_balance_backward(Tensor dprobs, Tensor counts, double scale, Context& ctx);

// Router z-loss (Zoph et al. 2022): lse[n] = log sum_e exp logits[n,e], lse [B,T] like logits; loss [1] f64, if given,
// = mean of lse^2.
void moe_z_loss(Tensor loss, Tensor lse, Tensor logits, Context& ctx);
// dlogits[n,e] += scale * 2/N * lse[n] probs[n,e]: its gradient, times scale.
void moe_z_loss_backward(Tensor dlogits, Tensor lse, Tensor probs, double scale, Context& ctx);

// --------------------------------------------------------------------------------------------------- optimizer
// What changes from step to step, in device memory: ops take it by pointer, so that no host wait is needed inside a
// step.
struct StepState {
    double lr = 0;                                      // learning rate of this step
    double loss_sum = 0;                                // sum of the losses of this step's tokens ...
    double loss_count = 0;                              // ... and how many (targets >= 0)
    double grad_square_sum = 0;                         // of all gradients
    double grad_norm = 0;                               // its root, before clipping
    double grad_scale = 1;                              // min(1, clip / (grad_norm + 1e-6))
    double bias_correction1 = 1, bias_correction2 = 1;  // 1 - beta^t
    int64_t t = 0;                                      // updates made so far: Adam's own count
    int64_t skipped = 0;                                // steps skipped so far because loss or gradient was not finite
    int64_t skipped_in_a_row = 0;
    int64_t ok = 1;  // 0: this step's update is skipped
    double total_loss_sum =
        0;  // loss_sum and loss_count of all steps that were not skipped: the difference between two
    int64_t total_loss_count = 0;  // looks is the mean loss in between
};
// `step` below is a Tensor of sizeof(StepState) bytes (i32 elements).
Tensor step_state_tensor(void* data);
Tensor step_sums(Tensor step);  // [3] f64: loss_sum, loss_count, grad_square_sum

void step_begin(Tensor step, double lr, Context& ctx);  // sets lr, clears the sums of the last step
void loss_accumulate(Tensor step, Tensor losses, Tensor targets, Context& ctx);  // adds to loss_sum and loss_count
void grad_norm_accumulate(Tensor step, Tensor grad, Context& ctx);  // grad_square_sum += sum of squares of grad [N]
// grad [N] f32 = 0 while fewer steps than `start` are over (t + skipped): its parameter is not trained before.
void freeze_until(Tensor grad, Tensor step, int64_t start, Context& ctx);
// Sets norm, clip scale, ok (everything finite?) and, if ok, advances t and the bias corrections. clip <= 0: no
// clipping.
void step_decide(Tensor step, double clip, double beta1, double beta2, Context& ctx);

struct AdamW {
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1;
    // bf16 parameters only: round up with the probability that makes the rounding right on average, instead of to
    // nearest, so that updates below half a unit in the last place are not lost (Zamirai et al. 2020). Element i adds
    // the 16 bits number (first_index + i) % 8 of the Philox block with counter ((first_index + i) / 8, t) and key seed
    // to the half of the f32 result that bf16 has no room for, and cuts that half off.
    bool stochastic_rounding = false;
    uint64_t seed = 0;
    int64_t first_index = 0;  // of param[0]: slices of a unit, updated apart, are rounded like the whole
};
// One unit in one pass (Loshchilov & Hutter 2019), unless ok = 0:
//   g = grad * grad_scale;  p *= 1 - lr * weight_decay (elements [0, decayed) only);  m, v = moving averages of g, g^2;
//   p -= lr * (m / bias_correction1) / (sqrt(v / bias_correction2) + eps)
// param [N] f32, bf16 or f64 is the master; compute_copy [N] (bf16) is rewritten from it if given; m, v, grad [N] f32
// (f64).
void adamw_update(Tensor param, Tensor compute_copy, Tensor m, Tensor v, Tensor grad, Tensor step, int64_t decayed,
                  const AdamW& options, Context& ctx);

}  // namespace llmc
