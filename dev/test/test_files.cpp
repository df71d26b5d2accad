// Files: atomic writes, maps, gzip by content.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <zlib.h>

#include <filesystem>

#include "dev/test/refusal.h"
#include "dev/test/sanitized.h"
#include "dev/test/temp_dir.h"
#include "llmc/base/errors.h"
#include "llmc/base/files.h"

using namespace llmc;
using llmc::test::refusal;
namespace fs = std::filesystem;

TEST(Files, AtomicWriteReplacesAndLeavesNothingElse) {
    TempDir dir;
    write_file_atomic(dir / "a", "one");
    write_file_atomic(dir / "a", std::string(3 << 20, 'x'));
    EXPECT_EQ(read_file(dir / "a"), std::string(3 << 20, 'x'));
    EXPECT_EQ(std::distance(fs::directory_iterator(dir.path), {}), 1);
}

TEST(Files, UncommittedFileNeverExisted) {
    TempDir dir;
    write_file_atomic(dir / "a", "old");
    {
        AtomicFile file(dir / "a");
        file.write("new", 3);
    }
    EXPECT_EQ(read_file(dir / "a"), "old");
    EXPECT_EQ(std::distance(fs::directory_iterator(dir.path), {}), 1);
}

TEST(Files, PiecesAndOverwrittenBytesArriveInPlace) {
    TempDir dir;
    AtomicFile file(dir / "a");
    std::string expected;
    for (int i = 0; i < 300; i++) {  // sizes around the 1 MB buffer
        std::string piece(size_t(i) * 97 % 20000, char('a' + i % 26));
        expected += piece;
        file.write(piece.data(), piece.size());
    }
    std::string large(2500000, '#');
    expected += large;
    file.write(large.data(), large.size());
    file.write_at(5, "HEADER", 6);
    expected.replace(5, 6, "HEADER");
    file.write("end", 3);
    expected += "end";
    EXPECT_THROW(file.write_at(file.size() - 1, "xx", 2), RunError);
    EXPECT_EQ(file.size(), int64_t(expected.size()));
    file.commit();
    EXPECT_TRUE(read_file(dir / "a") == expected);
    MappedFile map(dir / "a");
    EXPECT_TRUE(map.bytes() == expected);
}

TEST(Files, FailuresNameThePath) {
    TempDir dir;
    EXPECT_THROW(read_file(dir / "missing"), InputError);
    EXPECT_THROW(read_file(dir.path), InputError);
    EXPECT_THROW(MappedFile(dir / "missing"), InputError);
    try {
        write_file_atomic(dir / "no/such/file", "x");
        FAIL();
    } catch (const RunError& e) {
        EXPECT_NE(std::string(e.what()).find(dir / "no/such/file"), std::string::npos);
    }
    write_file_atomic(dir / "file", "");
    EXPECT_THROW(make_directories(dir / "file/below"), RunError);
    EXPECT_THROW(make_directories(dir / "file"), RunError);
    make_directories(dir / "a/b/c");
    make_directories(dir / "a/b/c");
    EXPECT_EQ(MappedFile(dir / "file").size(), 0u);
    EXPECT_THROW(fsync_directory(dir / "missing"), RunError);
    EXPECT_THROW(rename_durably(dir / "missing", dir / "x"), RunError);
}

TEST(Files, WhatMayNeverEndIsNotRead) {
    TempDir dir;
    ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
    for (const std::string& path : {dir / "pipe", std::string("/dev/zero")}) {
        const std::string want = "cannot read " + path + ": it is no regular file";
        EXPECT_EQ(refusal([&] { read_file(path); }), want);
        EXPECT_EQ(refusal([&] { read_file(path, any_size); }), want);
        EXPECT_EQ(refusal([&] { read_file_gunzip(path); }), want);
        EXPECT_EQ(refusal([&] { MappedFile mapped(path); }), want);
    }
    EXPECT_FALSE(read_file("/proc/self/status").empty());
}

