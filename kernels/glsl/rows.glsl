// Rows of a sparse matrix, as `Rows` in Rust.

// Returns unless row_ptr belongs to a result with `count` rows in this group, from row `first` on.
#define rows_of_group(first, count, chunk, row_ptr_len) \
    { \
        uint end_row = first + count; \
        bool is_last = count < chunk || group + 1u == grid_count(); \
        if (count == 0u) return; \
        if (!(row_ptr_len == end_row + 1u || (!is_last && row_ptr_len > end_row))) { \
            complain(NO_ROW_PTR, row_ptr_len, end_row) \
            return; \
        } \
    }
