//! Line charts.

use super::axis::{Axis, drawable};
use super::colour::{Colour, series};
use super::drawing::{Anchor, Drawing, LABEL, Shape};
use super::font::{shorten, width};

/// Size of a chart without its legend.
const SIZE: (f64, f64) = (720.0, 440.0);

/// Height of a row of the legend.
const ROW: f64 = 18.0;

/// Points that one series is drawn with at most, about two for each unit of the chart's width.
const POINTS: usize = 1200;

/// One curve.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// What the legend calls it; nothing leaves it out of the legend.
    pub name: String,
    /// The points, by growing x. A value that is no number interrupts the curve.
    pub points: Vec<(f64, f64)>,
    /// For every point, how far a shaded band reaches above and below it, such as a standard deviation; empty for no band.
    pub band: Vec<f64>,
}

/// Curves over one pair of axes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chart {
    /// The title.
    pub title: String,
    /// What the horizontal axis shows.
    pub x: String,
    /// What the vertical axis shows.
    pub y: String,
    /// The curves; colours follow their order.
    pub series: Vec<Series>,
    /// Whether the vertical axis is logarithmic; values not above 0 are then left out.
    pub log_y: bool,
}

/// Where the plane of a chart lies.
pub(super) struct Plane {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Plane {
    /// The point at a share of the width and of the height, counted from below.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + x * self.width, self.top + (1.0 - y) * self.height)
    }

    /// Labels at the marks of both axes, and what the axes show; with grid lines where `grid` says so.
    pub fn axes(&self, drawing: &mut Drawing, (x, y): (&Axis, &Axis), (x_title, y_title): (&str, &str), grid: bool) {
        let bottom = self.top + self.height;
        for (share, label) in y.marks() {
            let (left, at) = self.at(0.0, share);
            if grid {
                drawing.line(&[(left, at), (left + self.width, at)], Colour::GRID, 1.0);
            }
            drawing.label((left - 7.0, at), &label, Anchor::End, Colour::TEXT);
        }
        for (share, label) in x.marks() {
            let (at, _) = self.at(share, 0.0);
            if grid {
                drawing.line(&[(at, self.top), (at, bottom)], Colour::GRID, 1.0);
            }
            drawing.line(&[(at, bottom), (at, bottom + 4.0)], Colour::AXIS, 1.0);
            drawing.label((at, bottom + 13.0), &label, Anchor::Middle, Colour::TEXT);
        }
        let corners = [self.at(0.0, 1.0), self.at(0.0, 0.0), self.at(1.0, 0.0)];
        drawing.line(&corners, Colour::AXIS, 1.0);
        let middle = self.at(0.5, 0.5);
        drawing.label((middle.0, bottom + 34.0), &shorten(x_title, LABEL, self.width), Anchor::Middle, Colour::TEXT);
        drawing.upwards((14.0, middle.1), &shorten(y_title, LABEL, self.height), Anchor::Middle);
    }

    /// The room that the labels of a vertical axis and its title take.
    pub fn margin(y: &Axis) -> f64 {
        let widest = y.marks().iter().map(|(_, label)| width(label, LABEL)).fold(0.0, f64::max);
        36.0 + widest
    }
}

impl Chart {
    /// Lays the chart out.
    pub fn draw(&self) -> Drawing {
        let all = || self.series.iter().flat_map(|s| &s.points).filter(|(x, y)| drawable(*x) && drawable(*y));
        let x = Axis::linear(all().map(|(x, _)| *x), 0.0);
        let edges = self.series.iter().flat_map(|s| band(s).into_iter().flat_map(|(_, low, high)| [low, high]));
        let values = all().map(|(_, y)| *y).chain(edges);
        let y = if self.log_y { Axis::logarithmic(values) } else { Axis::linear(values, 0.04) };

        let legend = self.legend();
        let rows = legend.iter().map(|item| item.row + 1).max().unwrap_or(0) as f64;
        let (left, top) = (Plane::margin(&y), 42.0 + rows * ROW);
        let mut drawing = Drawing::new(SIZE.0, SIZE.1 + rows * ROW, &self.title);
        let plane = Plane { left, top, width: SIZE.0 - left - 20.0, height: SIZE.1 - 42.0 - 48.0 };
        plane.axes(&mut drawing, (&x, &y), (&self.x, &self.y), true);
        for item in legend {
            let (colour, dash) = series(item.index);
            let at = (item.x, 46.0 + item.row as f64 * ROW);
            let points = vec![at, (at.0 + 22.0, at.1)];
            drawing.shapes.push(Shape::Line { points, colour, width: 2.0, dash });
            drawing.label((at.0 + 28.0, at.1), &item.name, Anchor::Start, Colour::TEXT);
        }
        let place = |px: f64, py: f64| Some(plane.at(x.place(px)?, y.place(py)?));
        for (i, s) in self.series.iter().enumerate() {
            let (colour, _) = series(i);
            let edges = band(s);
            let upper = edges.iter().filter_map(|(x, _, high)| place(*x, *high));
            let lower = edges.iter().rev().filter_map(|(x, low, _)| place(*x, *low));
            let points: Vec<_> = upper.chain(lower).collect();
            if points.len() > 2 {
                drawing.shapes.push(Shape::Area { points, colour, opacity: 0.18 });
            }
        }
        for (i, s) in self.series.iter().enumerate() {
            let (colour, dash) = series(i);
            let points: Vec<_> = thin(&s.points).into_iter().map(|(x, y)| place(x, y)).collect();
            for run in points.split(Option::is_none) {
                let points: Vec<_> = run.iter().flatten().copied().collect();
                match points.as_slice() {
                    [] => {}
                    [at] => drawing.shapes.push(Shape::Dot { at: *at, radius: 3.0, colour }),
                    _ => drawing.shapes.push(Shape::Line { points, colour, width: 1.8, dash }),
                }
            }
        }
        drawing
    }

