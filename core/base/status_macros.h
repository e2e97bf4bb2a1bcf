// Early return on absl::Status errors.
#ifndef LATTICEKV_CORE_BASE_STATUS_MACROS_H_
#define LATTICEKV_CORE_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define LKV_CONCAT_INNER_(a, b) a##b
#define LKV_CONCAT_(a, b) LKV_CONCAT_INNER_(a, b)

// Returns from the enclosing function when `expr`, an absl::Status, is not OK.
#define LKV_RETURN_IF_ERROR(expr)                                         \
  do {                                                                    \
    if (auto lkv_status_ = (expr); !lkv_status_.ok()) return lkv_status_; \
  } while (false)

// Assigns the value of `expr`, an absl::StatusOr<T>, to `lhs`, or returns its error.
#define LKV_ASSIGN_OR_RETURN(lhs, expr) \
  LKV_ASSIGN_OR_RETURN_IMPL_(LKV_CONCAT_(lkv_statusor_, __LINE__), lhs, expr)
#define LKV_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return std::move(tmp).status();   \
  lhs = *std::move(tmp)

#endif  // LATTICEKV_CORE_BASE_STATUS_MACROS_H_
