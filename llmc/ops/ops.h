// The ops: every operation that a model is made of. Each backend (ops/cpu/, ops/cuda/) implements all of them; one
// backend is chosen at link time.
//
// Rules. Arguments are outputs first, then inputs, then options that shapes cannot express, then the Context. Ops only
// enqueue work. They check shapes and dtypes; the RunError names the wrong tensor. A default-constructed Tensor means
// "not given". Zero rows are allowed. Outputs must not overlap inputs unless stated. `accumulate` = false overwrites a
// gradient, true adds to it; "(+)=" below means either.
//
// Letters. B sequences, T positions, C = d_model, H heads, D = C / H, F hidden size of a feed-forward, V vocabulary, E
// experts, g group size, R = B*T/g mixtures per expert.
//
// Types. "act" is the activation type (f32, bf16 or f64); weights have the same type as the activations they are
// multiplied with. Gradients of parameters and everything marked f32 below are f32, except that all of them are f64
// when act is f64. bf16 is a storage format: arithmetic is f32. Sums over long axes are deterministic: they use fixed
// chunks for any number of threads.
#pragma once
#include "llmc/ops/context.h"

namespace llmc {

// ------------------------------------------------------------------------------------------------------ memory
// Device memory, at least 256-byte aligned, contents undefined. RunError if there is not enough. While counting, the
// address is a fake one.
void* device_alloc(int64_t bytes, Context& ctx);
// Frees memory of device_alloc; `bytes` as given there. RunError if it was not allocated here.
void device_free(void* data, int64_t bytes, Context& ctx);
int64_t device_memory_available(Context& ctx);  // bytes that could still be allocated now; -1: there is no device

void upload(Tensor dst, const void* host, Context& ctx);  // copies dst.bytes() bytes from the host
void download(void* host, Tensor src, Context& ctx);      // waits until src is final, then copies src.bytes() bytes
void fill(Tensor t, double value, Context& ctx);          // any dtype, contiguous
void copy(Tensor dst, Tensor src, Context& ctx);          // equal numel, contiguous; converts between float types
void swap_axes(Tensor out, Tensor in, Context& ctx);      // out [b,a,n] = in [a,b,n], any dtype
void synchronize(Context& ctx);                           // waits until all enqueued ops are done

bool backend_supports(DType act);               // whether activations may have this type (f64: CPU only)
std::string backend_description(Context& ctx);       // e.g. "cpu, 2 threads, AVX-512, oneDNN 2.6.3"
// The peak rate of matrix products with activations of type act, in FLOP/s.
struct Peak {
    double flops;     // 0: unknown
    std::string how;  // "measured now" (a loop of multiply-adds, about 0.1 s), or the name of a datasheet
};
Peak peak_flops(DType act, Context& ctx);
// The peak bandwidth of device memory in bytes/s, measured in 0.2 s by passes over arrays much larger than the caches.
// Uses up to a quarter of the free memory meanwhile.
struct Bandwidth {
    double bytes;  // read and written
    std::string how;
};
Bandwidth peak_bandwidth(Context& ctx);

// --------------------------------------------------------------------------------------------------- embedding
// out[b,t,:] = token_table[tokens[b,t],:] + position_table[first_position + t,:]. out [B,T,C] act; tokens [B,T] i32;
// token_table [V,C]; position_table [context,C] or not given. A token outside the vocabulary is a RunError on the CPU.
// A GPU cannot report it in time: there the row of `out` becomes NaN, and backward ignores the token.
void embedding_forward(Tensor out, Tensor tokens, Tensor token_table, Tensor position_table, int64_t first_position,
                       Context& ctx);
// dtoken_table[v,:] (+)= sum of dout[b,t,:] over tokens[b,t] = v; dposition_table[t,:] (+)= sum over b of dout[b,t,:].
// dtoken_table [V,C] f32; dposition_table [context,C] f32 or not given (its rows >= T become zero, unless
// accumulating).
void embedding_backward(Tensor dtoken_table, Tensor dposition_table, Tensor dout, Tensor tokens, bool accumulate_token,
                        bool accumulate_position, Context& ctx);

// -------------------------------------------------------------------------------------------------------- norm
enum class Norm { layernorm, rmsnorm };
// layernorm: out = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(var + eps), var divides by C   (Ba et al. 2016)
// rmsnorm:   out = x * rstd * weight (+ bias),         rstd = 1 / sqrt(mean(x^2) + eps)    (Zhang & Sennrich 2019)
// x, out [..., C] act; mean, rstd [...] f32 (mean is not given for rmsnorm); weight [C]; bias [C] or not given.
void norm_forward(Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias, Norm kind, double eps,
                  Context& ctx);
// sum = x + branch, then out = norm(sum) as above, in one pass over memory. sum, branch [..., C] act. sum may be x.
void residual_norm_forward(Tensor sum, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor branch, Tensor weight,
                           Tensor bias, Norm kind, double eps, Context& ctx);
// Gradients of norm_forward, given dout [..., C]: dx (+)= (accumulate_dx), dweight and dbias [C] f32 (+)= (accumulate;
// dbias is not given if there is no bias). dx may be dout, unless it accumulates.
void norm_backward(Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor mean, Tensor rstd,
                   Tensor weight, Norm kind, bool accumulate_dx, bool accumulate, Context& ctx);
// out = a + b, elementwise. out may be a.
void add(Tensor out, Tensor a, Tensor b, Context& ctx);

// ------------------------------------------------------------------------------------------------------ matmul
enum class Activation { none, relu, gelu, gelu_erf, silu };  // gelu is the tanh form

struct MatmulOptions {
    bool transpose_a = false, transpose_b = false;
    int64_t expected_rows = 0;                 // ragged: number of rows to count FLOPs for; 0: the largest possible
    bool accumulate = false;                   // out += instead of out =; not together with any of the following
    Tensor bias{};                             // [N], added to every row
    Activation activation = Activation::none;  // applied after the bias
    Activation backward = Activation::none;    // out *= f'(pre): gradient through the activation f
    // Same shape and type as out. With `activation` it is an optional output: the values before the activation. With
    // `backward` it is the input with those values (for relu, f(pre) may be given instead).
    Tensor pre{};
    Tensor value{};  // optional output with `backward`, same shape and type as out: f(pre) of the stored pre
};
// out = activation(op(a) op(b) + bias), row-major; op transposes if the options say so.
// If out, a and b all have rank 3, the first axis is a batch: out [n,M,N], a [n,M,K], b [n,K,N].
// Otherwise the leading axes of each tensor are folded: x [B,T,C] times weight [O,C] (transpose_b) gives [B,T,O].
// a and b have the same float type; out has it too, or f32 for bf16 inputs. With an activation, out must be contiguous.
void matmul(Tensor out, Tensor a, Tensor b, const MatmulOptions& options, Context& ctx);

// dbias [N] f32 (+)= column sums of dout [..., N].
void bias_backward(Tensor dbias, Tensor dout, bool accumulate, Context& ctx);

// ------------------------------------------------------------------------------------------------- activations
// out = f(x). gelu: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))  (Hendrycks & Gimpel 2016); silu: x sigmoid(x).
// out may be x.
void activation_forward(Tensor out, Tensor x, Activation kind, Context& ctx);
// dx = dout * f'(x). `value` is an optional output: f(x). For relu, x may be f(x) instead. dx may be dout.
void activation_backward(Tensor dx, Tensor value, Tensor dout, Tensor x, Activation kind, Context& ctx);
// out = f(gate) * up, all of one shape, act: SwiGLU with f = silu (Shazeer 2020).
void gated_forward(Tensor out, Tensor gate, Tensor up, Activation kind, Context& ctx);
// dgate = dout * up * f'(gate), dup = dout * f(gate). `value` is an optional output: f(gate) * up. dup may be dout.
void gated_backward(Tensor dgate, Tensor dup, Tensor value, Tensor dout, Tensor gate, Tensor up, Activation kind,
                    Context& ctx);

// --------------------------------------------------------------------------------------------------- attention
// Causal multi-head attention without a T x T matrix in memory (Dao et al. 2022): tiles, online softmax.
// qkv [B,T,3C] act = Q | K | V in each row, each with H heads of size D; out [B,T,C] act; lse [B,H,T] f32 = log-sum-exp
// of the scaled scores Q K^T / sqrt(D).
void attention_forward(Tensor out, Tensor lse, Tensor qkv, int64_t heads, Context& ctx);
// dqkv [B,T,3C] act = gradient, given dout [B,T,C] and qkv, out, lse of forward.
void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse, int64_t heads, Context& ctx);
// Rotary position embedding (Su et al. 2021) of Q and K in qkv [B,T,3C], in place: base 10000, pairs (i, i + D/2),
// position = first_position + t: (a, b) -> (a cos - b sin, b cos + a sin). inverse = true rotates back, which is the
// backward pass when it is applied to dqkv.
void rope(Tensor qkv, int64_t heads, int64_t first_position, bool inverse, Context& ctx);
// Generation: copies K and V of n new positions (qkv [B,n,3C], already rotated) into keys, values [B,context,C],
// starting at first_position. out [B,n,C] = attention of the new positions over all positions up to their own.
void attention_extend(Tensor out, Tensor keys, Tensor values, Tensor qkv, int64_t first_position, int64_t heads,
                      Context& ctx);