    /// The entries of the legend, in rows.
    fn legend(&self) -> Vec<Item> {
        let (mut items, mut x, mut row) = (Vec::new(), 20.0, 0);
        for (index, s) in self.series.iter().enumerate().filter(|(_, s)| !s.name.is_empty()) {
            let name = shorten(&s.name, LABEL, 300.0);
            let length = 28.0 + width(&name, LABEL) + 20.0;
            if x + length > SIZE.0 && x > 20.0 {
                (x, row) = (20.0, row + 1);
            }
            items.push(Item { index, name, x, row });
            x += length;
        }
        items
    }
}

/// An entry of the legend.
struct Item {
    index: usize,
    name: String,
    x: f64,
    row: usize,
}

/// The band's points: x, lower and upper edge.
fn band(s: &Series) -> Vec<(f64, f64, f64)> {
    let edge = |((x, y), spread): (&(f64, f64), &f64)| (*x, y - spread, y + spread);
    let shown = |(x, low, high): &(f64, f64, f64)| drawable(*x) && drawable(*low) && drawable(*high);
    s.points.iter().zip(&s.band).map(edge).filter(shown).collect()
}

/// At most [`POINTS`] points that look the same: the lowest and the highest of every stretch.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(POINTS);
    for stretch in points.chunks(points.len().div_ceil(POINTS / 2)) {
        let by_y = |i: &usize, j: &usize| stretch[*i].1.total_cmp(&stretch[*j].1);
        let ends = ((0..stretch.len()).min_by(by_y), (0..stretch.len()).max_by(by_y));
        if let (Some(low), Some(high)) = ends {
            kept.push(stretch[low.min(high)]);
            if low != high {
                kept.push(stretch[low.max(high)]);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        let series = vec![Series { name: "a & b".into(), points: points.to_vec(), band: vec![] }];
        Chart { title: "loss <ρ>".into(), x: "step".into(), y: "loss".into(), series, log_y: false }
    }

    #[test]
    fn both_formats_come_from_one_drawing_and_do_not_change() {
        let drawing = chart(&[(0.0, 1.0), (1.0, 0.5), (2.0, f64::NAN), (3.0, 0.25)]).draw();
        let svg = drawing.svg();
        assert!(svg.contains("loss &lt;ρ&gt;") && svg.contains("a &amp; b"), "{svg}");
        assert_eq!(svg.matches("stroke-width=\"1.8\"").count(), 1, "a gap interrupts the curve");
        assert_eq!(svg.matches("<circle").count(), 1, "a point alone is a dot");
        let png = drawing.png().expect("draws");
        assert_eq!(png, drawing.clone().png().expect("draws"));
        let decoded = image::load_from_memory(&png).expect("a PNG file");
        assert_eq!((decoded.width(), decoded.height()), (1440, 916));
    }

    #[test]
    fn anything_can_be_drawn() {
        let odd = [f64::NAN, f64::INFINITY, -1e308, 0.0, 1e308, 5e-324];
        for a in odd {
            for b in odd {
                for log_y in [false, true] {
                    let mut chart = Chart { log_y, ..chart(&[(a, b), (b, a), (1.0, 2.0)]) };
                    chart.series[0].band = vec![a, b];
                    let drawing = chart.draw();
                    assert!(!drawing.svg().contains("NaN") && !drawing.svg().contains("inf"), "{}", drawing.svg());
                    drawing.png().expect("draws");
                }
            }
        }
        Chart::default().draw().png().expect("draws");
    }

    #[test]
    fn a_long_curve_keeps_its_peaks() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 0.0)).collect();
        points[54_321].1 = 7.0;
        let thin = thin(&points);
        assert!(thin.len() <= POINTS && thin.contains(&(54_321.0, 7.0)), "{} points", thin.len());
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
    }
}
