# Union-find in an array of the caller: forest[node] lies nearer to the root of the node's tree, which names itself.

ctypedef fused node_t:
    uint32_t
    uint64_t
    int64_t


cdef inline node_t root_of(node_t* forest, node_t node) noexcept nogil:
    while forest[node] != node:
        forest[node] = forest[forest[node]]
        node = forest[node]
    return node


cdef inline bint join_trees(node_t* forest, node_t a, node_t b) noexcept nogil:
    """Whether two nodes were apart; the smaller root stays, so that forest[node] <= node always."""
    a = root_of(forest, a)
    b = root_of(forest, b)
    if a < b:
        forest[b] = a
    else:
        forest[a] = b
    return a != b


cdef inline int64_t number_trees(node_t* forest, int64_t length, node_t first) noexcept nogil:
    """Replaces nodes by the number of their tree, from `first` in order of the roots, -1 by 0; how many trees."""
    cdef int64_t node, count = 0
    for node in range(length):
        if forest[node] == <node_t>-1:
            forest[node] = 0
        elif forest[node] == <node_t>node:
            forest[node] = first + <node_t>count
            count += 1
        else:
            forest[node] = forest[forest[node]]  # a smaller node: already a number
    return count