// -------------------------------------------------------------------------------------------------------- head
// Cross entropy: losses[n] = logsumexp(logits_n) - logits_n[target_n], logits = x weight^T. x [N,C] act; weight [V,C];
// targets [N] i32, where -1 means loss 0 and no gradient; losses [N] f32. If dx [N,C] act and dweight [V,C] f32 are
// given, also computes the gradients for d(total)/d(losses[n]) = dloss: dx = ..., dweight (+)= ... Works in chunks of
// rows of logits, so the whole [N,V] never exists.
void head_loss(Tensor losses, Tensor dx, Tensor dweight, Tensor x, Tensor weight, Tensor targets, double dloss,
               bool accumulate, Context& ctx);

// --------------------------------------------------------------------------------------------------------- MoT
// A group is g tokens. Over the batch: rows j*g .. j*g+g-1 at one position t; its number is r = j*T + t. Within a
// sequence: positions j*g .. j*g+g-1 of row b; r = b*(T/g) + j. Weights are [B,T,E] f32, one value per (token, expert).
// A slot (e,r) is the mixture, or the output, of expert e for group r.
// Formulas: docs/mot.md (Antoniak et al. 2023).
struct Group {
    int64_t size = 1;
    bool within_sequence = false;
};
enum class SoftmaxOver { group, experts };

