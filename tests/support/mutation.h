// What tests on damaged frames share.
#ifndef LATTICEKV_TESTS_SUPPORT_MUTATION_H_
#define LATTICEKV_TESTS_SUPPORT_MUTATION_H_

#include <cstdint>

#include "core/base/bytes.h"

namespace latticekv::testing {

// The number in an environment variable, for seeds and lengths of runs.
uint64_t FromEnvironment(const char* name, uint64_t otherwise);

// Makes a frame's checksums right again, so that damage gets past them. Leaves alone what is too
// short for its own sizes.
void Reseal(ByteVector& frame);

}  // namespace latticekv::testing

#endif  // LATTICEKV_TESTS_SUPPORT_MUTATION_H_