TEST(Files, LargerOnesThanBelongThereAreRefused) {
    TempDir dir;
    const std::string plain = dir / "plain", packed = dir / "packed";
    constexpr int64_t size = 3 << 20;
    write_file_atomic(plain, std::string(size_t(size), 'z'));
    const gzFile file = gzopen(packed.c_str(), "wb");
    gzwrite(file, std::string(size_t(size), 'z').data(), unsigned(size));
    gzclose(file);
    EXPECT_EQ(read_file(plain, size).size(), size_t(size));
    EXPECT_EQ(refusal([&] { read_file(plain, size - 1); }),
              "cannot read " + plain + ": it has more than 2 MiB, so it is not what belongs there");
    for (const std::string& path : {plain, packed}) {
        EXPECT_EQ(read_file_gunzip(path, size).size(), size_t(size));
        EXPECT_EQ(refusal([&] { read_file_gunzip(path, size - 1); }),
                  "cannot read " + path + ": it has more than 2 MiB, so it is not what belongs there");
    }
    EXPECT_THROW(read_file("/proc/self/status", 3), InputError);  // its size is not known before
}

TEST(Files, AMapThatIsCutOffIsNamed) {
    if (llmc::test::sanitized) GTEST_SKIP() << "a sanitizer has a handler of its own";
    TempDir dir;
    const std::string path = dir / "shard", other = dir / "other";
    auto read_after_cut = [&](const std::string& file) {
        write_file_atomic(path, std::string(1 << 20, 'x'));
        write_file_atomic(other, std::string(1 << 20, 'y'));
        const MappedFile first(path);
        { const MappedFile gone(path); }  // its entry is used again
        const MappedFile second(other);
        fs::resize_file(file, 100);
        volatile char byte = (file == path ? first : second).bytes().back();
        (void)byte;
    };
    for (const std::string& file : {path, other})
        EXPECT_EXIT(read_after_cut(file), testing::ExitedWithCode(1),
                    "^error: " + file + " was cut off, or its disk failed, while it was read: ");
    auto plain = [&] {  // not on the list: as without us
        write_file_atomic(path, std::string(1 << 20, 'x'));
        const MappedFile listed(path);
        const int fd = ::open(path.c_str(), O_RDONLY);
        const auto* bytes = static_cast<const char*>(::mmap(nullptr, 1 << 20, PROT_READ, MAP_SHARED, fd, 0));
        fs::resize_file(path, 100);
        volatile char byte = bytes[(1 << 20) - 1];
        (void)byte;
    };
    EXPECT_EXIT(plain(), testing::KilledBySignal(SIGBUS), "");
}

TEST(Files, FullDiskIsReported) {
    if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
    TempDir dir;
    // The temporary name's target is the device that is always full: every write ends with ENOSPC.
    fs::create_symlink("/dev/full", dir / ("a.tmp." + std::to_string(::getpid())));
    write_file_atomic(dir / "b", "still writable");
    try {
        write_file_atomic(dir / "a", "x");
        FAIL();
    } catch (const RunError& e) {
        EXPECT_NE(std::string(e.what()).find("No space left"), std::string::npos) << e.what();
    }
    EXPECT_FALSE(fs::exists(dir / "a"));
}

TEST(Files, GzipIsToldByContent) {
    TempDir dir;
    gzFile file = gzopen((dir / "plain_name").c_str(), "wb");
    std::string text(200000, 'z');
    gzwrite(file, text.data(), unsigned(text.size()));
    gzclose(file);
    EXPECT_TRUE(read_file_gunzip(dir / "plain_name") == text);
    write_file_atomic(dir / "x.gz", "not packed");
    EXPECT_EQ(read_file_gunzip(dir / "x.gz"), "not packed");
    std::string packed = read_file(dir / "plain_name");
    write_file_atomic(dir / "cut", packed.substr(0, packed.size() / 2));
    EXPECT_THROW(read_file_gunzip(dir / "cut"), InputError);
    packed[packed.size() - 6] ^= 1;  // its checksum
    write_file_atomic(dir / "flipped", packed);
    EXPECT_THROW(read_file_gunzip(dir / "flipped"), InputError);
}

TEST(Files, ChecksumsContinueAndJoin) {
    // 0xcbf43926 is CRC-32's published check value for "123456789".
    EXPECT_EQ(hex32(crc32_of("123456789", 9)), "cbf43926");
    EXPECT_EQ(crc32_of("6789", 4, crc32_of("12345", 5)), 0xcbf43926u);
    EXPECT_EQ(crc32_append(crc32_of("12345", 5), crc32_of("6789", 4), 4), 0xcbf43926u);
    EXPECT_EQ(hex32(10), "0000000a");
}