// weights = softmax of logits / temperature, over the g tokens of a group (per expert) or over the experts (per token).
// weights, logits [B,T,E] f32.
void mot_softmax_forward(Tensor weights, Tensor logits, SoftmaxOver over, Group group, double temperature,
                         Context& ctx);
// dlogits (+)= w (dw - sum w dw) / temperature, where the sum is over the same axis as the softmax. All [B,T,E] f32.
void mot_softmax_backward(Tensor dlogits, Tensor dweights, Tensor weights, SoftmaxOver over, Group group,
                          double temperature, bool accumulate, Context& ctx);
// Replaces weights [B,T,E], in place: 1 at the maximum of each softmax, 0 elsewhere; ties go to the lowest index.
void mot_discretize(Tensor weights, SoftmaxOver over, Group group, Context& ctx);

// slots[e,r,:] = sum over tokens i of the group: weights[i,e] tokens[i,:].    slots [E,R,C] act, tokens [B,T,C] act
// Makes the mixtures in forward; also the gradient of mot_emit with respect to slots.
void mot_merge(Tensor slots, Tensor weights, Tensor tokens, Group group, Context& ctx);
// tokens[i,:] (+)= sum over experts e: weights[i,e] slots[e,r,:].
// Distributes the experts' outputs in forward; also the gradient of mot_merge with respect to tokens.
void mot_emit(Tensor tokens, Tensor weights, Tensor slots, Group group, bool accumulate, Context& ctx);
// dweights[i,e] (+)= <tokens[i,:], slots[e,r,:]>: the gradient of mot_merge for its weights (given slots = dslots), and
// of mot_emit (given tokens = dtokens).
void mot_weights_backward(Tensor dweights, Tensor tokens, Tensor slots, Group group, bool accumulate, Context& ctx);

// Learned temperatures: scaled[i,e] = logits[i,e] / tau_e with tau = p, or exp(p - 1), which is positive for any p.
// logits, scaled [..., E] f32; p [1] (one for all experts) or [E], act. scaled may be logits.
void temperature_forward(Tensor scaled, Tensor logits, Tensor p, bool exponential, Context& ctx);
// dlogits = dscaled / tau; dp (f32, shape of p) (+)= -sum dscaled scaled / tau * dtau/dp. dlogits may be dscaled.
void temperature_backward(Tensor dlogits, Tensor dp, Tensor dscaled, Tensor scaled, Tensor p, bool exponential,
                          bool accumulate, Context& ctx);
// mean [1] f64 = mean of tau over the elements of p; for the log.
void temperature_mean(Tensor mean, Tensor p, bool exponential, Context& ctx);

