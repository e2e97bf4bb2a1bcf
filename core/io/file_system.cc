#include "core/io/file_system.h"

#include <errno.h>
#include <stdlib.h>

#include <algorithm>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

constexpr size_t kPieceBytes = 256 << 10;

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::StatusCode::kNotFound;
    case EEXIST:
      return absl::StatusCode::kAlreadyExists;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::StatusCode::kResourceExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

absl::Status ErrnoStatus(int error, std::string_view what, std::string_view path) {
  return absl::Status(CodeOf(error), absl::StrCat(std::string(what), " ", std::string(path), ": ",
                                                  std::generic_category().message(error)));
}

std::string JoinPath(std::string_view directory, std::string_view name) {
  std::string out(directory);
  if (!out.empty() && out.back() != '/') out += '/';
  out += name;
  return out;
}

absl::StatusOr<File::Extent> File::NextData(uint64_t offset) const {
  LKV_ASSIGN_OR_RETURN(const uint64_t size, Size());
  return Extent{std::min(offset, size), size};
}

absl::StatusOr<uint64_t> File::ReadPieces(uint64_t offset, uint64_t size, const PieceSink& each) {
  ByteVector buffer(static_cast<size_t>(std::min<uint64_t>(size, kPieceBytes)));
  uint64_t done = 0;
  while (done < size) {
    const auto want = static_cast<size_t>(std::min<uint64_t>(size - done, kPieceBytes));
    LKV_ASSIGN_OR_RETURN(const size_t got,
                         ReadAt(offset + done, MutableByteSpan(buffer).first(want)));
    if (got > 0) LKV_RETURN_IF_ERROR(each(ByteSpan(buffer).first(got)));
    done += got;
    if (got < want) break;
  }
  return done;
}

void FileSystem::ReadBatch(std::span<FileRead> reads) {
  for (FileRead& read : reads) {
    const auto got = read.file->ReadAt(read.offset, read.out);
    read.status = got.status();
    read.got = got.ok() ? *got : 0;
  }
}

#ifndef LKV_HAVE_URING
FileSystem* FileSystem::Uring() { return nullptr; }
#endif

FileSystem* FileSystem::Default() {
  const char* const asked = getenv("LATTICEKV_IO");
  if (asked != nullptr && std::string_view(asked) == "posix") return Posix();
  FileSystem* const uring = Uring();
  return uring != nullptr ? uring : Posix();
}

absl::Status FileSystem::Append(const std::string& path, ByteSpan bytes) {
  auto file = Open(path, OpenMode::kReadWrite);
  if (absl::IsNotFound(file.status())) file = Open(path, OpenMode::kCreate);
  LKV_RETURN_IF_ERROR(file.status());
  LKV_ASSIGN_OR_RETURN(const uint64_t size, (*file)->Size());
  return (*file)->WriteAt(size, bytes);
}

}  // namespace latticekv
