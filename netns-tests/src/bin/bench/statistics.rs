//! Numbers out of numbers. Knows nothing of what they measure.

/// The middle value; not a number if there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The smallest value that `percent` of all values do not exceed; not a number if there is none.
pub(crate) fn percentile(values: &[f64], percent: f64) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The median of what each value is of its counterpart, where both are there: on a machine that drifts, steadier than the
/// ratio of the medians.
pub(crate) fn median_ratio(values: &[Option<f64>], counterparts: &[Option<f64>]) -> Option<f64> {
    let pairs = values.iter().zip(counterparts).filter_map(|(value, counterpart)| Some(((*value)?, (*counterpart)?)));
    let ratios: Vec<f64> = pairs.map(|(value, counterpart)| value / counterpart).collect();
    (!ratios.is_empty()).then(|| median(&ratios))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 99.0), 99.0);
        assert_eq!(percentile(&values, 50.0), 50.0);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_rounds_with_a_gap_are_left_out() {
        let (ours, theirs) = ([Some(2.0), Some(30.0), None, Some(8.0)], [Some(1.0), Some(10.0), Some(5.0), None]);
        assert_eq!(median_ratio(&ours, &theirs), Some(2.5));
        assert_eq!(median_ratio(&ours, &[None; 4]), None);
    }
}