// out = w a + (1 - w) b with a learned scalar w [1] act; out, a, b of one shape, act.
void interpolate(Tensor out, Tensor a, Tensor b, Tensor w, Context& ctx);
// da (+)= w dout, db (+)= (1 - w) dout, dw [1] (+)= <dout, a - b>; dout and the gradients f32; a, b, w act.
struct InterpolateAccumulate {
    bool a = false, b = false, w = false;
};
void interpolate_backward(Tensor da, Tensor db, Tensor dw, Tensor dout, Tensor a, Tensor b, Tensor w,
                          InterpolateAccumulate accumulate, Context& ctx);

// A random order of the sequences of a batch. order[] is a permutation of the B sequences, and place (b,t) gets
// position t of sequence order[b]. With within_sequence it is a permutation of the T positions, and place (b,t) gets
// position order[t] of sequence b. The result has the form of a routing to one expert, so that moe_gather applies the
// order and moe_scatter undoes it: slots [1,B*T] i32 = the token at each place; where [B,T,1] i32 = the place of each
// token. order sorts the numbers l = 0, 1, ... by 64 random bits: words 1 and 0 of the Philox block with counter (l, 0,
// draw, 0) and key `seed`; ties: the lower l first. draw [1] i32 is in device memory and changes with every
// micro-batch.
void random_order(Tensor slots, Tensor where, Tensor draw, uint64_t seed, bool within_sequence, Context& ctx);

// stats [4] f64 = mean and standard deviation of the entropy of each softmax divided by log(axis length), which is 1
// for a length of 1; then mean and standard deviation of the logits.
void mot_statistics(Tensor stats, Tensor weights, Tensor logits, SoftmaxOver over, Group group, Context& ctx);

// --------------------------------------------------------------------------------------------------- sparse MoE
// Sparsely activated experts (Shazeer et al. 2017). N = B*T tokens n = b*T + t; E experts; the inputs and outputs of
// all experts are matrices of R rows, [R,C]:
//   with a capacity   every expert owns S rows ("slots"), e*S .. e*S + S-1, filled or not: R = E*S, and [R,C] may be
//                     written [E,S,C];
//   dropless          expert e owns rows offsets[e] .. offsets[e+1]-1, as many as it needs, rounded up to a multiple of
//                     ragged_tile(). offsets [E+1] i32 is in device memory; R = ragged_rows(pairs, E) is the largest
//                     possible number of rows, and rows from offsets[E] on are unused.
// A routing is a decision, stored in two tables: slots [R] i32 = the pair n*E + e that a row belongs to, or -1 for an
// empty row; where [B,T,E] i32 = the row of the pair, -1 if the token has not chosen the expert, -2 if it was dropped.
// probs [B,T,E] f32 = softmax of the router's logits over the experts (by mot_softmax_forward).
int64_t ragged_tile();  // depends on the backend: 1 on the CPU, 128 on a GPU
inline int64_t ragged_rows(int64_t pairs, int64_t experts) { return pairs + experts * (ragged_tile() - 1); }

enum class DropOrder { position, gate };
struct ExpertChoices {
    int64_t k = 1;  // experts per token
    DropOrder order = DropOrder::position;
    bool balanced = false;  // ignore probs: token n goes to experts (n*k + i) mod E, i < k. For timings and tests.
};
// Token choice (Fedus et al. 2021, Switch; k > 1: Lepikhin et al. 2020): every token goes to the k experts with its
// largest probs; ties go to the lowest index. With a capacity, slots is [E,S], and an expert keeps the first S tokens
// in the order of n, or the S with the largest probs (ties: lowest n). Dropless, offsets is given, slots is
// [ragged_rows(N*k, E)], and an expert keeps all. An expert's rows are in the order of n, and then -1. counts [E] i32 =
// tokens that chose the expert, before dropping. Outputs: slots, where, counts, offsets.
void moe_choose_experts(Tensor slots, Tensor where, Tensor counts, Tensor offsets, Tensor probs,
                        const ExpertChoices& choices, Context& ctx);
// Expert choice (Zhou et al. 2022): an expert takes the k tokens with the largest probs from each set of candidates;
// ties go to the lowest index. group = 0: one set, all tokens (S = k; not causal). group > 0: at every position t, one
// set for each j < B/group, with the sequences b = j, j + B/group, j + 2 B/group, ... (causal). Then S = T * (B/group)
// * k, and slot (t * (B/group) + j) * k + i is for the i-th chosen sequence in ascending order of b.
void moe_choose_tokens(Tensor slots, Tensor where, Tensor probs, int64_t k, int64_t group, Context& ctx);

