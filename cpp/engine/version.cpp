#include "kvengine.h"

namespace kve {

std::string_view version() { return KVENGINE_VERSION; }

}  // namespace kve
