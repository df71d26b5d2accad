// Whether this program was built with ASan or TSan: they keep memory of their own, keep freed memory for a while, turn
// signals into reports and take time.
#pragma once

namespace llmc::test {

#if defined(__has_feature)  // clang
constexpr bool sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

}  // namespace llmc::test