// gathered[r,:] = weights[n,e] x[n,:] for the pair (n,e) of row r, 0 for an empty row. Without weights the factor is 1.
// gathered R rows of C act, x [B,T,C] act, slots R elements, weights [B,T,E] f32. Also the gradient of moe_scatter with
// respect to y.
void moe_gather(Tensor gathered, Tensor x, Tensor slots, int64_t experts, Tensor weights, Context& ctx);
// out[n,:] (+)= sum over the experts e with r = where[n,e] >= 0, in ascending order, of weights[n,e] y[r,:]. Without
// weights the factor is 1. out [B,T,C] act, y R rows of C act. Also the gradient of moe_gather with respect to x.
void moe_scatter(Tensor out, Tensor y, Tensor where, Tensor weights, bool accumulate, Context& ctx);
// dweights[n,e] (+)= <dout[n,:], y[where[n,e],:]>, or 0 if the pair has no row: the gradient of moe_scatter for its
// weights. dweights [B,T,E] f32.
void moe_weights_backward(Tensor dweights, Tensor dout, Tensor y, Tensor where, bool accumulate, Context& ctx);

// Matrix products of ragged rows (offsets as above), one matrix per expert; no bias, the sums without activation:
//   out [R,N] = a [R,K] b_e, b [E,K,N] ([E,N,K] with transpose_b): every row times the matrix of its expert;
//   out [E,M,N] (+)= a_e^T b_e, a [R,M] with transpose_a, b [R,N]: per expert a sum over its rows (0 if none).
// Unused rows are not read; in out, pre and value they are undefined.
void matmul_ragged(Tensor out, Tensor a, Tensor b, Tensor offsets, const MatmulOptions& options, Context& ctx);

// Gates that sum to one (Shazeer et al. 2017): gates[n,e] = probs[n,e] / sum of probs[n,:] over the chosen experts
// (where != -1), and 0 for all others. All [B,T,E].
void moe_renormalize(Tensor gates, Tensor probs, Tensor where, Context& ctx);
// Its gradient: dprobs[n,e] = (dgates[n,e] - sum over the chosen of gates dgates) / the same sum of probs, and 0 for
// experts not chosen. dprobs may be dgates.
void moe_renormalize_backward(Tensor dprobs, Tensor dgates, Tensor gates, Tensor probs, Tensor where, Context& ctx);

// Load balancing (Fedus et al. 2021): loss = E * sum_e (counts_e / N) * (1/N) sum_n probs[n,e], where counts are
// constants. stats [4] f64 = loss, fraction of dropped (token, expert) pairs, smallest and largest counts_e * E / sum
// of counts.
void moe_balance(Tensor stats, Tensor probs, Tensor counts, Tensor slots, Context& ctx);
// dprobs[n,e] += scale * E * counts_e / N^2, the gradient of scale * loss.
void moe_balance_backward(Tensor dprobs, Tensor counts, double scale, Context& ctx);

// Router z-loss (Zoph et al. 2022): lse[n] = log sum_e exp logits[n,e], lse [B,T] with the type of logits; loss [1] f64
// (optional) = mean of lse^2.
void moe_z_loss(Tensor loss, Tensor lse, Tensor logits, Context& ctx);
// dlogits[n,e] += scale * 2/N * lse[n] probs[n,e], the gradient of scale * loss.
void moe_z_loss_backward(Tensor dlogits, Tensor lse, Tensor probs, double scale, Context& ctx);

// --------------------------------------------------------------------------------------------------- optimizer
// Everything that changes from step to step, in device memory. Ops receive a pointer to it, so the host never has to
// wait inside a step.
struct StepState {
    double lr = 0;                                      // learning rate of this step
    double loss_sum = 0;                                // sum of the losses of this step's tokens ...
    double loss_count = 0;                              // ... and their number (targets >= 0)
    double grad_square_sum = 0;                         // sum of squares of all gradients
    double grad_norm = 0;                               // its square root: the norm before clipping
    double grad_scale = 1;                              // min(1, clip / (grad_norm + 1e-6))
    double bias_correction1 = 1, bias_correction2 = 1;  // 1 - beta^t
    int64_t t = 0;                                      // updates so far: Adam's step count
    int64_t skipped = 0;                                // steps skipped so far: loss or gradient not finite
    int64_t skipped_in_a_row = 0;                       // how many of the last steps were skipped without a break
    int64_t ok = 1;                                     // 0: this step's update is skipped
    int64_t broken = 0;  // 1: an update has made a parameter or Adam's second moment infinite or NaN
    // Sums of loss_sum and loss_count over all steps that were not skipped. The difference between two readings gives
    // the mean loss between them.
    double total_loss_sum = 0;
    int64_t total_loss_count = 0;
};
// `step` below is a StepState in device memory as a Tensor of sizeof(StepState) bytes (i32 elements).
Tensor step_state_tensor(void* data);
Tensor step_sums(Tensor step);  // its three sums [3] f64: loss_sum, loss_count, grad_square_sum

