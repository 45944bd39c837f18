// The unit of compressed storage: up to kPageTokens rows of one layer, kv head and side.
#pragma once

namespace kve {}
