# The neighbours of a cluster: a short list, or above LIST entries a table (table.pxi) at most half full.
# Part of agglomeration.pyx.

cdef enum:
    LIST = 24

cdef uint32_t NONE = 0xFFFFFFFFU

cdef struct Entry:  # a neighbour
    uint32_t node  # NONE: a free place
    uint32_t edge

cdef struct Node:
    Entry* neighbours
    uint32_t size
    uint32_t room  # of a list: places it has; of a table: slots, a power of two above LIST
    uint8_t table
    uint8_t frozen
    uint8_t owned  # neighbours is ours to free, not a part of the common first block


cdef inline bint taken(Entry entry) noexcept nogil:
    return entry.node != NONE


cdef inline bint same(Entry entry, Entry other) noexcept nogil:
    return entry.node == other.node


cdef inline uint64_t home(Entry entry) noexcept nogil:
    return mix(entry.node)


include "table.pxi"


cdef inline Entry* find(Node* node, uint32_t who) noexcept nogil:
    cdef Entry* place
    cdef uint64_t i
    if not node.table:
        for i in range(node.size):
            if node.neighbours[i].node == who:
                return &node.neighbours[i]
        return NULL
    place = place_of(node.neighbours, node.room, Entry(who, 0))
    return place if taken(place[0]) else NULL


cdef int widen(Node* node) except -1 nogil:
    """Makes room for one more: a longer list up to LIST entries, above that a table at most half full."""
    cdef Node wider = node[0]
    cdef uint32_t i
    cdef uint32_t slots = node.room if node.table else node.size
    if node.size >= <uint32_t>1 << 30:
        raise OverflowError("a cluster has more neighbours than 32 bits number")
    wider.owned = True
    wider.table = node.size >= LIST
    wider.room = LIST
    if wider.table:
        wider.room = 64
        while wider.room < 2 * (node.size + 1):
            wider.room *= 2
    wider.neighbours = <Entry*>malloc(wider.room * sizeof(Entry))
    if wider.neighbours == NULL:
        raise MemoryError
    if wider.table:
        memset(wider.neighbours, 0xFF, wider.room * sizeof(Entry))
    for i in range(slots):
        if not wider.table:
            wider.neighbours[i] = node.neighbours[i]
        elif node.neighbours[i].node != NONE:
            place_of(wider.neighbours, wider.room, node.neighbours[i])[0] = node.neighbours[i]
    if node.owned:
        free(node.neighbours)
    node[0] = wider
    return 0


cdef inline int insert(Node* node, uint32_t who, uint32_t edge) except -1 nogil:
    if (node.table and 2 * (node.size + 1) > node.room) or (not node.table and node.size == node.room):
        widen(node)
    if node.table:
        place_of(node.neighbours, node.room, Entry(who, edge))[0] = Entry(who, edge)
    else:
        node.neighbours[node.size] = Entry(who, edge)
    node.size += 1
    return 0


cdef inline void remove(Node* node, Entry* entry) noexcept nogil:
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
        if ((i - home(node.neighbours[i])) & mask) >= ((i - hole) & mask):
            node.neighbours[hole] = node.neighbours[i]
            hole = i
    node.neighbours[hole].node = NONE