void step_begin(Tensor step, double lr, Context& ctx);  // sets lr, sets the three sums to 0
void loss_accumulate(Tensor step, Tensor losses, Tensor targets, Context& ctx);  // adds losses [N] of targets >= 0
void grad_norm_accumulate(Tensor step, Tensor grad, Context& ctx);  // grad_square_sum += sum of squares of grad [N]
// Sets grad [N] f32 to 0 until `start` steps are done (t + skipped): its parameter is not trained before.
void freeze_until(Tensor grad, Tensor step, int64_t start, Context& ctx);
// Sets grad_norm, grad_scale and ok (loss and gradient are finite, and the squares of the scaled gradient fit into f32,
// in which AdamW keeps them). If ok, advances t and the bias corrections, else the counts of skipped steps. clip <= 0:
// no clipping.
void step_decide(Tensor step, double clip, double beta1, double beta2, Context& ctx);

struct AdamW {
    double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.1;
    // For bf16 parameters: round up or down at random, with probabilities that make the mean exact, instead of to
    // nearest. So updates below half a unit in the last place are not lost (Zamirai et al. 2020). Element i adds 16
    // random bits to the lower half of its f32 result and then cuts that half off. The bits are number (first_index +
    // i) % 8 of the Philox block with counter ((first_index + i) / 8, t) and key `seed`.
    bool stochastic_rounding = false;
    uint64_t seed = 0;
    int64_t first_index = 0;  // index of param[0], so that slices of a unit are rounded like the whole unit
};
// Updates one unit in one pass (Loshchilov & Hutter 2019); does nothing if ok = 0:
//   g = grad * grad_scale;  p *= 1 - lr * weight_decay (elements [0, decayed) only);  m, v = moving averages of g, g^2;
//   p -= lr * (m / bias_correction1) / (sqrt(v / bias_correction2) + eps)
// Sets `broken` if a new p or v is not finite. param [N] f32, bf16 or f64 holds the parameters; compute_copy [N] bf16
// (optional) becomes a copy of them; m, v, grad [N] f32 (f64).
void adamw_update(Tensor param, Tensor compute_copy, Tensor m, Tensor v, Tensor grad, Tensor step, int64_t decayed,
                  const AdamW& options, Context& ctx);

// Muon (Jordan et al. 2024) steps along the momentum of a weight matrix with all its singular values brought near 1.
// The ops around its matrix products; step/muon.cpp puts them together.
//
// Nesterov momentum. If ok = 0, m stays and direction is 0.
//   g = grad * grad_scale;  m = momentum m + (1 - momentum) g;  direction = momentum m + (1 - momentum) g
// direction, m, grad [N] f32 (f64).
void muon_momentum(Tensor direction, Tensor m, Tensor grad, Tensor step, double momentum, Context& ctx);
// x_i = x_i / (|x_i| + 1e-7) for each matrix of x [n,R,K] f32 (f64), in place; |x_i| is its Frobenius norm. Then no
// singular value is above 1.
void normalize_matrices(Tensor x, Context& ctx);
// out_i = a I + b s_i + c out_i for each of the square matrices out, s [n,K,K] f32 (f64). With out = s s before, the
// polynomial a + b s + c s^2.
struct Polynomial {
    double a, b, c;
};
void matrix_polynomial(Tensor out, Tensor s, const Polynomial& p, Context& ctx);
// p = p (1 - lr * weight_decay) - lr * scale * direction;  nothing if ok = 0. The rest is as in adamw_update: `broken`,
// param [N] f32, bf16 or f64, compute_copy [N] bf16 (optional), direction [N] f32 (f64), and how bf16 parameters are
// rounded.
struct MuonUpdate {
    double scale = 1, weight_decay = 0.1;
    bool stochastic_rounding = false;
    uint64_t seed = 0;
    int64_t first_index = 0;
};
void muon_update(Tensor param, Tensor compute_copy, Tensor direction, Tensor step, const MuonUpdate& options,
                 Context& ctx);

}  // namespace llmc
