#include "client/src/connection_impl.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/src/breaker_connection.h"
#include "client/src/get_operation.h"
#include "client/src/gpu_cache.h"
#include "client/src/proto_convert.h"
#include "client/src/put_operation.h"
#include "core/base/status_macros.h"
#include "latticekv/error_detail.h"

namespace latticekv {
namespace {

constexpr int kDefaultMaxErrors = 5;
constexpr int64_t kDefaultBackoffMs = 50;
constexpr int64_t kDefaultMaxBackoffMs = 5'000;
// A get takes half of it at most, and what it read makes room again.
constexpr size_t kMaxGetRegionBytes = size_t{32} << 20;
// A layout has few that are in use at once.
constexpr size_t kMaxKeptProfiles = 16;
// From a failure to the next attempt at least, so that a server that accepts and breaks off is not
// called without a pause.
constexpr int64_t kPauseWhenBackMs = 20;

ClientOptions WithDefaults(ClientOptions options) {
  if (options.retry_policy == nullptr) {
    // Behind a breaker the first failure is the news.
    options.retry_policy = std::make_shared<LimitedErrorCountRetryPolicy>(
        options.circuit_breaker ? 0 : kDefaultMaxErrors);
  }
  if (options.backoff_policy == nullptr) {
    options.backoff_policy =
        std::make_shared<ExponentialBackoffPolicy>(kDefaultBackoffMs, kDefaultMaxBackoffMs);
  }
  return options;
}

absl::StatusOr<SelectionResult> ToSelection(const absl::StatusOr<v1::BlocksResponse>& response) {
  if (!response.ok()) return response.status();
  return SelectionResult{response->found(), response->missing()};
}

// A miss as a status: the reason and its sentence.
absl::Status MissStatus(v1::Reason reason, const std::string& message) {
  if (reason == v1::REASON_UNSPECIFIED) return absl::OkStatus();
  return StatusFromDetail({static_cast<ErrorReason>(reason), "", message});
}

std::string RegistrationKey(const Digest& fingerprint, const std::string& name_space) {
  return absl::StrCat(ToHex(fingerprint), name_space);
}

// The server started anew and knows no layouts.
bool IsUnknownLayout(const absl::Status& status) {
  const auto detail = GetErrorDetail(status);
  return detail && detail->reason == ErrorReason::kUnknownLayout;
}

}  // namespace

ConnectionImpl::ConnectionImpl(std::shared_ptr<Stub> stub, ClientOptions options, Sleeper sleep)
    : ConnectionImpl(std::vector{std::move(stub)}, std::move(options), std::move(sleep), false) {}

ConnectionImpl::ConnectionImpl(std::vector<std::shared_ptr<Stub>> stubs, ClientOptions options,
                               Sleeper sleep, bool local)
    : stubs_(std::move(stubs)),
      stub_(stubs_.front().get()),
      options_(WithDefaults(std::move(options))),
      sleep_(std::move(sleep)) {
  if (local && options_.shared_memory_bytes > 0) {
    regions_ = std::make_unique<RegionClient>(
        *stub_, std::min(options_.shared_memory_bytes, limits::kMaxRegionBytes));
    get_regions_ = std::make_unique<RegionClient>(
        *stub_, std::min(options_.shared_memory_bytes, kMaxGetRegionBytes));
  }
}

absl::Status ConnectionImpl::Probe(int64_t max_ms) {
  if (!stub_->WaitConnected(max_ms)) {
    return absl::UnavailableError("there is no connection to the server");
  }
  return stub_->Stats({}).status();
}

void PauseBeforeRetry(const std::vector<std::shared_ptr<Stub>>& stubs, int64_t delay_ms) {
  using std::chrono::steady_clock, std::chrono::milliseconds;
  const auto start = steady_clock::now();
  const auto left_ms = [&] {
    const auto passed = std::chrono::duration_cast<milliseconds>(steady_clock::now() - start);
    return std::max<int64_t>(delay_ms - passed.count(), 0);
  };
  const bool lost =
      !std::all_of(stubs.begin(), stubs.end(), [](const auto& stub) { return stub->Connected(); });
  bool back = true;
  for (const auto& stub : stubs) back = stub->WaitConnected(left_ms()) && back;
  if (lost && back) delay_ms = std::min(delay_ms, kPauseWhenBackMs);
  std::this_thread::sleep_for(milliseconds(left_ms()));
}

bool ConnectionImpl::RegisterAgain(const RegisteredLayout& layout) {
  v1::RegisterLayoutRequest message;
  {
    MutexLock lock(mutex_);
    const auto it = registered_.find(RegistrationKey(layout.fingerprint, layout.name_space));
    if (it == registered_.end()) return false;
    message = it->second;
  }
  // The chunk size that the caller's hashes were made with.
  message.set_chunk_tokens(layout.chunk_tokens);
  return RetryLoop(Retry(), [&] { return stub_->RegisterLayout(message); }).ok();
}

absl::StatusOr<RegisteredLayout> ConnectionImpl::RegisterLayout(
    const RegisterLayoutRequest& request) {
  LKV_RETURN_IF_ERROR(ValidateLayout(request.layout));
  v1::RegisterLayoutRequest message;
  message.set_namespace_(request.name_space);
  *message.mutable_layout() = ToProto(request.layout);
  message.set_profile(BytesString(request.profile));
  message.set_chunk_tokens(request.chunk_tokens);
  {
    MutexLock lock(mutex_);
    registered_[RegistrationKey(LayoutFingerprint(request.layout), request.name_space)] = message;
  }
  LKV_ASSIGN_OR_RETURN(const v1::RegisterLayoutResponse response,
                       RetryLoop(Retry(), [&] { return stub_->RegisterLayout(message); }));
  RegisteredLayout out;
  out.layout = std::make_shared<const Layout>(request.layout);
  out.fingerprint = LayoutFingerprint(request.layout);
  out.name_space = request.name_space;
  out.chunk_tokens = response.chunk_tokens();
  if (response.fingerprint() != BytesString(out.fingerprint)) {
    return absl::InternalError(
        "the server computed another fingerprint for this layout; client and server versions "
        "differ");
  }
  if (out.chunk_tokens < limits::kMinChunkTokens || out.chunk_tokens > limits::kMaxChunkTokens) {
    return absl::InternalError(
        absl::StrCat("the server names an impossible chunk size, ", out.chunk_tokens));
  }
  if (const auto hash = ToDigest(response.profile_hash())) out.profile_hash = *hash;
  // The server has judged it; what cannot be read here is merely not used here.
  if (auto profile = ParseProfile(request.profile, request.layout); profile.ok()) {
    out.profile = std::make_shared<const ModelProfile>(*std::move(profile));
  }
  return out;
}

absl::StatusOr<std::shared_ptr<GpuCache>> ConnectionImpl::OpenGpuCache(const GpuCacheSpec& spec) {
  LKV_RETURN_IF_ERROR(CheckGpuCache(spec));
  auto cache = std::make_shared<LeasedGpuCache>(stubs_.front(), spec, options_.rpc_timeout_ms);
  const auto lease = [&] { return RetryLoop(Retry(), [&] { return cache->Region(); }); };
  auto region = lease();
  if (IsUnknownLayout(region.status()) && RegisterAgain(spec.layout)) region = lease();
  if (!region.ok()) return region.status();
  return cache;
}

absl::StatusOr<std::vector<PutResult>> ConnectionImpl::Put(
    const std::vector<const PutRequest*>& requests) {
  const auto run = [&] {
    return RunPuts({&NextStub(), regions_.get(), stub_}, requests, options_, Retry());
  };
  auto results = run();
  if (!IsUnknownLayout(results.status()) || !RegisterAgain(requests.front()->layout)) {
    return results;
  }
  return run();
}

absl::StatusOr<PutResult> ConnectionImpl::PutPrefix(const PutRequest& request) {
  LKV_ASSIGN_OR_RETURN(std::vector<PutResult> results, Put({&request}));
  return std::move(results.front());
}

absl::StatusOr<std::vector<PutResult>> ConnectionImpl::PutBatch(
    const std::vector<PutRequest>& requests) {
  std::vector<const PutRequest*> pointers;
  for (const PutRequest& request : requests) pointers.push_back(&request);
  return Put(pointers);
}

absl::StatusOr<LookupResult> ConnectionImpl::Lookup(const LookupRequest& request) {
  auto result = LookupOnce(request);
  const absl::Status& missing = result.ok() ? result->miss : result.status();
  if (!IsUnknownLayout(missing) || !RegisterAgain(request.layout)) return result;
  return LookupOnce(request);
}

absl::StatusOr<LookupResult> ConnectionImpl::LookupOnce(const LookupRequest& request) {
  if (request.layout.layout == nullptr) {
    return absl::InvalidArgumentError("lookup: register the layout first");
  }
  if (request.tokens.size() > limits::kMaxLookupTokens) {
    return absl::InvalidArgumentError(absl::StrCat("lookup: ", request.tokens.size(),
                                                   " tokens, at most kMaxLookupTokens, ",
                                                   limits::kMaxLookupTokens, ", at once"));
  }
  v1::LookupRequest message;
  message.set_namespace_(request.layout.name_space);
  message.set_fingerprint(BytesString(request.layout.fingerprint));
  message.mutable_token_ids()->Add(request.tokens.begin(), request.tokens.end());
  message.set_salt(request.salt);
  *message.mutable_bounds() = ToProto(request.bounds);
  message.set_accept_evicted(request.accept_evicted);
  LKV_ASSIGN_OR_RETURN(const v1::LookupResponse response,
                       RetryLoop(Retry(), [&] { return stub_->Lookup(message); }));
  LookupResult out;
  for (const v1::LookupBlock& b : response.blocks()) {
    LookupBlock block;
    LKV_ASSIGN_OR_RETURN(block.block, FromProto(b.block()));
    block.usable_tokens = b.usable_tokens();
    if (block.usable_tokens > block.block.tokens ||
        block.usable_tokens > request.tokens.size() - out.usable_tokens) {
      return absl::DataLossError("lookup: the server claims more usable tokens than there are");
    }
    out.usable_tokens += block.usable_tokens;
    out.blocks.push_back(std::move(block));
  }
  out.miss = MissStatus(response.miss_reason(), response.miss_message());
  return out;
}

absl::StatusOr<std::shared_ptr<const ModelProfile>> ConnectionImpl::FindProfile(
    const RegisteredLayout& layout, const Digest& hash) {
  if (layout.profile && layout.profile->decoding_hash == hash) return layout.profile;
  {
    MutexLock lock(mutex_);
    if (const auto it = profiles_.find(hash); it != profiles_.end()) return it->second;
  }
  v1::GetProfileRequest message;
  message.set_fingerprint(BytesString(layout.fingerprint));
  message.set_profile_hash(BytesString(hash));
  LKV_ASSIGN_OR_RETURN(const v1::GetProfileResponse response,
                       RetryLoop(Retry(), [&] { return stub_->GetProfile(message); }));
  LKV_ASSIGN_OR_RETURN(ModelProfile parsed,
                       ParseProfile(AsBytes(response.profile()), *layout.layout));
  auto profile = std::make_shared<const ModelProfile>(std::move(parsed));
  MutexLock lock(mutex_);
  if (profiles_.size() >= kMaxKeptProfiles) profiles_.clear();
  profiles_[hash] = profile;
  return profile;
}

absl::Status ConnectionImpl::Get(const GetRequest& request, GetSink& sink) {
  const GetRoute route{&NextStub(), get_regions_.get(),
                       [this](const RegisteredLayout& layout, const Digest& hash) {
                         return FindProfile(layout, hash);
                       },
                       stub_};
  absl::Status status = RunGet(route, request, sink, options_, Retry());
  // A server that started anew takes no GPU memory of a layout that it does not know.
  if (request.target.cache == nullptr || !IsUnknownLayout(status) ||
      !RegisterAgain(request.layout)) {
    return status;
  }
  return RunGet(route, request, sink, options_, Retry());
}

absl::StatusOr<SelectionResult> ConnectionImpl::Touch(const BlockSelector& blocks, int64_t ttl_ms) {
  v1::TouchRequest message;
  *message.mutable_blocks() = ToProto(blocks);
  message.set_ttl_ms(ttl_ms);
  return ToSelection(RetryLoop(Retry(), [&] { return stub_->Touch(message); }));
}

absl::StatusOr<SelectionResult> ConnectionImpl::Pin(const BlockSelector& blocks, int64_t ttl_ms) {
  v1::PinRequest message;
  *message.mutable_blocks() = ToProto(blocks);
  message.set_ttl_ms(ttl_ms);
  return ToSelection(RetryLoop(Retry(), [&] { return stub_->Pin(message); }));
}

absl::StatusOr<SelectionResult> ConnectionImpl::Unpin(const BlockSelector& blocks) {
  v1::UnpinRequest message;
  *message.mutable_blocks() = ToProto(blocks);
  return ToSelection(RetryLoop(Retry(), [&] { return stub_->Unpin(message); }));
}

absl::StatusOr<SelectionResult> ConnectionImpl::Delete(const BlockSelector& blocks) {
  v1::DeleteRequest message;
  *message.mutable_blocks() = ToProto(blocks);
  return ToSelection(RetryLoop(Retry(), [&] { return stub_->Delete(message); }));
}

absl::StatusOr<SessionPage> ConnectionImpl::ListSessions(const ListRequest& request) {
  v1::ListSessionsRequest message;
  message.set_namespace_(request.name_space);
  message.set_page_size(request.page_size);
  message.set_page_token(request.page_token);
  LKV_ASSIGN_OR_RETURN(const v1::ListSessionsResponse response,
                       RetryLoop(Retry(), [&] { return stub_->ListSessions(message); }));
  SessionPage out;
  for (const v1::SessionSummary& s : response.sessions()) out.sessions.push_back(FromProto(s));
  out.next_page_token = response.next_page_token();
  return out;
}

absl::StatusOr<SessionDetail> ConnectionImpl::GetSession(const std::string& name_space,
                                                         const std::string& name) {
  v1::GetSessionRequest message;
  message.set_namespace_(name_space);
  message.set_name(name);
  LKV_ASSIGN_OR_RETURN(const v1::SessionDetail response,
                       RetryLoop(Retry(), [&] { return stub_->GetSession(message); }));
  return FromProto(response);
}

absl::StatusOr<BlockPage> ConnectionImpl::ListBlocks(const ListRequest& request) {
  v1::ListBlocksRequest message;
  message.set_namespace_(request.name_space);
  message.set_page_size(request.page_size);
  message.set_page_token(request.page_token);
  LKV_ASSIGN_OR_RETURN(const v1::ListBlocksResponse response,
                       RetryLoop(Retry(), [&] { return stub_->ListBlocks(message); }));
  BlockPage out;
  for (const v1::BlockSummary& b : response.blocks()) out.blocks.push_back(FromProto(b));
  out.next_page_token = response.next_page_token();
  return out;
}

absl::StatusOr<BlockDetail> ConnectionImpl::GetBlock(const std::string& name_space,
                                                     const std::string& key) {
  v1::GetBlockRequest message;
  message.set_namespace_(name_space);
  message.set_key(key);
  LKV_ASSIGN_OR_RETURN(const v1::BlockDetail response,
                       RetryLoop(Retry(), [&] { return stub_->GetBlock(message); }));
  return FromProto(response);
}

absl::StatusOr<ServerStats> ConnectionImpl::Stats() {
  LKV_ASSIGN_OR_RETURN(const v1::StatsResponse response,
                       RetryLoop(Retry(), [&] { return stub_->Stats({}); }));
  return FromProto(response);
}

absl::StatusOr<MissExplanation> ConnectionImpl::ExplainMiss(const std::string& name_space,
                                                            const std::string& key) {
  v1::ExplainMissRequest message;
  message.set_namespace_(name_space);
  message.set_key(key);
  LKV_ASSIGN_OR_RETURN(const v1::ExplainMissResponse response,
                       RetryLoop(Retry(), [&] { return stub_->ExplainMiss(message); }));
  return MissExplanation{static_cast<ErrorReason>(response.reason()), response.message()};
}

absl::StatusOr<VerifyResult> ConnectionImpl::Verify(
    const std::function<void(const VerifyResult&)>& progress) {
  return RetryLoop(Retry(), [&]() -> absl::StatusOr<VerifyResult> {
    auto stream = stub_->Verify({});
    VerifyResult result;
    bool done = false;
    v1::VerifyProgress message;
    while (stream->Read(message)) {
      result = {message.blocks_checked(),          message.blocks_corrupt(),
                message.disk_records_checked(),    message.disk_records_corrupt(),
                message.disk_records_unreadable(), message.disk_bytes_checked()};
      done = message.done();
      if (progress) progress(result);
    }
    LKV_RETURN_IF_ERROR(stream->Finish());
    if (!done) return absl::UnavailableError("verify: the server ended early");
    return result;
  });
}

absl::Status ConnectionImpl::Flush() {
  return RetryLoop(Retry(), [&] { return stub_->Flush({}); }).status();
}

absl::Status ConnectionImpl::Drain() {
  return RetryLoop(Retry(), [&] { return stub_->Drain({}); }).status();
}

absl::StatusOr<std::shared_ptr<Connection>> MakeConnection(const std::string& address,
                                                           ClientOptions options) {
  std::vector<std::shared_ptr<Stub>> stubs;
  for (uint32_t i = 0; i < std::max(options.connections, 1u); ++i) {
    LKV_ASSIGN_OR_RETURN(std::shared_ptr<Stub> stub, MakeGrpcStub(address, options));
    stubs.push_back(std::move(stub));
  }
  const bool breaker = options.circuit_breaker;
  const int64_t probe_ms = options.breaker_probe_ms;
  auto connection = std::make_shared<ConnectionImpl>(
      stubs, std::move(options), [stubs](int64_t ms) { PauseBeforeRetry(stubs, ms); },
      IsLocalAddress(address));
  if (!breaker) return connection;
  return std::make_shared<BreakerConnection>(
      connection, [connection, probe_ms] { return connection->Probe(probe_ms); }, probe_ms);
}

}  // namespace latticekv
