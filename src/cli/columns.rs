//! Which columns of a table there is room for.

/// Between two columns.
pub(super) const GAP: usize = 2;

/// The first of `columns`, which are in the order of their importance, that fit into `width` side by side. One that does not
/// fit takes those after it with it, so that a wider terminal never shows fewer.
pub(super) fn fitting<C: Copy>(columns: &[C], width: usize, width_of: impl Fn(C) -> usize) -> &[C] {
    let mut used = 0;
    let fits = columns.iter().take_while(|&&column| {
        used += width_of(column) + if used == 0 { 0 } else { GAP };
        used <= width
    });
    &columns[..fits.count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_important_columns_stay() {
        let columns = [4, 6, 1];
        let shown = |width| fitting(&columns, width, |width| width).len();
        assert_eq!([3, 4, 11, 12, 14, 15, 100].map(shown), [0, 1, 1, 2, 2, 3, 3]);
    }
}
