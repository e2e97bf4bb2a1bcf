#include "core/io/file_system.h"

#include <errno.h>

#include <system_error>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace latticekv {
namespace {

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

FileSystem* FileSystem::Default() { return Posix(); }

absl::Status FileSystem::Append(const std::string& path, ByteSpan bytes) {
  auto file = Open(path, OpenMode::kReadWrite);
  if (absl::IsNotFound(file.status())) file = Open(path, OpenMode::kCreate);
  LKV_RETURN_IF_ERROR(file.status());
  LKV_ASSIGN_OR_RETURN(const uint64_t size, (*file)->Size());
  return (*file)->WriteAt(size, bytes);
}

}  // namespace latticekv
