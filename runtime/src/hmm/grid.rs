//! The grid of a launch: what was asked for, or as many groups in a row as the buffers make.

/// How many groups a grid has.
pub(crate) fn groups(grid: [u32; 3]) -> Option<u64> {
    grid.iter().try_fold(1_u64, |n, g| n.checked_mul(u64::from(*g)))
}

/// The grid and its number of groups, from what was asked for and what the buffers make; an error says what does not fit.
pub(crate) fn of(asked: Option<[u32; 3]>, made: Option<u64>) -> Result<([u32; 3], u32), String> {
    let n = match asked {
        Some(grid) => groups(grid),
        None => Some(made.ok_or("the number of groups does not follow from the buffers: set it with `groups` or `grid`")?),
    };
    match n.and_then(|n| u32::try_from(n).ok()) {
        Some(n) if n > 0 => Ok((asked.unwrap_or([n, 1, 1]), n)),
        _ => {
            let what = asked.map_or_else(|| n.unwrap_or(0).to_string(), |grid| format!("{grid:?}"));
            Err(format!("{what} groups: at least 1 and less than 2^32 in all"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_what_was_asked_for_or_a_row() {
        assert_eq!(of(None, Some(7)), Ok(([7, 1, 1], 7)));
        assert_eq!(of(Some([2, 3, 4]), None), Ok(([2, 3, 4], 24)));
        for (asked, made) in [(None, None), (None, Some(0)), (Some([3, 0, 1]), None), (None, Some(1 << 32))] {
            assert!(of(asked, made).is_err(), "{asked:?} {made:?}");
        }
        for grid in [[1 << 16, 1 << 16, 1], [u32::MAX; 3]] {
            assert!(of(Some(grid), None).is_err(), "{grid:?}");
        }
    }
}
