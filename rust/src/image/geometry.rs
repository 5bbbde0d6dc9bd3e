//! Geometry: what part of a picture is resized to what, and which pixels that needs (short side, centre crop, squash).

use super::kernel::Interpolation;

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// A rectangle in pixels whose edges may lie within one: that pixel counts by the part of it inside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Columns.
    pub width: f64,
    /// Rows.
    pub height: f64,
}

impl From<Area> for Window {
    fn from(area: Area) -> Window {
        Window {
            left: area.left as f64,
            top: area.top as f64,
            width: area.width as f64,
            height: area.height as f64,
        }
    }
}

/// How a picture becomes a sample: `source` of it is resized to `resized`, of which the square at `left`, `top` is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// The part of the picture that is resized; pixels outside it have no influence.
    pub source: Window,
    /// Width and height after resizing.
    pub resized: (usize, usize),
    /// Column of the resized picture where the square begins.
    pub left: usize,
    /// Row of the resized picture where the square begins.
    pub top: usize,
    /// Mirror left and right.
    pub flip: bool,
}

/// How a whole picture is fitted to the square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Short side to the size, then the centre square; half of an odd margin is rounded.
    Crop(Rounding),
    /// Both sides to the size.
    Squash,
}

/// How half of an odd number of pixels is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To even, as torchvision's `CenterCrop` and Python's `round` do.
    Even,
    /// Down, as transformers does.
    Down,
    /// Up.
    Up,
}

impl Rounding {
    fn half(self, n: usize) -> usize {
        match self {
            Rounding::Even => n / 2 + usize::from(n % 4 == 3),
            Rounding::Down => n / 2,
            Rounding::Up => n.div_ceil(2),
        }
    }
}

impl Geometry {
    /// The centre square (or all of it, squashed) of a `width` by `height` picture at `size` pixels.
    pub fn centre(width: usize, height: usize, size: usize, fit: Fit) -> Geometry {
        let Fit::Crop(rounding) = fit else {
            return Geometry::whole(width, height, (size, size));
        };
        // Short side to `size`, the long one rounded down, as torchvision's int() does.
        let resized = if width <= height {
            (size, size * height / width)
        } else {
            (size * width / height, size)
        };
        Geometry {
            left: rounding.half(resized.0 - size),
            top: rounding.half(resized.1 - size),
            ..Geometry::whole(width, height, resized)
        }
    }

    /// The whole picture at another size.
    pub fn whole(width: usize, height: usize, resized: (usize, usize)) -> Geometry {
        let source = Area {
            left: 0,
            top: 0,
            width,
            height,
        };
        Geometry {
            source: source.into(),
            resized,
            left: 0,
            top: 0,
            flip: false,
        }
    }

    /// A part of the picture, squashed to the square.
    pub fn part(source: Area, size: usize, flip: bool) -> Geometry {
        Geometry {
            source: source.into(),
            flip,
            ..Geometry::whole(source.width, source.height, (size, size))
        }
    }
}

impl Geometry {
    /// The part of the picture whose pixels have any influence at all, for a result of `size` (columns, rows).
    pub fn needed(&self, size: (usize, usize), kernel: Interpolation) -> Area {
        let axis = |from: Stretch, to: usize, first: usize, size: usize| {
            let begin = from.span(to, first, kernel).0;
            let end = from.span(to, first + size - 1, kernel).1;
            (from.first() + begin, end - begin)
        };
        let (across, down) = self.stretches();
        let (left, width) = axis(across, self.resized.0, self.left, size.0);
        let (top, height) = axis(down, self.resized.1, self.top, size.1);
        Area {
            left,
            top,
            width,
            height,
        }
    }

    /// The source along both axes.
    pub(super) fn stretches(&self) -> (Stretch, Stretch) {
        let Window {
            left,
            top,
            width,
            height,
        } = self.source;
        let stretch = |begin, length| Stretch { begin, length };
        (stretch(left, width), stretch(top, height))
    }

    /// The fewest eighths of its size (8, 4, 2 or 1) at which a picture still has a pixel for each one of the result.
    pub fn eighths(&self) -> usize {
        let fits = |side: f64, eighths: usize, to: usize| side * eighths as f64 >= (8 * to) as f64;
        [1, 2, 4]
            .into_iter()
            .find(|&eighths| {
                fits(self.source.width, eighths, self.resized.0)
                    && fits(self.source.height, eighths, self.resized.1)
            })
            .unwrap_or(8)
    }

    /// The same part of a picture whose pixels are that many times as many, across and down.
    pub fn scaled(mut self, across: f64, down: f64) -> Geometry {
        let source = &mut self.source;
        (source.left, source.width) = (source.left * across, source.width * across);
        (source.top, source.height) = (source.top * down, source.height * down);
        self
    }
}

/// The source along one axis.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub begin: f64,
    pub length: f64,
}

impl Stretch {
    /// The first pixel that it touches.
    #[inline(always)]
    pub fn first(self) -> usize {
        self.begin as usize
    }

    /// Where it begins and ends, counted from the edge of its first pixel.
    #[inline(always)]
    pub fn ends(self) -> (f64, f64) {
        let begin = self.begin - self.first() as f64;
        // Scaling an edge that lies on a pixel's may take it a rounding error past it.
        let end = begin + self.length;
        let near = end.round();
        (begin, if (end - near).abs() < 1e-9 { near } else { end })
    }

    /// The middle of an output position, counted in the same way, and source pixels an output pixel.
    #[inline(always)]
    pub fn centre(self, to: usize, index: usize) -> (f64, f64) {
        let scale = self.length / to as f64;
        (self.ends().0 + (index as f64 + 0.5) * scale, scale)
    }

    /// First source pixel of an output position and the one after its last, counted from the first of all.
    #[inline(always)]
    pub fn span(self, to: usize, index: usize, kernel: Interpolation) -> (usize, usize) {
        let (centre, scale) = self.centre(to, index);
        let support = kernel.half_width() * scale.max(1.0);
        let begin = ((centre - support + 0.5) as i64).max(0) as usize;
        let most = self.ends().1.ceil() as usize;
        (begin, ((centre + support + 0.5) as usize).min(most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_an_odd_number_is_rounded() {
        let halves = |rounding: Rounding| (0..8).map(|n| rounding.half(n)).collect::<Vec<_>>();
        assert_eq!(halves(Rounding::Even), [0, 0, 1, 2, 2, 2, 3, 4]);
        assert_eq!(halves(Rounding::Down), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(halves(Rounding::Up), [0, 1, 1, 2, 2, 3, 3, 4]);
    }

    #[test]
    fn geometry_of_torchvision() {
        let geometry = Geometry::centre(500, 375, 224, Fit::Crop(Rounding::Even));
        assert_eq!(
            (geometry.resized, geometry.left, geometry.top),
            ((298, 224), 37, 0)
        );
        let geometry = Geometry::centre(3, 1000, 7, Fit::Crop(Rounding::Even));
        assert_eq!(geometry.resized, (7, 2333));
    }
}
