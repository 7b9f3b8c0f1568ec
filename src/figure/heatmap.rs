//! Heat maps: values over a plane, by colour.

use super::axis::{Axis, drawable, number};
use super::chart::Plane;
use super::colour::{Colour, scale};
use super::drawing::{Anchor, Drawing, LABEL, Shape};
use super::font::shorten;

/// Values over a grid of places.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heatmap {
    /// The title.
    pub title: String,
    /// What the horizontal axis shows.
    pub x: String,
    /// What the vertical axis shows.
    pub y: String,
    /// What the colours show.
    pub value: String,
    /// Places of the columns, growing.
    pub xs: Vec<f64>,
    /// Places of the rows, growing from below.
    pub ys: Vec<f64>,
    /// A row of values for every place in `ys`; one that is missing or no number is grey.
    pub values: Vec<Vec<f64>>,
}

/// The figure and the plane in it.
const SIZE: (f64, f64) = (560.0, 480.0);
const HEIGHT: f64 = 480.0 - 42.0 - 48.0;

/// Room for the colour scale at the right.
const SCALE: f64 = 110.0;

impl Heatmap {
    /// Lays the heat map out.
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::new(SIZE.0, SIZE.1, &self.title);
        let (columns, rows) = (edges(&self.xs), edges(&self.ys));
        let x = Axis::linear(columns.iter().copied(), 0.0);
        let y = Axis::linear(rows.iter().copied(), 0.0);
        let left = Plane::margin(&y);
        let plane = Plane { left, top: 42.0, width: SIZE.0 - left - SCALE, height: HEIGHT };
        let shown = || self.values.iter().flatten().copied().filter(|v| drawable(*v));
        let (low, high) = (shown().fold(f64::INFINITY, f64::min), shown().fold(f64::NEG_INFINITY, f64::max));
        for (row, bottom) in rows.windows(2).enumerate() {
            for (column, side) in columns.windows(2).enumerate() {
                let value = self.values.get(row).and_then(|r| r.get(column)).copied().filter(|v| drawable(*v));
                let share = |v: f64| if high > low { (v - low) / (high - low) } else { 0.5 };
                let colour = value.map_or(Colour::MISSING, |v| scale(share(v)));
                let corners = (x.place(side[0]), x.place(side[1]), y.place(bottom[0]), y.place(bottom[1]));
                if let (Some(x0), Some(x1), Some(y0), Some(y1)) = corners {
                    let (from, to) = (plane.at(x0, y1), plane.at(x1, y0));
                    drawing.rectangle(from, (to.0 - from.0, to.1 - from.1), colour);
                }
            }
        }
        plane.axes(&mut drawing, (&x, &y), (&self.x, &self.y), false);
        if low <= high {
            self.scale(&mut drawing, &plane, low, high);
        }
        drawing
    }

    /// What the colours mean.
    fn scale(&self, drawing: &mut Drawing, plane: &Plane, low: f64, high: f64) {
        const PARTS: usize = 64;
        let (left, part) = (plane.left + plane.width + 24.0, plane.height / PARTS as f64);
        for i in 0..PARTS {
            let top = plane.top + plane.height - (i + 1) as f64 * part;
            drawing.rectangle((left, top), (16.0, part), scale(i as f64 / (PARTS - 1) as f64));
        }
        if high > low {
            let axis = Axis::linear([low, high].into_iter(), 0.0);
            for (share, label) in axis.marks() {
                let (_, at) = plane.at(0.0, share);
                drawing.shapes.push(Shape::Line {
                    points: vec![(left + 16.0, at), (left + 20.0, at)],
                    colour: Colour::AXIS,
                    width: 1.0,
                    dash: &[],
                });
                drawing.label((left + 24.0, at), &label, Anchor::Start, Colour::TEXT);
            }
        } else {
            let (_, at) = plane.at(0.0, 0.5);
            drawing.label((left + 24.0, at), &number(low, low.abs() / 100.0), Anchor::Start, Colour::TEXT);
        }
        let title = shorten(&self.value, LABEL, plane.height);
        drawing.upwards((SIZE.0 - 14.0, plane.top + plane.height / 2.0), &title, Anchor::Middle);
    }
}

/// The borders of the cells around places: halfway between neighbours, and as far outside at the ends.
fn edges(places: &[f64]) -> Vec<f64> {
    let mut edges: Vec<f64> = places.windows(2).map(|w| f64::midpoint(w[0], w[1])).collect();
    match (places, edges.first().copied(), edges.last().copied()) {
        ([], ..) => return vec![],
        ([first, .., last], Some(second), Some(before)) => {
            edges.insert(0, 2.0 * first - second);
            edges.push(2.0 * last - before);
        }
        ([only, ..], ..) => edges = vec![only - 0.5, only + 0.5],
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_drawn_in_its_colour() {
        let map = Heatmap {
            title: "loss".into(),
            xs: vec![-1.0, 0.0, 1.0],
            ys: vec![0.0, 2.0],
            values: vec![vec![0.0, 0.5, 1.0], vec![f64::NAN, 1.0]],
            ..Heatmap::default()
        };
        let svg = map.draw().svg();
        let cells = |colour: Colour| svg.matches(&format!("fill=\"{colour}\" shape-rendering")).count();
        assert_eq!(cells(Colour::MISSING), 2, "one is no number, one is missing");
        assert_eq!(cells(scale(1.0)), 2 + 1, "two cells and the end of the scale");
        assert_eq!(svg.matches("crispEdges").count(), 6 + 64);
        map.draw().png().expect("draws");
    }

    #[test]
    fn anything_can_be_drawn() {
        for values in [vec![], vec![vec![3.0]], vec![vec![f64::INFINITY]], vec![vec![0.0]]] {
            let odd = [vec![], vec![0.0], vec![f64::NAN, 1.0], vec![-1e308, 1e308], vec![2.0, 1.0]];
            for xs in odd {
                let svg = Heatmap { xs, ys: vec![0.0, 1.0], values: values.clone(), ..Heatmap::default() }.draw().svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
            }
        }
    }

    #[test]
    fn borders_lie_between_places() {
        assert_eq!(edges(&[0.0, 1.0, 3.0]), [-0.5, 0.5, 2.0, 4.0]);
        assert_eq!(edges(&[2.0]), [1.5, 2.5]);
    }
}
