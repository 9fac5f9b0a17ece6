# Asks for memory that will be looked at soon.

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define EMCORE_PREFETCH(address) __builtin_prefetch(address)
    #else
    #define EMCORE_PREFETCH(address) ((void)0)
    #endif
    """
    void prefetch "EMCORE_PREFETCH"(const void* address) noexcept nogil
