// How a region's descriptor comes to a client: over a unix socket with a name in the abstract
// namespace, which needs no file and goes with its process.
#ifndef LATTICEKV_PROTO_DESCRIPTOR_SOCKET_H_
#define LATTICEKV_PROTO_DESCRIPTOR_SOCKET_H_

#include <sys/socket.h>
#include <sys/un.h>

#include <optional>
#include <string_view>

namespace latticekv {

// The address of the abstract `name`, and its size; nothing when no address has room for it.
struct AbstractAddress {
  static std::optional<AbstractAddress> Of(std::string_view name);
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
  sockaddr_un address{};
  socklen_t size = 0;
};

// One message with the descriptor and a byte; false, with errno, when it was not sent.
bool SendDescriptor(int socket, int descriptor);

// The descriptor that the next message brings, closed by programs that this one starts; nothing
// when it brings none. Waits as the socket does.
std::optional<int> ReceiveDescriptor(int socket);

}  // namespace latticekv

#endif  // LATTICEKV_PROTO_DESCRIPTOR_SOCKET_H_
