// The kinds of blocks: one row for each says everything about it that the rest of the program has to know. The rows are
// in kind_table.h.
//
// Pattern parser, error messages, help, factory, checks and warnings read these rows and compare no names. A new kind
// of block is a file of its own and a row.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "llmc/model/options.h"

namespace llmc {

class Block;
struct ModelConfig;

// Functions that are null pointers have nothing to say about their kind.
struct BlockKind {
    const char* name;  // the word in a pattern
    const char* help;  // what it is, for help texts
    std::unique_ptr<Block> (*make)(const ModelConfig&);

    // Of kinds with experts.
    double (*experts_of_a_token)(const ModelConfig&) = nullptr;  // on average, without shared ones; null: no experts
    int64_t (*mixed_tokens)(const ModelConfig&) = nullptr;       // tokens that an expert sees as one; null: 1
    DownInit down_init = DownInit::one;                          // what --expert-down-init default stands for
    bool shared_experts = false;                                 // --shared-experts is about this kind too
    bool group_ranks = false;                                    // --group-ranks can share its mixtures

    // Called by resolved() once experts, group_size and top_k are known: refuses options that contradict each other
    // (InputError) and fills in those that follow from others.
    void (*resolve)(ModelConfig&) = nullptr;
    // Sequences come in multiples of this many; null: any number.
    int64_t (*rows_together)(const ModelConfig&) = nullptr;
    // InputError if a batch of `rows` sequences cannot be computed. group_size: of MoT groups; 0: the configured one.
    void (*check_rows)(const ModelConfig&, int64_t rows, int64_t group_size) = nullptr;
    // Why a token may see its own future, to follow "a model "; "" if it does not: a causal model. Null: always causal.
    std::string (*sees_the_future)(const ModelConfig&) = nullptr;
    // Sentences that a run prints before it starts.
    std::vector<std::string> (*warnings)(const ModelConfig&) = nullptr;

    bool has_experts() const { return experts_of_a_token != nullptr; }
};

std::span<const BlockKind> block_kinds();  // all rows, in the order in which messages list them

std::string block_kind_names();                             // "attention, ffn, ..."
const BlockKind* find_block_kind(const std::string& name);  // null: no such kind
const BlockKind& block_kind(const std::string& name);       // InputError if there is no such kind
// Each kind of block in the pattern once, in the order of the table. InputError if the pattern does not parse.
std::vector<const BlockKind*> kinds_in(const ModelConfig& config);

}  // namespace llmc
