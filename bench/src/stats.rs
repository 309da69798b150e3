//! Medians, ratios and spread of interleaved rounds.

/// The middle of `values`; of an even number the mean of the two in the middle.
///
/// # Panics
/// There are none: every row has at least one round.
pub(crate) fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "a median needs values");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The median of the ratios round by round: both sides of a round met the machine in the same mood, so this varies
/// less than the ratio of the medians.
pub(crate) fn ratio(values: &[f64], ceilings: &[f64]) -> f64 {
    let ratios: Vec<f64> = values.iter().zip(ceilings).map(|(value, of)| value / of).collect();
    median(&ratios)
}

/// Half of the distance between the smallest and the largest, as a part of the median.
pub(crate) fn spread(values: &[f64]) -> f64 {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (largest - smallest) / 2.0 / median(values)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "these values have exact forms")]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_however_the_values_come() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[8.0, 1.0, 4.0, 2.0]), 3.0);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[1.0, 1.0, 1.0, 1.0, 1000.0]), 1.0, "one outlier moves nothing");
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine became ten times slower in the last two rounds; the ratio stays.
        let (ours, ceiling) = ([50.0, 50.0, 5.0, 5.0, 5.0], [100.0, 100.0, 10.0, 10.0, 10.0]);
        assert_eq!(ratio(&ours, &ceiling), 0.5);
        let drifted = ([50.0, 5.0, 5.0], [100.0, 100.0, 10.0]);
        assert_eq!(ratio(&drifted.0, &drifted.1), 0.5, "the medians alone would say 0.05");
    }

    #[test]
    fn the_spread_is_half_the_range() {
        assert_eq!(spread(&[9.0, 10.0, 11.0]), 0.1);
        assert_eq!(spread(&[5.0]), 0.0);
    }
}
