# The neighbours of a cluster: a short list, or above LIST entries an open-addressing table at most half full.
# Part of agglomeration.pyx.

cdef enum:
    LIST = 24

cdef uint32_t NONE = 0xFFFFFFFFU

cdef struct Neighbour:
    uint32_t node
    uint32_t edge

cdef struct Node:
    Neighbour* neighbours
    uint32_t size
    uint32_t room  # of a list: places it has; of a table: slots, a power of two above LIST
    uint8_t table
    uint8_t frozen
    uint8_t owned  # neighbours is ours to free, not a part of the common first block


cdef extern from *:
    """
    #if defined(__GNUC__)
    #define EMCORE_PREFETCH(p) __builtin_prefetch(p)
    #else
    #define EMCORE_PREFETCH(p) ((void)0)
    #endif
    """
    void EMCORE_PREFETCH(const void*) noexcept nogil


cdef inline uint64_t home(uint32_t node, uint32_t room) noexcept nogil:
    return ((node * 0x9E3779B97F4A7C15ULL) >> 32) & (room - 1)


cdef inline Neighbour* find(Node* node, uint32_t who) noexcept nogil:
    cdef uint64_t i
    if not node.table:
        for i in range(node.size):
            if node.neighbours[i].node == who:
                return &node.neighbours[i]
        return NULL
    i = home(who, node.room)
    while node.neighbours[i].node != who:
        if node.neighbours[i].node == NONE:
            return NULL
        i = (i + 1) & (node.room - 1)
    return &node.neighbours[i]


cdef inline void place(Node* node, Neighbour what) noexcept nogil:
    """Puts an entry into a table that has room."""
    cdef uint64_t i = home(what.node, node.room)
    while node.neighbours[i].node != NONE:
        i = (i + 1) & (node.room - 1)
    node.neighbours[i] = what


cdef int widen(Node* node) except -1 nogil:
    """Makes room for one more: a longer list up to LIST entries, above that a table at most half full."""
    cdef Node wider = node[0]
    cdef uint32_t i
    cdef uint32_t slots = node.room if node.table else node.size
    wider.owned = True
    wider.table = node.size >= LIST
    wider.room = LIST
    if wider.table:
        wider.room = 64
        while wider.room < 2 * (node.size + 1):
            wider.room *= 2
    wider.neighbours = <Neighbour*>malloc(wider.room * sizeof(Neighbour))
    if wider.neighbours == NULL:
        raise MemoryError
    if wider.table:
        memset(wider.neighbours, 0xFF, wider.room * sizeof(Neighbour))
    for i in range(slots):
        if not wider.table:
            wider.neighbours[i] = node.neighbours[i]
        elif node.neighbours[i].node != NONE:
            place(&wider, node.neighbours[i])
    if node.owned:
        free(node.neighbours)
    node[0] = wider
    return 0


cdef inline int insert(Node* node, uint32_t who, uint32_t edge) except -1 nogil:
    if (node.table and 2 * (node.size + 1) > node.room) or (not node.table and node.size == node.room):
        widen(node)
    if node.table:
        place(node, Neighbour(who, edge))
    else:
        node.neighbours[node.size] = Neighbour(who, edge)
    node.size += 1
    return 0


cdef inline void remove(Node* node, Neighbour* entry) noexcept nogil:
    cdef uint64_t hole, i, mask = node.room - 1
    node.size -= 1
    if not node.table:
        entry[0] = node.neighbours[node.size]
        return
    hole = entry - node.neighbours
    i = hole
    while True:  # close the gap, so that a search may stop at the first free slot
        i = (i + 1) & mask
        if node.neighbours[i].node == NONE:
            break
        if ((i - home(node.neighbours[i].node, node.room)) & mask) >= ((i - hole) & mask):
            node.neighbours[hole] = node.neighbours[i]
            hole = i
    node.neighbours[hole].node = NONE
