# Open addressing: an entry lies at its home or behind it, with no free place between. Tables have 2**n places and are
# never full. What includes this says before what an Entry is, and of one whether it is `taken` (zeros are not),
# whether it is the `same` as another, and its `home`, of which the low bits count.

cdef inline uint64_t mix(uint64_t key) noexcept nogil:
    key *= <uint64_t>0x9E3779B97F4A7C15
    return key >> 32 | key << 32  # the upper bits of the product are the well mixed ones


cdef inline Entry* place_of(Entry* table, uint64_t places, Entry wanted) noexcept nogil:
    """Where the same entry is, or the free place where it belongs."""
    cdef uint64_t at = home(wanted) & (places - 1)
    while taken(table[at]) and not same(table[at], wanted):
        at = (at + 1) & (places - 1)
    return &table[at]


cdef int resize_table(vector[Entry]& table, uint64_t places) except -1 nogil:
    cdef vector[Entry] before
    cdef Entry entry
    before.swap(table)
    table.resize(places)
    for entry in before:
        if taken(entry):
            place_of(table.data(), places, entry)[0] = entry
    return 0
