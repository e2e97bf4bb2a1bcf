// Means and spreads of one head as a profile holds them.
#ifndef LATTICEKV_CORE_LAYOUT_HEAD_STATISTICS_H_
#define LATTICEKV_CORE_LAYOUT_HEAD_STATISTICS_H_

#include <span>

#include "core/layout/model_profile.h"

namespace latticekv {

// Replaces the statistics of `head`, of a plane as `plane` says, by `mean` and `sigma`, one number
// for each channel in the layout's own order, finite. Steps and query energy stay.
void SetHeadStatistics(const PlaneSpec& plane, std::span<const float> mean,
                       std::span<const float> sigma, HeadProfile& head);

}  // namespace latticekv

#endif  // LATTICEKV_CORE_LAYOUT_HEAD_STATISTICS_H_
