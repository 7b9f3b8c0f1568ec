//! Colours that colour-blind readers can tell apart.

use std::fmt;

/// Red, green, blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Colour(pub u8, pub u8, pub u8);

impl Colour {
    pub const WHITE: Self = Self(255, 255, 255);
    pub const TEXT: Self = Self(36, 41, 47);
    pub const AXIS: Self = Self(110, 119, 129);
    pub const GRID: Self = Self(225, 228, 232);
    /// Where a heat map has no value.
    pub const MISSING: Self = Self(200, 200, 200);

    /// White or dark text, whichever is read better on this colour.
    pub fn text_on(self) -> Self {
        let luminance = 0.299 * f64::from(self.0) + 0.587 * f64::from(self.1) + 0.114 * f64::from(self.2);
        if luminance < 140.0 { Self::WHITE } else { Self::TEXT }
    }

    /// The colour `share` of the way to `other`.
    pub fn mix(self, other: Self, share: f64) -> Self {
        let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
        Self(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }
}

/// As CSS writes it.
impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// Okabe & Ito's colours, grey in the place of yellow, which white paper swallows.
const SERIES: [Colour; 8] = [
    Colour(0, 114, 178),
    Colour(213, 94, 0),
    Colour(0, 158, 115),
    Colour(204, 121, 167),
    Colour(230, 159, 0),
    Colour(86, 180, 233),
    Colour(0, 0, 0),
    Colour(118, 118, 118),
];

/// Dashes and gaps of the series after those that colour alone tells apart.
const DASHES: [&[f64]; 4] = [&[], &[6.0, 3.0], &[2.0, 2.0], &[8.0, 3.0, 2.0, 3.0]];

/// Colour and dashes of the series at `index`.
pub(super) fn series(index: usize) -> (Colour, &'static [f64]) {
    (SERIES[index % SERIES.len()], DASHES[(index / SERIES.len()) % DASHES.len()])
}

/// The scale viridis (Smith & van der Walt, 2015) at every eighth of its length.
const VIRIDIS: [Colour; 9] = [
    Colour(68, 1, 84),
    Colour(71, 44, 122),
    Colour(59, 81, 139),
    Colour(44, 113, 142),
    Colour(33, 144, 141),
    Colour(39, 173, 129),
    Colour(92, 200, 99),
    Colour(170, 220, 50),
    Colour(253, 231, 37),
];

/// The colour of a share in [0, 1], from dark to bright.
pub(super) fn scale(share: f64) -> Colour {
    let place = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let below = (place as usize).min(VIRIDIS.len() - 2);
    VIRIDIS[below].mix(VIRIDIS[below + 1], place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_runs_from_end_to_end() {
        assert_eq!(scale(0.0), VIRIDIS[0]);
        assert_eq!(scale(0.5), VIRIDIS[4]);
        assert_eq!(scale(2.0), VIRIDIS[8]);
        assert_eq!(scale(0.0).text_on(), Colour::WHITE);
        assert_eq!(scale(1.0).text_on(), Colour::TEXT);
    }

    #[test]
    fn thirty_two_series_look_different() {
        let all: Vec<_> = (0..32).map(series).collect();
        assert!((0..32).all(|i| !all[..i].contains(&all[i])));
        assert_eq!(all[1].0.to_string(), "#d55e00");
    }
}
