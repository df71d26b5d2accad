// Operations in which the lanes of a warp wait for each other.
#include <bit>

#include "dev/emu/block.h"
#include "dev/emu/sanitizers.h"

namespace emu {
namespace {

// The gathering these lanes are in already, or a free one.
Gathering& gathering_for(Warp& warp, unsigned mask, int lane) {
    Gathering* free = nullptr;
    for (Gathering& g : warp.gatherings) {
        if (g.arrived && g.mask == mask && !(g.arrived >> lane & 1)) return g;
        if (!free && !g.arrived && !g.to_leave) free = &g;
    }
    if (!free) fail("a warp has more than %d operations with different masks under way", max_gatherings);
    return *free;
}

void check_meeting(const Gathering& g, WarpOp op, const Site& site) {
    const bool same = g.op == op && g.site.line() == site.line() && g.site.column() == site.column() &&
                      g.site.file_name() == site.file_name();
    if (!same)
        fail("lanes of one mask meet in different warp operations: %s:%u and %s:%u", g.site.file_name(), g.site.line(),
             site.file_name(), site.line());
}

}  // namespace

const Packet* exchange(WarpOp op, unsigned mask, const Packet& mine, Site site, Combine combine) {
    if (!block().is_running()) fail("a warp operation in host code, at %s:%u", site.file_name(), site.line());
    Thread& me = block().running();
    Warp& warp = block().warp(me.warp);
    const unsigned my_bit = 1u << me.lane;
    if (!(mask & my_bit))
        fail("%s:%u: lane %d calls a warp operation whose mask %08x does not name it", site.file_name(), site.line(),
             me.lane, mask);
    if (mask & (~warp.present | warp.exited))
        fail("%s:%u: the mask %08x of a warp operation names lanes that have returned or do not exist (%08x)",
             site.file_name(), site.line(), mask, mask & (~warp.present | warp.exited));

    Gathering& g = gathering_for(warp, mask, me.lane);
    if (!g.arrived)
        g.op = op, g.site = site, g.mask = mask;
    else
        check_meeting(g, op, site);
    // Of all warp operations only __syncwarp orders memory.
    void* address =
        op == WarpOp::sync ? block().sync_address(2 + me.warp * max_gatherings + int(&g - warp.gatherings)) : nullptr;
    if (address) release(address);
    g.lanes[me.lane] = mine;
    g.arrived |= my_bit;
    if (g.arrived != mask) {
        me.mask = mask;
        block().wait(State::in_warp_op, site);
    } else {
        if (combine) combine(g.lanes, mask);
        g.arrived = 0;
        g.to_leave = mask;
        block().make_ready(me.warp, mask & ~my_bit);
    }
    g.to_leave &= ~my_bit;
    if (address) acquire(address);
    return g.lanes;
}

void combine_votes(Packet* lanes, unsigned mask) {
    uint64_t votes = 0;
    for (int l = 0; l < lanes_per_warp; l++)
        if (mask >> l & 1) votes |= (lanes[l].word[0] & 1) << l;
    for (int l = 0; l < lanes_per_warp; l++) lanes[l].word[0] = votes;
}

void combine_matches(Packet* lanes, unsigned mask) {
    uint64_t matches[lanes_per_warp] = {};
    for (int l = 0; l < lanes_per_warp; l++)
        for (int m = 0; m < lanes_per_warp; m++)
            if (mask >> l & mask >> m & 1 && lanes[l].word[0] == lanes[m].word[0]) matches[l] |= uint64_t(1) << m;
    for (int l = 0; l < lanes_per_warp; l++) lanes[l].word[0] = matches[l];
}

// D[16,8] = A[16,16] B[16,8] of bf16 fragments, as gpu.cuh describes them for mma.m16n8k16.
void combine_mma(Packet* lanes, unsigned) {
    const auto low = [](uint32_t two) { return std::bit_cast<float>(two << 16); };
    const auto high = [](uint32_t two) { return std::bit_cast<float>(two & 0xffff0000u); };
    float a[16][16], b[16][8], d[16][8] = {};
    for (int l = 0; l < lanes_per_warp; l++) {
        uint32_t r[6];
        __builtin_memcpy(r, lanes[l].word, sizeof r);
        const int row = l / 4, pair = l % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[row + i % 2 * 8][pair + i / 2 * 8] = low(r[i]);
            a[row + i % 2 * 8][pair + i / 2 * 8 + 1] = high(r[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[pair + i * 8][row] = low(r[4 + i]);
            b[pair + i * 8 + 1][row] = high(r[4 + i]);
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < lanes_per_warp; l++) {
        const int row = l / 4, pair = l % 4 * 2;
        const float f[4] = {d[row][pair], d[row][pair + 1], d[row + 8][pair], d[row + 8][pair + 1]};
        __builtin_memcpy(lanes[l].word, f, sizeof f);
    }
}

}  // namespace emu
