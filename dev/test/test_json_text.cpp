// JSON of others: how deep it may be nested, and what is said of a text that is none.
#include <gtest/gtest.h>

#include "llmc/base/json_text.h"

namespace llmc::test {
namespace {

std::string nested(size_t depth, const std::string& inside = "") {
    return std::string(depth, '[') + inside + std::string(depth, ']');
}

std::string refusal(const std::string& text) {
    try {
        parse_json(text, "FILE");
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

TEST(JsonText, IsNestedSoDeepAndNoDeeper) {
    EXPECT_EQ(refusal(nested(deepest_json)), "");
    EXPECT_EQ(refusal(nested(deepest_json + 1)), "FILE is damaged: its JSON is nested deeper than 64");
    EXPECT_EQ(refusal(std::string(1000000, '[')), "FILE is damaged: its JSON is nested deeper than 64");
    std::string objects;
    for (int i = 0; i <= deepest_json; i++) objects += "{\"a\":";
    EXPECT_EQ(refusal(objects), "FILE is damaged: its JSON is nested deeper than 64");
    EXPECT_TRUE(parse_json_or_null(nested(deepest_json + 1)).is_null());
    EXPECT_TRUE(parse_json_or_null(nested(deepest_json)).is_array());
}

TEST(JsonText, BracketsInStringsAndSiblingsDoNotNest) {
    EXPECT_EQ(refusal("[\"" + std::string(1000, '[') + "\\\"" + std::string(1000, '{') + "\"]"), "");
    std::string siblings = "[0";
    for (int i = 0; i < 1000; i++) siblings += ",[{}]";
    EXPECT_EQ(refusal(siblings + "]"), "");
    EXPECT_EQ(refusal("[\"\\\\\", " + nested(deepest_json) + "]"), "FILE is damaged: its JSON is nested deeper than 64")
        << "a backslash that is escaped itself does not keep a string open";
}

TEST(JsonText, WhatIsNoneIsDamaged) {
    for (const char* text : {"", "{", "[1,]", "\"", "\"\\", "{\"\xff\":1}"}) {
        EXPECT_EQ(refusal(text).rfind("FILE is damaged: it is not valid JSON", 0), 0u) << text;
        EXPECT_TRUE(parse_json_or_null(text).is_null());
    }
}

}  // namespace
}  // namespace llmc::test
